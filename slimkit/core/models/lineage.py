"""Where a model came from: the baseline that it was cut from, as its architecture records it."""

import dataclasses
import os
from pathlib import Path

from slimkit.core.architecture import Architecture
from slimkit.core.errors import FolderError
from slimkit.core.folder import Classifier, read_metadata, sha256_of, weights_name


def find_baseline(classifier: Classifier) -> Path | None:
    """The folder of the model that `classifier` was cut from, or None where it is gone or was changed since."""
    base = classifier.architecture.base
    if classifier.folder is None or "folder" not in base:
        return None
    folder = Path(os.path.normpath(classifier.folder.absolute() / base["folder"]))
    try:
        weights = folder / read_metadata(folder)["files"]["weights"]
        return folder if sha256_of(weights) == base.get("weights_sha256") else None
    except (FolderError, KeyError, OSError):
        return None


def record_baseline(architecture: Architecture, source: Classifier, output: Path) -> Architecture:
    """`architecture` of a model made from `source` and to be written to `output`, with what it was first cut from.

    The folder is recorded relative to `output`, so that a project can be moved as a whole.
    """
    folder = find_baseline(source) or source.folder
    if folder is None or ("weights_sha256" in source.architecture.base and find_baseline(source) is None):
        return architecture
    weights = folder / weights_name(source.architecture.model_type)
    base = {
        "name": source.architecture.base["name"],
        "folder": os.path.relpath(folder.absolute(), output.absolute()),
        "weights_sha256": sha256_of(weights),
    }
    return dataclasses.replace(architecture, base=base)
