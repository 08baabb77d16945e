"""The contest's score: size, latency and accuracy against a baseline.

    size_score     = baseline size / size            MB of 2^20 bytes, of the weights file on disk
    latency_score  = baseline latency / latency      ms, mean of the runs at batch 1
    accuracy_score = accuracy / baseline accuracy    % top-1 on the whole test split
    total_score    = 0.3 size_score + 0.3 latency_score + 0.4 accuracy_score

The formula has no floor, so the smallest network wins it whatever it answers. Hence a network whose accuracy is under
a minimum is called degenerate, and should rank below all that are not.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slimkit.core.baseline import open_baseline
from slimkit.core.checks import check_options
from slimkit.core.data import Images, ImageSet, label_map
from slimkit.core.device import resolve_device
from slimkit.core.environment import describe_environment
from slimkit.core.errors import UsageError
from slimkit.core.files import write_atomically
from slimkit.core.folder import Classifier, changed_code, weights_name
from slimkit.core.measure.accuracy import Accuracy, evaluate
from slimkit.core.measure.latency import Latency, Target, measure_latencies
from slimkit.core.measure.size import size_mb
from slimkit.core.models.resolve import materialize, open_model_and_data
from slimkit.core.models.seen import with_test_images
from slimkit.core.options import ScoreOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.run import checked

log = logging.getLogger("slimkit")

FIGURES = ("size", "latency", "accuracy")
SHARE_OF_BASELINE = 0.95  # of the baseline's accuracy: the default minimum


@dataclass(frozen=True)
class Figures:
    """The three figures of a model that the score is made of."""

    size: float  # MB
    latency: float  # ms
    accuracy: float  # %


CONTEST_BASELINE = Figures(size=50.0, latency=10.0, accuracy=80.0)


@dataclass(frozen=True)
class Score:
    """How many times better than the baseline, for each figure and in all."""

    size: float
    latency: float
    accuracy: float
    total: float


def score(figures: Figures, baseline: Figures) -> Score:
    """The contest's formula. All figures but `figures.accuracy` are above 0."""
    size = baseline.size / figures.size
    latency = baseline.latency / figures.latency
    accuracy = figures.accuracy / baseline.accuracy
    return Score(size, latency, accuracy, total=0.3 * size + 0.3 * latency + 0.4 * accuracy)


@dataclass(frozen=True)
class ScoreReport:
    """A model's score, with all that it was computed from."""

    model: str
    data: str
    figures: Figures
    baseline: Figures
    sources: dict[str, str]  # for each figure of the baseline: where it is from
    score: Score
    accuracy: Accuracy
    latency: Latency
    baseline_latency: Latency | None  # where it was measured
    latency_alone: Latency  # of the model on one thread, which waits for no other
    min_accuracy: float  # %
    changed_code: tuple[str, ...]  # files in the folder that are not slimkit's own, which alone was run
    environment: dict[str, Any]

    @property
    def degenerate(self) -> bool:
        """Whether the accuracy is under the minimum, so that the total says nothing."""
        return self.accuracy.top1 < self.min_accuracy

    def to_dict(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "model": self.model,
            "model_size": self.figures.size,
            "latency": self.figures.latency,
            "accuracy": self.figures.accuracy,
            "size_score": self.score.size,
            "latency_score": self.score.latency,
            "accuracy_score": self.score.accuracy,
            "total_score": self.score.total,
            "min_accuracy": self.min_accuracy,
            "degenerate": self.degenerate,
            "accuracy_top5": self.accuracy.top5,
            "correct": self.accuracy.correct,
            "images": self.accuracy.images,
            "latency_median": self.latency.median,
            "latency_p90": self.latency.p90,
            "latency_confidence": self.latency.to_dict()["confidence"],
            "latency_median_confidence": self.latency.to_dict()["median_confidence"],
            "latency_median_one_thread": self.latency_alone.median,
            "runs": self.latency.runs,
            "threads": self.latency.threads,
            "baseline": self._baseline_to_dict(),
            "data": self.data,
            "changed_code": list(self.changed_code),
            "environment": self.environment,
        }

    def _baseline_to_dict(self) -> dict[str, Any]:
        timed = self.baseline_latency
        return {
            "model_size": self.baseline.size,
            "latency": self.baseline.latency,
            "accuracy": self.baseline.accuracy,
            "latency_median": timed.median if timed else None,
            "latency_p90": timed.p90 if timed else None,
            "sources": self.sources,
        }


