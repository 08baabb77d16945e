"""Measuring a folder that slimkit did not write: by its own code, behind walls, with the labels and the clock outside.

Single images are timed first, each another one of the test images, and all are judged afterwards, in an order that is
drawn by the seed. So neither an answer that was prepared nor the order of the images is of use, and what was answered
while the clock ran has to be what is answered when it does not.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slimkit.core.architecture import Preprocessing
from slimkit.core.baseline import named_baseline
from slimkit.core.bytes import parse_bytes
from slimkit.core.checks import MOST_PIXELS
from slimkit.core.data import Images, ImageSet, epoch_order, evaluation_input, label_map, open_dataset
from slimkit.core.errors import ModelError, UsageError
from slimkit.core.measure.accuracy import Accuracy, judge
from slimkit.core.measure.latency import Latency, split_runs, summarize
from slimkit.core.models.classes import read_class_names
from slimkit.core.models.resolve import DEFAULT_DATA
from slimkit.core.models.seen import with_test_images
from slimkit.core.options import ScoreOptions
from slimkit.core.progress import Advance, Progress
from slimkit.core.scoring.alone import measure_alone
from slimkit.core.scoring.measured import Measured, hashes_of
from slimkit.core.sizes import Size, as_size
from slimkit.core.strangers.convention import Submission, read_submission
from slimkit.core.strangers.host import Stranger, start

log = logging.getLogger("slimkit")

WARM_UP = 10  # runs that don't count
SAME_ANSWERS = 0.98  # of the timed images, at least, are answered alike when they are judged
HIDDEN = 0.1  # of the weights file: more than that in other files is said


def measure_stranger(options: ScoreOptions, with_baseline: bool, progress: Progress) -> Measured:
    """The figures of the folder `options.model`, and those of the baseline that `options` name.

    Raises UsageError where its code would be run unasked, MissedError where a wall is missing, ModelError for whatever
    is wrong with its answers.
    """
    submission = read_submission(Path(options.model))
    if submission.needs_code and not options.run_code:
        raise UsageError(
            f"{options.model} is run by code of its own ({submission.kind}), which slimkit does not run unasked.",
            "Give --run-code to run it in a sandbox, where it sees neither labels nor files.",
        )
    data = with_test_images(_open_data(options, submission, progress), [])
    class_names = _class_names(options, submission, data)
    threads = options.threads or torch.get_num_threads()
    with start(
        submission,
        threads=threads,
        memory=parse_bytes(options.max_memory),
        allow_weaker=options.allow_weaker_sandbox,
    ) as stranger:
        latency, accuracy = _time_and_judge(stranger, data, class_names, options, threads, progress)
    measured = Measured(
        data=data.name,
        class_names=class_names,
        size=submission.size / 2**20,
        sha256=hashes_of(submission.folder, submission.weights, data.test),
        accuracy=accuracy,
        latency=latency,
        remarks=_remarks(submission),
        walls=stranger.walls,
    )
    return _with_baseline(measured, options, data, progress) if with_baseline and options.baseline else measured


def _open_data(options: ScoreOptions, submission: Submission, progress: Progress) -> ImageSet:
    stated = {n: v for n in ("mean", "std", "interpolation") if (v := getattr(options, n)) is not None}
    size = stated_size(submission.metadata) if options.image_size is None else options.image_size
    data = open_dataset(
        options.data or DEFAULT_DATA, image_size=size, resize=options.resize, stated=stated, progress=progress
    )
    log.info("%s is shown images as %s.", options.model, data.preprocessing)
    return data


def stated_size(metadata: dict[str, Any]) -> Size | None:
    """Height and width at the end of what metadata.json calls the input's shape or size, where it says them."""
    said = metadata.get("input_shape", metadata.get("input_size"))
    if not isinstance(said, list) or len(said) < 2:
        return None
    height, width = said[-2:]
    can_be = all(type(side) is int and 1 <= side <= MOST_PIXELS for side in (height, width))
    return as_size(height, width) if can_be else None


