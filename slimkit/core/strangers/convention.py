"""What a folder that slimkit did not write holds, by the contest's convention. Nothing of it is run or unpickled here.

metadata.json     {"model_format": "pytorch" | "pt" | "pth" | "onnx", ...}
model.pt|pth|onnx a TorchScript archive, a state dict of torchvision's resnet18, a whole pickled module, or ONNX
model_loader.py   optional: load_model(model_path) gives the module
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from slimkit.core.errors import FolderError
from slimkit.core.folder import ARCHITECTURE, METADATA
from slimkit.core.options import Backend

Kind = Literal["loader", "torchscript", "pickle", "state dict", "onnx"]
NEED_CODE = ("loader", "torchscript", "pickle")
METADATA_NAMES = ("metadata.json", "model_metadata.json")
LOADER = "model_loader.py"
FORMATS = {"pytorch": (".pt", ".pth"), "pt": (".pt",), "pth": (".pth",), "onnx": (".onnx",)}
SUFFIXES = (".pt", ".pth", ".onnx")
MOST_METADATA = 2**20  # bytes
HINT = "A submission holds model.pt, model.pth or model.onnx, and may hold metadata.json and model_loader.py."
MOST_LISTED = 2**22  # bytes of an archive's list of files, and of a pickle
FREE_BYTES = 64 * 2**10  # of code and words beside the weights, compressed, which do not count
MOST_TEXT = 2**22  # bytes of a file that may be text
PLAIN = ("torch", "collections OrderedDict")  # what the pickle of a state dict may name


@dataclass(frozen=True)
class Submission:
    """A stranger's model folder, or an ONNX file alone."""

    folder: Path  # or the file
    weights: Path
    kind: Kind | Backend  # of what slimkit wrote: what it is run in
    metadata: dict[str, Any]

    @property
    def needs_code(self) -> bool:
        """Whether it is run by code of its own."""
        return self.kind in NEED_CODE

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The order of its logits, where its metadata say it."""
        for key in ("class_names", "classes"):
            names = self.metadata.get(key)
            if isinstance(names, list) and names and all(isinstance(n, str) and n.isprintable() for n in names):
                return tuple(names)
        return None

    @cached_property
    def hidden(self) -> int:
        """Bytes beside the weights file that count as well, since weights may be in them: all but a little text.

        Of text the compressed size counts, so that weights which are spelled in letters count as what they are.
        """
        files = [file for file in self.folder.rglob("*") if file.is_file() and file != self.weights]
        words = binary = 0
        for file in files:
            text = _compressed_text(file)
            words, binary = words + (text or 0), binary + (file.stat().st_size if text is None else 0)
        return binary + max(0, words - FREE_BYTES)

    @property
    def size(self) -> int:
        """Bytes that count."""
        return self.weights.stat().st_size + self.hidden


def _compressed_text(file: Path) -> int | None:
    """The bytes of a file of text when it is compressed; None where it is too large to be words, or is no text."""
    if file.stat().st_size > MOST_TEXT:
        return None
    content = file.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if b"\0" in content else len(zlib.compress(content, 9))


def is_foreign(folder: Path) -> bool:
    """Whether a path is a submission that was not written by slimkit: a folder, or an ONNX file."""
    if folder.suffix.lower() == ".onnx" and folder.is_file():
        return True
    if not folder.is_dir() or ((folder / METADATA).is_file() and (folder / ARCHITECTURE).is_file()):
        return False
    return (folder / LOADER).is_file() or any(file.suffix in SUFFIXES for file in folder.iterdir())


def read_submission(folder: Path) -> Submission:
    """Find out what a stranger's folder, or ONNX file, holds. Raises FolderError that says what is missing or odd."""
    if folder.is_file():
        return Submission(folder.resolve(), folder.resolve(), "onnx", {})
    metadata = _read_metadata(folder)
    weights = _find_weights(folder, metadata)
    kind: Kind = "loader" if (folder / LOADER).is_file() else _kind_of(weights)
    return Submission(folder.resolve(), weights.resolve(), kind, metadata)


def _read_metadata(folder: Path) -> dict[str, Any]:
    file = next((folder / name for name in METADATA_NAMES if (folder / name).is_file()), None)
    if file is None:
        return {}
    _require_inside(file, folder)
    try:
        if file.stat().st_size > MOST_METADATA:
            raise ValueError(f"it has more than {MOST_METADATA:,} bytes")
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{file} is not JSON: {error}.", HINT) from None
    if not isinstance(metadata, dict):
        raise FolderError(f"{file} holds no JSON object.", HINT)
    return metadata


def _find_weights(folder: Path, metadata: dict[str, Any]) -> Path:
    """model.* of the format that the metadata name, or else the only file of weights."""
    said = metadata.get("model_format")
    if said is not None and (not isinstance(said, str) or said.lower() not in FORMATS):
        raise FolderError(f"{folder}: model_format is {said!r:.80}, none of {', '.join(FORMATS)}.", HINT)
    suffixes = FORMATS[said.lower()] if isinstance(said, str) else SUFFIXES
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.is_file())
    named = [file for file in found if file.stem == "model"] or found
    if len(named) != 1:
        listed = printable(", ".join(file.name for file in named[:5]))
        what = f"{listed}: which is it?" if named else "no file of weights"
        raise FolderError(f"{folder} has {what} ({', '.join(suffixes)})", HINT)
    _require_inside(named[0], folder)
    return named[0]


def _require_inside(file: Path, folder: Path) -> None:
    if not file.resolve().is_relative_to(folder.resolve()):
        raise FolderError(f"{file} is a link that leads out of the folder.", "Put the file itself there.")


def _kind_of(weights: Path) -> Kind:
    if weights.suffix.lower() == ".onnx":
        return "onnx"
    if not zipfile.is_zipfile(weights):
        return "pickle"  # an older format of torch.save: what is in it shows when it is read
    try:
        with _Bounded(weights) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            inner = next((name for name in names if name.endswith("/data.pkl") or name == "data.pkl"), None)
            if any(name.endswith("/constants.pkl") for name in names):
                return "torchscript"
            pickled = archive.open(inner).read(MOST_LISTED) if inner else b""
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError, RuntimeError) as error:
        raise FolderError(f"{weights} is a damaged archive: {error}.", "Ask for the file again.") from None
    return "pickle" if _names_code(pickled) else "state dict"


class _Bounded(io.FileIO):
    """A file that gives no more than so much at once, as which an archive's list of files would be read."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MOST_LISTED:
            raise zipfile.BadZipFile(f"it lists {size:,} bytes of files")
        return super().read(size) or b""


def printable(text: str) -> str:
    """What a stranger wrote, without what would steer a terminal or can't be encoded."""
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _names_code(pickled: bytes) -> bool:
    """Whether a pickle names anything but tensors and dictionaries. It is taken apart, not run."""
    import pickletools

    try:
        said = [str(argument) for code, argument, _ in pickletools.genops(pickled) if code.name == "GLOBAL"]
        stacked = any(code.name == "STACK_GLOBAL" for code, _, _ in pickletools.genops(pickled))
    except Exception:  # pickletools raises nearly anything for a damaged pickle
        return True
    return stacked or any(not name.startswith(PLAIN) or name.startswith("torch.nn") for name in said)