@checked
def run_score(options: ScoreOptions, progress: Progress = silent) -> ScoreReport:
    """Measure the model, and what is not given of its baseline, and write the score to `options.output`.

    Raises UsageError for a figure that can't be divided by, FolderError where the output exists, and what reading the
    model and the data raises.
    """
    given = given_figures(options)
    classifier, data = open_model_and_data(options, progress=progress)
    baseline = open_baseline(options, classifier) if len(given) < len(FIGURES) else None
    measured = _measure(options, classifier, baseline, data, given, progress)
    origin = f"measured: {baseline.folder or options.baseline}" if baseline else None
    figures, sources = baseline_figures(given, measured.baseline, origin)
    minimum = SHARE_OF_BASELINE * figures.accuracy if options.min_accuracy is None else options.min_accuracy
    own = Figures(measured.size, measured.latency.mean, measured.accuracy.top1)
    report = ScoreReport(
        model=options.model,
        data=data.name,
        figures=own,
        baseline=figures,
        sources=sources,
        score=score(own, figures),
        accuracy=measured.accuracy,
        latency=measured.latency,
        baseline_latency=measured.baseline_latency,
        latency_alone=measured.latency_alone,
        min_accuracy=minimum,
        changed_code=changed_code(classifier.folder) if classifier.folder else (),
        environment=describe_environment(),
    )
    if report.degenerate:
        log.warning("%s is degenerate: %.2f %% accuracy, under %.2f %%.", options.model, own.accuracy, minimum)
    write_atomically(options.output, json.dumps(report.to_dict(), indent=2) + "\n")
    return report


def given_figures(options: ScoreOptions) -> dict[str, float]:
    """The baseline's figures that the user gave. Raises UsageError for one that is not a number above 0."""
    check_options(options)
    values = {name: getattr(options, f"baseline_{name}") for name in FIGURES}
    return {name: value for name, value in values.items() if value is not None}


def baseline_figures(
    given: Mapping[str, float], measured: Mapping[str, float], origin: str | None
) -> tuple[Figures, dict[str, str]]:
    """The baseline, each figure with its source: the user, else `origin` (where it was measured), else the contest."""
    contest = dataclasses.asdict(CONTEST_BASELINE)
    values = contest | dict(measured) | dict(given)
    sources = {
        name: "given" if name in given else origin if origin and name in measured else "the contest's"
        for name in FIGURES
    }
    if values["accuracy"] == 0:
        raise UsageError(f"The baseline has an accuracy of 0 % ({origin}).", "Give another with --baseline-accuracy.")
    return Figures(**values), sources


@dataclass(frozen=True)
class _Measured:
    size: float  # MB
    accuracy: Accuracy
    latency: Latency
    baseline_latency: Latency | None  # where it was needed
    latency_alone: Latency  # the model's, on one thread
    baseline: dict[str, float]  # those of its FIGURES that were needed


def _measure(
    options: ScoreOptions,
    classifier: Classifier,
    baseline: Classifier | None,
    data: ImageSet,
    given: Mapping[str, float],
    progress: Progress,
) -> _Measured:
    """The figures of the model, and those of the baseline that are not given."""
    models = [classifier, baseline] if baseline else [classifier]
    images = with_test_images(
        data, [model.architecture for model in models]
    ).test  # there are some, before time is taken
    other: dict[str, float] = {}
    with materialize(classifier) as folder, materialize(baseline) if baseline else nullcontext() as other_folder:
        size = _size(classifier, folder)
        targets = [Target(folder)]
        if baseline and other_folder:
            other["size"] = _size(baseline, other_folder)
            if "latency" not in given:
                targets.append(Target(other_folder))
        if torch.get_num_threads() > 1:
            targets.append(Target(folder, threads=1))
        latencies = measure_latencies(targets, runs=options.runs, threads=options.threads, progress=progress)
    alone = latencies[-1] if targets[-1].threads == 1 else latencies[0]
    timed = latencies[1] if baseline and "latency" not in given else None
    if timed:
        other["latency"] = timed.mean
    if baseline and "accuracy" not in given:
        other["accuracy"] = _accuracy(options, baseline, data, images, progress).top1
    return _Measured(size, _accuracy(options, classifier, data, images, progress), latencies[0], timed, alone, other)


def _size(classifier: Classifier, folder: Path) -> float:
    return size_mb(folder / weights_name(classifier.architecture.model_type))


def _accuracy(
    options: ScoreOptions, classifier: Classifier, data: ImageSet, images: Images, progress: Progress
) -> Accuracy:
    """Top-1 and top-5 on every one of the test `images` of `data`, at the size that these were opened with.

    An int8 network is for the CPU, and on a GPU would answer by float arithmetic: unasked, it isn't evaluated there.
    """
    as_deployed = options.device == "auto" and classifier.architecture.is_quantized
    own, opened = classifier.architecture.preprocessing, data.preprocessing
    return evaluate(
        classifier.module,
        images,
        dataclasses.replace(own, resize=opened.resize, crop=opened.crop),
        device="cpu" if as_deployed else resolve_device(options.device),
        label_map=label_map(classifier.architecture.class_names, data.class_names),
        progress=progress,
    )
