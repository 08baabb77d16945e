"""Opening the model that a compressed one is compared with."""

from __future__ import annotations

from pathlib import Path

from slimkit.core.architecture import Preprocessing
from slimkit.core.folder import Classifier, read_folder
from slimkit.core.models.lineage import find_baseline
from slimkit.core.models.resolve import is_folder, open_named
from slimkit.core.options import BenchmarkOptions, ScoreOptions


def open_baseline(options: ScoreOptions | BenchmarkOptions, classifier: Classifier) -> Classifier | None:
    """The baseline that `options` name, else the model that `classifier` was cut from, else None where that is gone.

    Raises FolderError or UsageError for a named model that can't be opened.
    """
    if options.baseline is None:
        folder = find_baseline(classifier)
        return read_folder(folder) if folder else None
    return named_baseline(options, classifier.architecture.class_names, classifier.architecture.preprocessing)


def named_baseline(
    options: ScoreOptions | BenchmarkOptions, class_names: tuple[str, ...], preprocessing: Preprocessing
) -> Classifier:
    """The baseline that `options` name, of these classes where it is no folder. Raises as `open_baseline`."""
    named = str(options.baseline)
    if is_folder(named):
        return read_folder(Path(named))
    own = options.naming(named, None)
    if isinstance(options, ScoreOptions):  # for a benchmark, random weights are as good
        own = options.naming(named, options.baseline_weights, options.baseline_pretrained)
    return open_named(own, class_names, preprocessing)
