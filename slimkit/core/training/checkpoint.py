"""The files of a training's checkpoints: written whole, proved by a checksum, the last two of them kept.

A file is a line that names the format, a line with the sha256 of the rest, and the rest as `torch.save` writes it.
"""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from slimkit.core.errors import FolderError
from slimkit.core.files import write_atomically

log = logging.getLogger("slimkit")

FORMAT = b"slimkit checkpoint 1"
KEPT = 2
PATTERN, TEMPORARY = "[0-9]*.checkpoint", ".[0-9]*.checkpoint.*"


def checkpoint_folder(output: Path) -> Path:
    """Where the checkpoints of a training lie that is to write `output`."""
    return output.with_name(f"{output.name}.checkpoint")


def has_checkpoint(folder: Path) -> bool:
    """Whether a training was left there that can be gone on with."""
    return bool(_files(folder))


def write_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write `content` (numbers, texts and tensors) as the newest checkpoint and remove all but KEPT.

    Raises FolderError where it can't be written; what was there before is whole then.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    files = _files(folder)
    number = int(files[-1].stem) + 1 if files else 1
    file = folder / f"{number:06d}.checkpoint"
    try:
        write_atomically(file, b"\n".join((FORMAT, hashlib.sha256(body).hexdigest().encode(), body)))
    except OSError as error:
        raise FolderError(
            f"The checkpoint {file} can't be written: {error.strerror}.",
            "Free some space; --resume goes on from the last one." if files else "Free some space, and run again.",
        ) from error
    for old in (*_files(folder)[:-KEPT], *folder.glob(TEMPORARY)):  # the latter of a process that was killed
        old.unlink()


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, None where there is none at all.

    A damaged one is named in the log, and that before it is read. Raises FolderError where all are damaged.
    """
    files = _files(folder)
    for file in reversed(files):
        if (body := _whole_body(file)) is not None:
            content: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
            return content
        log.warning("%s is damaged; the checkpoint before it is taken.", file)
    if files:
        raise FolderError(f"All checkpoints in {folder} are damaged.", "Delete that folder to start over.")
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints, and their folder unless other files are in it."""
    for file in (*folder.glob(PATTERN), *folder.glob(TEMPORARY)):
        file.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _files(folder: Path) -> list[Path]:
    """The oldest first."""
    return sorted(folder.glob(PATTERN), key=lambda file: int(file.stem))


def _whole_body(file: Path) -> bytes | None:
    """What `torch.load` reads, None where the checksum does not fit it."""
    name, _, rest = file.read_bytes().partition(b"\n")
    digest, _, body = rest.partition(b"\n")
    return body if name == FORMAT and digest == hashlib.sha256(body).hexdigest().encode() else None
