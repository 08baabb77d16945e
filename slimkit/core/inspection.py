"""Looking into a model folder: what it is, and whether it is whole."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimkit.core.architecture import Architecture
from slimkit.core.folder import read_folder, read_metadata


@dataclass(frozen=True)
class Inspection:
    """A model folder that was found whole."""

    folder: Path
    architecture: Architecture
    metadata: dict[str, Any]
    checked: tuple[str, ...]  # what was verified


def inspect_folder(folder: Path) -> Inspection:
    """Read and verify a model folder. Raises FolderError that names the file, field or layer which is wrong."""
    classifier = read_folder(folder)
    metadata = read_metadata(folder)
    checked = (
        f"sha256 of {len(metadata['sha256'])} files",
        f"{len(classifier.module.state_dict())} tensors against {len(classifier.architecture.layers)} layers",
    )
    return Inspection(folder, classifier.architecture, metadata, checked)
