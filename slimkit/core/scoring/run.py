"""Scoring one model: measuring it, and what is not given of its baseline."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from slimkit.core.baseline import open_baseline
from slimkit.core.checks import check_options
from slimkit.core.data import ImageSet
from slimkit.core.environment import describe_environment
from slimkit.core.errors import UsageError
from slimkit.core.files import write_atomically
from slimkit.core.folder import Classifier, changed_code, weights_file
from slimkit.core.measure.latency import Latency, Target, measure_latencies
from slimkit.core.models.resolve import materialize, open_model_and_data
from slimkit.core.models.seen import with_test_images
from slimkit.core.options import ScoreOptions, plain_options
from slimkit.core.progress import Progress, silent
from slimkit.core.run import checked
from slimkit.core.scoring.alone import accuracy_of, size_of
from slimkit.core.scoring.details import write_details
from slimkit.core.scoring.foreign import measure_stranger
from slimkit.core.scoring.formula import CONTEST_BASELINE, FIGURES, SHARE_OF_BASELINE, Figures, score
from slimkit.core.scoring.measured import Measured, hashes_of
from slimkit.core.scoring.outside import FROM_OUTSIDE, time_own
from slimkit.core.scoring.report import Baseline, ScoreReport
from slimkit.core.strangers.convention import is_foreign

log = logging.getLogger("slimkit")


@checked
def run_score(options: ScoreOptions, progress: Progress = silent) -> ScoreReport:
    """Measure the model, and what is not given of its baseline, and write the score to `options.output`.

    Raises UsageError for a figure that can't be divided by, FolderError where the output exists, and what reading the
    model and the data raises.
    """
    report, class_names = score_model(options, None, progress)
    if options.details:
        write_details(report.accuracy.answers, class_names, options.details)
    write_atomically(options.output, json.dumps(report.to_dict(), indent=2) + "\n")
    return report


def score_model(
    options: ScoreOptions, known: Baseline | None, progress: Progress, *, from_outside: bool = False
) -> tuple[ScoreReport, tuple[str, ...]]:
    """The score of `options.model`, and the classes of its logits. known: the baseline, where it is measured already.

    from_outside: time it, with a baseline that is known, as a stranger's model is timed.
    Raises as `run_score`.
    """
    given = {} if known else given_figures(options)
    measured = _measure_any(options, given, known, progress, from_outside)
    baseline = known or baseline_of(given, measured)
    minimum = SHARE_OF_BASELINE * baseline.figures.accuracy if options.min_accuracy is None else options.min_accuracy
    own = Figures(measured.size, measured.latency.mean, measured.accuracy.top1)
    report = ScoreReport(
        model=options.model,
        data=measured.data,
        figures=own,
        baseline=baseline,
        score=score(own, baseline.figures),
        accuracy=measured.accuracy,
        latency=measured.latency,
        latency_alone=measured.latency_alone,
        min_accuracy=minimum,
        changed_code=measured.changed_code,
        remarks=measured.remarks,
        environment=describe_environment(),
        sha256=measured.sha256,
        options=plain_options(options),
        walls=measured.walls,
    )
    if report.degenerate:
        log.warning("%s is degenerate: %.2f %% accuracy, under %.2f %%.", options.model, own.accuracy, minimum)
    return report, measured.class_names


def _measure_any(
    options: ScoreOptions, given: Mapping[str, float], known: Baseline | None, progress: Progress, from_outside: bool
) -> Measured:
    """The figures of a model of slimkit's or of a stranger's."""
    needs_baseline = known is None and len(given) < len(FIGURES)
    if is_foreign(Path(options.model)):
        return measure_stranger(options, needs_baseline, progress)
    classifier, data = open_model_and_data(options, progress=progress)
    baseline = open_baseline(options, classifier) if needs_baseline else None
    return _measure(options, classifier, baseline, data, given, progress, from_outside)


def given_figures(options: ScoreOptions) -> dict[str, float]:
    """The baseline's figures that the user gave. Raises UsageError for one that is not a number above 0."""
    check_options(options)
    values = {name: getattr(options, f"baseline_{name}") for name in FIGURES}
    return {name: value for name, value in values.items() if value is not None}


def baseline_of(given: Mapping[str, float], measured: Measured) -> Baseline:
    """The baseline by what was given and what was measured of it."""
    figures, sources = baseline_figures(given, measured.baseline, measured.origin)
    return Baseline(figures, sources, measured.baseline_accuracy, measured.baseline_latency)


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


def _measure(
    options: ScoreOptions,
    classifier: Classifier,
    baseline: Classifier | None,
    data: ImageSet,
    given: Mapping[str, float],
    progress: Progress,
    from_outside: bool,
) -> Measured:
    """The figures of the model, and those of the baseline that are not given. from_outside: without a baseline."""
    models = [classifier, baseline] if baseline else [classifier]
    images = with_test_images(
        data, [model.architecture for model in models]
    ).test  # there are some, before time is taken
    other: dict[str, float] = {}
    with materialize(classifier) as folder, materialize(baseline) if baseline else nullcontext() as other_folder:
        size = size_of(classifier, folder)
        sha256 = hashes_of(folder, weights_file(folder), images)
        if baseline and other_folder:
            other["size"] = size_of(baseline, other_folder)
        if from_outside:
            timed = _Timed(time_own(folder, images, data.preprocessing, options, progress))
        else:
            timed = _time(folder, None if "latency" in given else other_folder, options, progress)
    if timed.baseline:
        other["latency"] = timed.baseline.mean
    judged = None
    if baseline and "accuracy" not in given:
        judged = accuracy_of(options, baseline, data, images, progress)
        other["accuracy"] = judged.top1
    return Measured(
        data=data.name,
        class_names=classifier.architecture.class_names,
        size=size,
        sha256=sha256,
        accuracy=accuracy_of(options, classifier, data, images, progress),
        latency=timed.own,
        latency_alone=timed.alone,
        changed_code=changed_code(classifier.folder) if classifier.folder else (),
        remarks=(FROM_OUTSIDE,) if from_outside else (),
        baseline=other,
        baseline_accuracy=judged,
        baseline_latency=timed.baseline,
        origin=f"measured: {baseline.folder or options.baseline}" if baseline else None,
    )


@dataclass(frozen=True)
class _Timed:
    """The latencies of a model."""

    own: Latency
    alone: Latency | None = None  # on one thread
    baseline: Latency | None = None


def _time(folder: Path, baseline: Path | None, options: ScoreOptions, progress: Progress) -> _Timed:
    """In turn: the model in `folder`, the `baseline` if there is one, and the model on one thread."""
    others = [Target(baseline)] if baseline else []
    alone = [Target(folder, threads=1)] if torch.get_num_threads() > 1 else []
    own, *rest = measure_latencies(
        [Target(folder), *others, *alone], runs=options.runs, threads=options.threads, progress=progress
    )
    return _Timed(own, rest[-1] if alone else own, rest[0] if baseline else None)