def _class_names(options: ScoreOptions, submission: Submission, data: ImageSet) -> tuple[str, ...]:
    """In the order of its logits: as the user says, or its metadata, or the data."""
    if options.classes:
        return read_class_names(options.classes)
    own = submission.class_names
    return own if own and set(data.class_names) <= set(own) and len(set(own)) == len(own) else data.class_names


def _time_and_judge(
    stranger: Stranger,
    data: ImageSet,
    class_names: Sequence[str],
    options: ScoreOptions,
    threads: int,
    progress: Progress,
) -> tuple[Latency, Accuracy]:
    images, preprocessing = data.test, data.preprocessing
    order = epoch_order(len(images), options.seed, epoch=0)
    timed = order[: options.runs]
    with progress("time runs", options.runs) as advance:
        first, rounds = _time(stranger, images, preprocessing, timed, options.runs, advance)
    classes = label_map(class_names, data.class_names)
    accuracy = judge(
        lambda inputs: _require_classes(stranger.ask(inputs)[0], len(class_names)),
        images,
        preprocessing,
        order,
        label_map=classes,
        progress=progress,
    )
    same = float((first == accuracy.answers.given[timed]).double().mean())
    if same < SAME_ANSWERS:
        raise ModelError(
            f"{stranger.submission.folder.name} failed: it answers {100 * (1 - same):.0f} % of the images otherwise "
            "when it is timed.",
            "Its latency is of another network than its accuracy.",
        )
    return summarize(rounds, batch_size=1, threads=threads), accuracy


def _time(
    stranger: Stranger,
    images: Images,
    preprocessing: Preprocessing,
    timed: Tensor,
    runs: int,
    advance: Advance,
) -> tuple[Tensor, list[list[float]]]:
    """The answers to the `timed` images [n], and the ms of `runs` runs of one image, in rounds."""
    inputs = torch.cat([evaluation_input(pixels, preprocessing) for pixels, _, _ in images.batches(timed, 64)])
    for i in range(WARM_UP):
        stranger.ask(torch.rand(1, *inputs.shape[1:], generator=torch.Generator().manual_seed(i)))
    given: dict[int, int] = {}
    rounds: list[list[float]] = []
    run = 0
    for share in split_runs(runs):
        rounds.append([])
        for _ in range(share):
            place = run % len(timed)
            logits, took = stranger.ask(inputs[place : place + 1])
            given.setdefault(place, int(logits.argmax(1)))
            rounds[-1].append(took)
            run += 1
        advance(share)
    return torch.tensor([given.get(place, -1) for place in range(len(timed))]), rounds


def _require_classes(logits: Tensor, classes: int) -> Tensor:
    if logits.shape[1] != classes:
        raise ModelError(
            f"It gives {logits.shape[1]} logits for an image; there are {classes} classes.",
            "Name the data that it is for with --data, or its classes with --classes FILE.",
        )
    return logits


def _remarks(submission: Submission) -> tuple[str, ...]:
    remarks = [
        f"{submission.folder.name} was not written by slimkit: {submission.kind}, timed from outside its process, "
        "transport of the image included."
    ]
    if submission.other_bytes > HIDDEN * submission.size:
        remarks.append(
            f"Beside {submission.weights.name} the folder holds {submission.other_bytes / 2**20:.2f} MB, which are not "
            "among its size."
        )
    return tuple(remarks)


def _with_baseline(measured: Measured, options: ScoreOptions, data: ImageSet, progress: Progress) -> Measured:
    """With what is measured of the baseline, after the model and not in turn with it."""
    baseline = named_baseline(options, measured.class_names, data.preprocessing)
    alone = measure_alone(options, baseline, data, data.test, progress)
    return dataclasses.replace(
        measured,
        baseline=alone.figures,
        baseline_accuracy=alone.accuracy,
        baseline_latency=alone.latency,
        origin=f"measured: {baseline.folder or options.baseline}",
    )
