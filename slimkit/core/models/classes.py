"""The names of a named network's classes, in the order of its logits."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from slimkit.core.data import ImageSet
from slimkit.core.errors import DataError
from slimkit.core.folder import METADATA, read_architecture
from slimkit.core.options import ModelOptions
from slimkit.standalone import model_loader

log = logging.getLogger("slimkit")


def class_names_of(options: ModelOptions, data: ImageSet) -> tuple[str, ...] | None:
    """The classes in the order of a named network's logits; None where nothing names them."""
    if options.classes is not None:
        return read_class_names(options.classes)
    return class_order(options.weights, data) if data.is_labelled else None


def class_order(weights: Path | None, data: ImageSet) -> tuple[str, ...]:
    """The classes in the order of a named network's outputs.

    Weights from outside know a published set in the order that it is published in; those in a model folder know the
    folder's; all else is sorted.
    """
    if weights is None:
        return data.class_names
    if (weights.parent / METADATA).exists():
        own = read_architecture(weights.parent).class_names
        if set(own) == set(data.class_names):
            return own
    if data.published_order != data.class_names:
        log.info("%s: its outputs are taken to be in the order of %s.", weights, data.name)
    return data.published_order


def read_class_names(file: Path) -> tuple[str, ...]:
    """The names in a file, one per line. Raises DataError for one that is there twice, and for an empty file."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} can't be read: {error}.", "Give a text file with a class per line.") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise DataError(f"{file} names no classes.", "Give a text file with a class per line.")
    counts = Counter(map(model_loader.normalized, names))
    if (twice := counts.most_common(1)[0])[1] > 1:
        raise DataError(f"{file} names {twice[0]!r} twice.", "Give each of the model's classes a name of its own.")
    return names


def numbered(count: int) -> tuple[str, ...]:
    """Names that are sorted as numbers are."""
    return tuple(f"{i:0{len(str(count - 1))}}" for i in range(count))
