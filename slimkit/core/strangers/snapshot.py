"""A copy of a stranger's folder that nobody else can change: what is hashed, weighed and run is one and the same.

Only regular files are copied. A link that leads elsewhere, a hard link, a pipe or a device may be something of the
user's own, or never end.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimkit.core.errors import FolderError
from slimkit.core.strangers.convention import Submission, printable

MOST_BYTES, MOST_FILES, MOST_DEPTH = 4 * 2**30, 10_000, 16
CHUNK = 2**20  # bytes
COMPILED = "__pycache__"


@contextmanager
def snapshot(submission: Submission) -> Iterator[Submission]:
    """`submission` in a folder of its own, while the block runs. Raises FolderError that names what is no file."""
    with tempfile.TemporaryDirectory(prefix="slimkit-submission-", ignore_cleanup_errors=True) as name:
        copy = Path(name) / submission.folder.name
        left = MOST_BYTES
        for place, source in list(_files(submission.folder)):  # all are looked at before any is copied
            (copy / place).parent.mkdir(parents=True, exist_ok=True)
            left -= _copy(source, copy / place, left)
        is_alone = submission.weights == submission.folder
        weights = submission.weights.name if is_alone else submission.weights.relative_to(submission.folder)
        yield dataclasses.replace(submission, folder=copy, weights=copy / weights)


def _files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The place in the folder of each of its files, and where the file lies: elsewhere in it, for a link.

    An ONNX file alone is all of it, whatever lies beside it.
    """
    if folder.is_file():
        yield Path(folder.name), folder
        return
    rest, count = [folder], 0
    while rest:
        for entry in _entries(rest.pop()):
            path, count = Path(entry.path), count + 1
            place = path.relative_to(folder)
            if count > MOST_FILES or len(place.parts) > MOST_DEPTH:
                raise _refusal(folder, f"has more than {MOST_FILES:,} files, or folders {MOST_DEPTH} deep")
            if entry.is_dir(follow_symlinks=False):
                if entry.name != COMPILED:  # Python would take what is in it for the code beside it
                    rest.append(path)
                continue
            real = Path(os.path.realpath(path))
            if not real.is_relative_to(folder):
                raise _refusal(folder, f"has a link that leads out of it: {place}")
            if not real.is_dir():  # a link to another of its folders is not followed
                yield place, real


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        yield from os.scandir(folder)
    except PermissionError as error:
        raise _refusal(folder, f"can't be looked into ({error.strerror})") from None


def _copy(source: Path, target: Path, most: int) -> int:
    """Copy a regular file of at most so many bytes; gives how many it has."""
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # which waits for no writer of a pipe
    except OSError as error:
        raise _refusal(source.parent, f"has a file that can't be read: {source.name} ({error.strerror})") from None
    with os.fdopen(handle, "rb") as file, target.open("wb") as copy:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise _refusal(source.parent, f"has {source.name}, which is a hard link, a pipe or a device")
        if status.st_size > most:
            raise _refusal(source.parent, f"has more than {MOST_BYTES / 2**30:g} GiB of files")
        done = 0
        while done < status.st_size and (part := file.read(min(CHUNK, status.st_size - done))):
            done += copy.write(part)
    return done


def _refusal(folder: Path, what: str) -> FolderError:
    return FolderError(
        f"{folder.name} {printable(what)}.", "A submission holds its files themselves, and nothing else."
    )
