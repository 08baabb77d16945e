"""Running trials until there are enough of them: the common stages once, then a recipe for each trial."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from slimkit.core.data import decoded_once
from slimkit.core.errors import FolderError, MissedError, SlimkitError, first_line
from slimkit.core.files import require_folder, write_atomically
from slimkit.core.folder import recorded_accuracy, weights_file
from slimkit.core.measure.latency import Target, measure_latencies
from slimkit.core.measure.size import size_mb
from slimkit.core.options import ScoreOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.recipe import Recipe, run_stages
from slimkit.core.scoring.formula import Figures
from slimkit.core.tune.locks import locked
from slimkit.core.tune.picture import draw_trials
from slimkit.core.tune.space import SEARCHED, read_space
from slimkit.core.tune.study import LOCK, Claim, Study, Trial

log = logging.getLogger("slimkit")


@dataclass(frozen=True)
class TuneReport:
    """All trials, of this process and of others, and where they are told."""

    trials: tuple[Trial, ...]
    file: Path  # JSON
    picture: Path  # PNG

    @property
    def best(self) -> tuple[Trial, ...]:
        """The Pareto set: the trials that no other beats, the most accurate first."""
        best = [(trial.figures.accuracy, trial) for trial in self.trials if trial.best and trial.figures]
        return tuple(trial for _, trial in sorted(best, key=lambda pair: -pair[0]))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"best": [trial.number for trial in self.best], "trials": [asdict(trial) for trial in self.trials]}


@decoded_once()
def run_tune(
    settings: Mapping[str, Any],
    output: Path,
    *,
    trials: int,
    storage: str | None = None,
    seed: int = 0,
    source: str = "the recipe",
    progress: Progress = silent,
) -> TuneReport:
    """Run the recipe `settings` with the values that Optuna chooses for its `search` section, `trials` times in all.

    Each trial is run in a folder in `output`, and judged by the accuracy on held-out training images, the latency and
    the size of what quantize makes of it; the test split is left alone. One that fails is recorded with its reason.
    What was stopped is gone on with. Several processes with the same `storage` (an URL that Optuna takes; None: SQLite
    in `output`) share the trials. Raises UsageError, MissedError where all trials failed, and what the stages raise
    that are common to all.
    """
    space = read_space(settings, source)
    _require_place(output)
    study = Study(space, output, storage or f"sqlite:///{output / 'study.db'}", seed)
    shared = output / "common"
    with locked(output / "common.lock"):
        first = {dimension.name: dimension.ends[0] for dimension in space.dimensions}
        known = run_stages(space.recipe(first, shared, shared), space.common, progress=progress)
    known = {name: known[name] for name in space.common}
    while True:
        with study.next_claim(trials) as claim:
            if claim is None:
                return _report(study, output)
            log.info("trial %d of %d: %s", claim.number + 1, trials, _shown(claim.values))
            _run_trial(study, claim, space.recipe(claim.values, claim.folder, shared), known, progress)


def _run_trial(study: Study, claim: Claim, recipe: Recipe, known: Mapping[str, Any], progress: Progress) -> None:
    """Let the study know the figures of a trial, or why there are none. An OSError ends all: the next would have it."""
    try:
        run_stages(recipe, SEARCHED, known=known, progress=progress)
        figures = _measure(recipe, claim.folder.parent / "latency.lock", progress)
    except OSError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, SlimkitError) else f"{type(error).__name__}: {first_line(error)}"
        study.fail(claim, reason)
        log.warning("Trial %d failed: %s", claim.number, reason)
    else:
        study.complete(claim, figures)
        log.info("trial %d: %.2f %%, %.3f ms, %.3f MB", claim.number, figures.accuracy, figures.latency, figures.size)


def _measure(recipe: Recipe, lock: Path, progress: Progress) -> Figures:
    """The figures of what quantize made. One process at a time measures a latency; others may compute meanwhile."""
    options, scoring = recipe.stages["quantize"], recipe.stages["score"]
    assert isinstance(scoring, ScoreOptions)  # the section called score
    accuracy = recorded_accuracy(options.output)
    threads = options.threads or torch.get_num_threads()
    with locked(lock):
        (latency,) = measure_latencies([Target(options.output)], runs=scoring.runs, threads=threads, progress=progress)
    return Figures(size_mb(weights_file(options.output)), latency.median, accuracy)


def _shown(values: Mapping[str, object]) -> str:
    texts = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values.values())
    return ", ".join(map(" ".join, zip(values, texts, strict=True)))


def _require_place(output: Path) -> None:
    """Raise FolderError where `output` holds something else than a study."""
    require_folder(output, force=True)
    if output.exists() and any(output.iterdir()) and not (output / LOCK).exists():
        raise FolderError(f"{output} exists already, and holds no study.", "Give another -o/--output.")


def _report(study: Study, output: Path) -> TuneReport:
    """Write what has become of all trials. Raises MissedError where each of them failed."""
    report = TuneReport(study.trials(), output / "tune.json", output / "tune.png")
    write_atomically(report.picture, draw_trials(report.trials))
    write_atomically(report.file, json.dumps(report.to_dict(), indent=2) + "\n")
    if all(trial.state == "failed" for trial in report.trials):
        raise MissedError(
            f"All {len(report.trials)} trials failed, the last one so: {report.trials[-1].reason}",
            f"{report.file} has the reason of each; correct the recipe, and give another -o/--output.",
        )
    return report
