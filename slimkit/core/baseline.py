"""Opening the model that a compressed one is compared with."""

from __future__ import annotations

from pathlib import Path

from slimkit.core.folder import Classifier, read_folder
from slimkit.core.models.lineage import find_baseline
from slimkit.core.models.resolve import is_folder, open_named
from slimkit.core.options import ModelOptions


def open_baseline(named: str | None, classifier: Classifier) -> Classifier | None:
    """The model argument `named`, else the model that `classifier` was cut from, else None where that is gone.

    Raises FolderError or UsageError for a `named` model that can't be opened.
    """
    if named is None:
        folder = find_baseline(classifier)
        return read_folder(folder) if folder else None
    if is_folder(named):
        return read_folder(Path(named))
    architecture = classifier.architecture
    return open_named(ModelOptions(model=named), architecture.class_names, architecture.preprocessing)
