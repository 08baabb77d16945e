"""Model folders: one model whole, with the code that rebuilds it. Written, read and verified here."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import slimkit
from slimkit.core.architecture import Architecture
from slimkit.core.coding.encoder import encode_weights
from slimkit.core.errors import DataError, FolderError
from slimkit.core.files import recover_folder, require_folder, staged_folder
from slimkit.core.readme import render_readme
from slimkit.standalone import model_loader
from slimkit.standalone.model import CODED_KEY, Int8Network

ARCHITECTURE = "trained_pruned_architecture.json"
METADATA = "model_metadata.json"
METADATA_ALIAS = "metadata.json"  # the name that some panels read
CODE = ("model.py", "model_loader.py")
# What running or looking at a model folder leaves in it, and what `slimkit export` puts there for `load_model`
LEFT_BY_OTHERS = ("__pycache__", ".DS_Store", model_loader.ONNX_FILE, f"{model_loader.ONNX_FILE}.yaml")


@dataclass(frozen=True)
class Classifier:
    """A model whole, in memory."""

    module: nn.Module  # in eval mode
    architecture: Architecture
    folder: Path | None = None  # where it was read from or written to


def weights_name(model_type: str) -> str:
    """The name of the weights file: `compressed_resnet18.pth` for SlimResNet18."""
    return f"compressed_{model_type.lower().removeprefix('slim')}.pth"


def write_folder(
    classifier: Classifier, path: Path, *, force: bool = False, figures: dict[str, Any] | None = None
) -> Classifier:
    """Write `classifier` as a model folder, whole or not at all.

    `figures` are the measured figures for metadata and README. Raises FolderError where `path` holds anything, unless
    `force` is given and what it holds is a model folder.
    """
    require_model_output(path, force)
    with staged_folder(path) as staging:
        _write_files(classifier, staging, figures or {})
    return dataclasses.replace(classifier, folder=path)


def require_model_output(path: Path, force: bool) -> None:
    """Raise FolderError where no model folder can be written to `path`; one that is there is replaced by `force` alone.

    Nothing else is ever replaced: neither another folder, nor a model folder in which other files were put.
    """
    require_folder(path, force)
    present = {file.name for file in path.iterdir()} if path.exists() else set()
    if not present:
        return
    if METADATA not in present:
        raise FolderError(f"{path} is not a model folder, so it is not replaced.", "Give another -o/--output.")
    try:
        ours = {*read_metadata(path)["sha256"], METADATA, METADATA_ALIAS, *LEFT_BY_OTHERS}
    except FolderError as error:
        raise FolderError(
            f"{path} is no whole model folder, so it is not replaced: {error}",
            "Delete it, or give another -o/--output.",
        ) from None
    if foreign := sorted(present - ours):
        raise FolderError(
            f"{path} holds {foreign[0]}, which is no part of the model, so the folder is not replaced.",
            "Move that file elsewhere, or give another -o/--output.",
        )


def read_folder(path: Path) -> Classifier:
    """Read and verify a model folder. Raises FolderError that names the file, field or layer which is wrong."""
    recover_folder(path)
    if not path.is_dir():
        raise FolderError(f"There is no folder {path}.", "Check the path, or make the model first (`slimkit train`).")
    architecture = read_architecture(path)
    try:
        module = model_loader.load_model(path)
    except (ValueError, FileNotFoundError) as error:
        raise FolderError(str(error), "Write the model folder again, or copy it again from where it came.") from error
    return Classifier(module, architecture, path)


def read_architecture(path: Path) -> Architecture:
    """The architecture of the model folder at `path`. Raises FolderError."""
    file = path / ARCHITECTURE
    return Architecture.from_json(_read_text(file), str(file))


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of the model folder at `path`. Raises FolderError."""
    file = path / METADATA
    try:
        metadata = json.loads(_read_text(file))
    except ValueError as error:
        raise FolderError(f"{file} is not JSON: {error}.", "Write the model folder again.") from None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("sha256"), dict):
        raise FolderError(f"{file} lacks the field 'sha256'.", "Write the model folder again.")
    return metadata


def changed_code(path: Path) -> tuple[str, ...]:
    """The files of code in the model folder at `path` that are not those of this slimkit: they were not run."""
    own = Path(model_loader.__file__).parent
    return tuple(name for name in CODE if (path / name).is_file() and sha256_of(path / name) != sha256_of(own / name))


def recorded_accuracy(folder: Path) -> float:
    """In %, on held-out training images, as the command that wrote a model folder measured it.

    Raises DataError where it could not.
    """
    accuracy = read_metadata(folder).get("figures", {}).get("accuracy")
    if accuracy is None:
        raise DataError(
            f"{folder} has no accuracy on held-out training images.",
            "Give --data with class folders, with two images in a class at least.",
        )
    return float(accuracy)


def weights_file(folder: Path) -> Path:
    """The weights file of a model folder, as its metadata name it. Raises FolderError."""
    file = read_metadata(folder).get("files", {}).get("weights")
    if not isinstance(file, str) or Path(file).name != file:
        raise FolderError(f"{folder} names no weights file.", "Write the model folder again.")
    return folder / file


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def serialize_weights(module: nn.Module, *, coded: bool = False) -> bytes:
    """The state dict as the bytes of a weights file; its tensors are contiguous and on the CPU.

    coded: as one tensor; see `encode_weights`. `module` is an int8 network then.
    """
    if coded:
        assert isinstance(module, Int8Network)
        state = {CODED_KEY: encode_weights(module)}
    else:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FolderError(f"{file.parent} lacks the file {file.name}.", "Write the model folder again.") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise FolderError(f"{file} can't be read: {error}.", "Write the model folder again.") from None


def _write_files(classifier: Classifier, folder: Path, figures: dict[str, Any]) -> None:
    architecture = classifier.architecture
    weights = weights_name(architecture.model_type)
    (folder / weights).write_bytes(serialize_weights(classifier.module, coded=architecture.is_coded))
    (folder / ARCHITECTURE).write_text(architecture.to_json(), encoding="utf-8")
    for name in CODE:
        shutil.copyfile(Path(model_loader.__file__).parent / name, folder / name)
    (folder / "requirements.txt").write_text("\n".join(requirements(architecture)) + "\n", encoding="utf-8")
    size = (folder / weights).stat().st_size
    (folder / "README.md").write_text(render_readme(architecture, weights, size, figures), encoding="utf-8")
    metadata = json.dumps(_metadata(architecture, folder, weights, figures), indent=2) + "\n"
    for name in (METADATA, METADATA_ALIAS):
        (folder / name).write_text(metadata, encoding="utf-8")


def requirements(architecture: Architecture) -> list[str]:
    """What the code in the folder imports, as lines of a requirements.txt."""
    needs = ["torch>=2.6", "pillow>=10"]
    has_own_code = architecture.model_type.startswith("Slim") or architecture.is_quantized or architecture.is_graph
    return needs if has_own_code else [*needs, "torchvision>=0.21"]


def _metadata(architecture: Architecture, folder: Path, weights: str, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": "slimkit model folder",
        "format_version": architecture.format_version,
        "slimkit_version": slimkit.__version__,
        "model_type": architecture.model_type,
        "files": {"weights": weights, "architecture": ARCHITECTURE},
        "sha256": {file.name: sha256_of(file) for file in sorted(folder.iterdir())},
        "figures": figures,
    }
