"""Measuring a folder that slimkit did not write: by its own code, behind walls, with the labels and the clock outside.

Single images are timed first, and all are judged afterwards, by another process that knows nothing of the first.
Which are timed, and in which order all are shown, is drawn anew each time: neither an answer that was prepared, nor one
that is remembered, nor the place of an image is of use. What was answered while the clock ran has to be what is
answered when it does not, and what is answered to an image what is answered to one that looks the same.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from slimkit.core.architecture import Preprocessing
from slimkit.core.baseline import named_baseline
from slimkit.core.data import Images, ImageSet, evaluation_input, label_map
from slimkit.core.errors import ModelError
from slimkit.core.measure.accuracy import Accuracy, judge
from slimkit.core.measure.latency import Latency, summarize
from slimkit.core.models.classes import read_class_names
from slimkit.core.models.resolve import DEFAULT_DATA
from slimkit.core.models.seen import with_test_images
from slimkit.core.options import ScoreOptions
from slimkit.core.progress import Progress
from slimkit.core.scoring.alone import measure_alone
from slimkit.core.scoring.measured import Measured, hashes_of
from slimkit.core.scoring.outside import FROM_OUTSIDE, lookalike, shuffled, time_round_trips
from slimkit.core.strangers.convention import FREE_BYTES, Submission, printable
from slimkit.core.strangers.host import Stranger
from slimkit.core.strangers.opened import opened, read_permitted
from slimkit.core.strangers.stated import open_data_for_stranger
from slimkit.core.strangers.watch import computed_seconds
from slimkit.standalone.model_loader import sides

SAME_WHEN_TIMED = 0.98  # of the timed images, at least, are answered alike when they are judged
SAME_TO_LOOKALIKES = 0.9  # of the images, at least, are answered alike with noise
CORES_MORE = 0.25  # than it has threads, on average: no rounding of the system's clock
LOOKALIKES = 256  # images at most that are shown again with noise


def measure_stranger(options: ScoreOptions, with_baseline: bool, progress: Progress) -> Measured:
    """The figures of the folder `options.model`, and those of the baseline that `options` name.

    Raises UsageError where its code would be run unasked, MissedError where a wall is missing, ModelError for whatever
    is wrong with its answers.
    """
    submission = read_permitted(Path(options.model), options)
    chosen = open_data_for_stranger(options, options.data or DEFAULT_DATA, submission, progress)
    data = with_test_images(chosen, [])
    class_names = _class_names(options, submission, data)
    with opened(submission, options) as (copy, launch):
        threads = options.threads or torch.get_num_threads()
        launch_again = partial(launch, threads)
        latency, cores, accuracy, walls = _time_and_judge(launch_again, data, class_names, options, progress)
        measured = Measured(
            data=data.name,
            class_names=class_names,
            size=copy.size / 2**20,
            sha256=hashes_of(copy.folder, copy.weights, data.test),
            accuracy=accuracy,
            latency=latency,
            remarks=(*_remarks(copy), *_remarks_on_cores(cores, threads)),
            walls=walls,
        )
    return _with_baseline(measured, options, data, progress) if with_baseline and options.baseline else measured


def _class_names(options: ScoreOptions, submission: Submission, data: ImageSet) -> tuple[str, ...]:
    """In the order of its logits: as the user says, or its metadata, or the data."""
    if options.classes:
        return read_class_names(options.classes)
    own = submission.class_names
    return own if own and set(data.class_names) <= set(own) and len(set(own)) == len(own) else data.class_names


def _time_and_judge(
    run: Callable[[], AbstractContextManager[Stranger]],
    data: ImageSet,
    class_names: Sequence[str],
    options: ScoreOptions,
    progress: Progress,
) -> tuple[Latency, float, Accuracy, dict[str, str]]:
    """The latency, the cores that it kept busy then, the accuracy, and the walls around it, of what `run` starts."""
    images, preprocessing = data.test, data.preprocessing
    timed = shuffled(len(images))[: options.runs]
    with run() as stranger, progress("time runs", options.runs) as advance:
        began, before = time.perf_counter(), computed_seconds(stranger.process.pid)
        in_turn, rounds = time_round_trips(stranger, images, preprocessing, timed, options.runs, advance)
        cores = (computed_seconds(stranger.process.pid) - before) / (time.perf_counter() - began)
    with run() as stranger:
        accuracy = judge(
            lambda inputs: _require_classes(stranger.ask(inputs)[0], len(class_names)),
            images,
            preprocessing,
            shuffled(len(images)),
            batch_size=_batch_size(preprocessing),
            label_map=label_map(class_names, data.class_names),
            progress=progress,
        )
        given = accuracy.answers.given
        first = min(len(timed), len(in_turn))  # of the runs; the others were of images with noise
        expected = given[timed[torch.arange(len(in_turn)) % len(timed)]]
        _require_same(stranger, "when it is timed", in_turn[:first], expected[:first], SAME_WHEN_TIMED)
        if len(in_turn) > first:
            _require_same(stranger, "when it is timed", in_turn[first:], expected[first:], SAME_TO_LOOKALIKES)
        looked_at = shuffled(len(images))[:LOOKALIKES]
        _require_same(
            stranger,
            "that differ from them by no more than one of 255 shades",
            _answers_to_lookalikes(stranger, images, preprocessing, looked_at),
            given[looked_at],
            SAME_TO_LOOKALIKES,
        )
    latency = summarize(rounds, batch_size=1, threads=options.threads or torch.get_num_threads())
    return latency, cores, accuracy, stranger.walls


def _batch_size(preprocessing: Preprocessing) -> int:
    """So many images as have the pixels of 64 of 224x224, but no more than 64."""
    height, width = sides(preprocessing.crop)
    return max(1, min(64, 64 * 224 * 224 // (height * width)))


def _require_same(stranger: Stranger, when: str, one: Tensor, other: Tensor, least: float) -> None:
    """Raise ModelError where fewer of the answers [n] are alike."""
    same = float((one == other).double().mean())
    if same < least:
        name, other_share = printable(stranger.submission.folder.name), 100 * (1 - same)
        raise ModelError(
            f"{name} failed: it answers {other_share:.0f} % of the images otherwise {when}.",
            "Its figures are not of one network that looks at the images.",
        )


def _answers_to_lookalikes(stranger: Stranger, images: Images, preprocessing: Preprocessing, places: Tensor) -> Tensor:
    """What is answered to the images at `places` [n] with noise that nobody sees: int64 [n]."""
    given = []
    for pixels, _, _ in images.batches(places, _batch_size(preprocessing)):
        given.append(stranger.ask(evaluation_input(lookalike(pixels), preprocessing))[0].argmax(1))
    return torch.cat(given)


def _require_classes(logits: Tensor, classes: int) -> Tensor:
    if logits.shape[1] != classes:
        raise ModelError(
            f"It gives {logits.shape[1]} logits for an image; there are {classes} classes.",
            "Name the data that it is for with --data, or its classes with --classes FILE.",
        )
    return logits


def _remarks(submission: Submission) -> tuple[str, ...]:
    remarks = [
        f"{submission.folder.name} was not written by slimkit: {submission.kind}.",
        FROM_OUTSIDE,
    ]
    if submission.hidden:
        remarks.append(
            f"Its size counts {submission.hidden / 2**20:.2f} MB in files beside {submission.weights.name}, which may "
            f"hold weights, too: all but {FREE_BYTES // 2**10} KB of text, compressed."
        )
    return tuple(remarks)


def _remarks_on_cores(cores: float, threads: int) -> tuple[str, ...]:
    if cores <= threads + CORES_MORE:
        return ()
    return (f"It kept {cores:.1f} cores busy while it was timed; it was given {threads} thread{'s' * (threads > 1)}.",)


def _with_baseline(measured: Measured, options: ScoreOptions, data: ImageSet, progress: Progress) -> Measured:
    """With what is measured of the baseline, like for like: after the model, and from outside, too."""
    baseline = named_baseline(options, measured.class_names, data.preprocessing)
    alone = measure_alone(options, baseline, data, data.test, progress, from_outside=True)
    return dataclasses.replace(
        measured,
        baseline=alone.figures,
        baseline_accuracy=alone.accuracy,
        baseline_latency=alone.latency,
        origin=f"measured: {baseline.folder or options.baseline}",
    )
