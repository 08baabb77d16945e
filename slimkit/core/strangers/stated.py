"""What a stranger's folder says of the images that it takes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from slimkit.core.data import ImageSet, open_dataset
from slimkit.core.options import ModelOptions
from slimkit.core.progress import Progress
from slimkit.core.sizes import Size, as_size
from slimkit.core.strangers.convention import Submission, printable

log = logging.getLogger("slimkit")

MOST_STATED = 1024  # pixels a side that a stranger may ask for; the user may ask for more
MOST_READ = 2**28  # bytes of an ONNX file that is looked into


def stated_size(submission: Submission) -> Size | None:
    """Height and width of its images, where they are said: by its metadata, or else by the input of an ONNX file."""
    said = submission.metadata.get("input_shape", submission.metadata.get("input_size"))
    if said is None and submission.kind == "onnx":
        said = _onnx_input_shape(submission.weights)
    if not isinstance(said, list) or len(said) < 2:
        return None
    height, width = said[-2:]
    can_be = all(type(side) is int and 1 <= side <= MOST_STATED for side in (height, width))
    return as_size(height, width) if can_be else None


def _onnx_input_shape(file: Path) -> list[Any] | None:
    """Of the first input that is no weight, 0 for what is not fixed; None where the file is too large, or none."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it comes without types

    if file.stat().st_size > MOST_READ:
        return None
    try:
        graph = onnx.load(file, load_external_data=False).graph
    except DecodeError:
        return None  # what is wrong with it is said where it is run
    weights = {weight.name for weight in graph.initializer}
    entry = next((each for each in graph.input if each.name not in weights), None)
    return None if entry is None else [side.dim_value for side in entry.type.tensor_type.shape.dim]


def open_data_for_stranger(options: ModelOptions, data: str, submission: Submission, progress: Progress) -> ImageSet:
    """The data set `data`, at the size and with the preprocessing that the user asks for, or else the stranger.

    Raises what opening the data raises.
    """
    stated = {n: v for n in ("mean", "std", "interpolation") if (v := getattr(options, n)) is not None}
    size = stated_size(submission) if options.image_size is None else options.image_size
    opened = open_dataset(data, image_size=size, resize=options.resize, stated=stated, progress=progress)
    log.info("%s is shown images as %s.", printable(submission.folder.name), opened.preprocessing)
    return opened
