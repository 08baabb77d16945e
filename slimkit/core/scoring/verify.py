"""Measuring again what a results.json says, and telling which of its figures hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimkit.core.errors import DataError, UsageError
from slimkit.core.options import ScoreOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.run import checked
from slimkit.core.scoring.formula import Figures, score
from slimkit.core.scoring.report import ScoreReport
from slimkit.core.scoring.run import score_model
from slimkit.core.typed import FieldError, parse_options

HINT = "Name the results.json of a `slimkit score` of this version."
ROUNDING = 1e-6
OTHER_CPU = 0.005  # of the images may be answered otherwise on another CPU


@dataclass(frozen=True)
class Check:
    """One figure, as it was recorded and as it was measured again."""

    figure: str
    recorded: object
    measured: object
    holds: bool
    by: str  # what is asked of it


@dataclass(frozen=True)
class Verification:
    """All figures of a results.json."""

    file: Path
    checks: tuple[Check, ...]

    @property
    def broken(self) -> tuple[str, ...]:
        """The figures that do not hold."""
        return tuple(check.figure for check in self.checks if not check.holds)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"file": str(self.file), "checks": [vars(check) for check in self.checks], "broken": list(self.broken)}


@checked
def run_verify(options: ScoreOptions, progress: Progress = silent) -> Verification:
    """Measure again what `options.verify` was measured on, by the options that it holds.

    Raises UsageError where that is no results.json of one model, and what scoring raises.
    """
    assert options.verify is not None  # the caller's choice
    recorded = _read(options.verify)
    try:
        own = parse_options(ScoreOptions, recorded["options"], f"{options.verify}: options")
        report, _ = score_model(own, None, progress)
        return Verification(options.verify, tuple(checks_of(recorded, report)))
    except FieldError as error:
        raise UsageError(f"{error}.", HINT) from None
    except (KeyError, TypeError) as error:
        raise UsageError(f"{options.verify} lacks or garbles a field: {error}.", HINT) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}.", HINT) from None
    if not isinstance(recorded, dict) or not isinstance(recorded.get("options"), dict):
        raise UsageError(f"{file} does not say how it was measured.", HINT)
    return recorded


def checks_of(recorded: dict[str, Any], report: ScoreReport) -> list[Check]:
    """Every figure of a results.json beside what was measured again."""
    same = [
        Check(
            f"sha256 of the {name}",
            recorded["sha256"].get(name),
            measured,
            recorded["sha256"].get(name) == measured,
            "equal",
        )
        for name, measured in report.sha256.items()
    ]
    return [
        *same,
        _equal("size (MB)", recorded["model_size"], report.figures.size),
        _accuracy(recorded, report),
        _latency(
            "latency (ms)",
            recorded["latency_confidence"],
            report.latency.confidence,
            recorded["latency"],
            report.latency.mean,
        ),
        _formula(recorded),
    ]


def _equal(figure: str, recorded: float, measured: float) -> Check:
    return Check(figure, recorded, measured, abs(recorded - measured) <= ROUNDING * abs(measured), "equal")


def _accuracy(recorded: dict[str, Any], report: ScoreReport) -> Check:
    """The same weights answer the same images alike, but for ties that another CPU rounds otherwise."""
    correct, images = int(recorded["correct"]), recorded["images"]
    says_so = abs(100 * correct / images - recorded["accuracy"]) <= 1e-6
    near = abs(correct - report.accuracy.correct) <= max(1, OTHER_CPU * report.accuracy.images)
    holds = says_so and images == report.accuracy.images and near
    asked = f"within {100 * OTHER_CPU:g} points or an image, as many images"
    return Check("accuracy (%)", recorded["accuracy"], report.accuracy.top1, holds, asked)


def _latency(figure: str, was: Any, now: tuple[float, float] | None, recorded: float, measured: float) -> Check:
    holds = bool(was and now) and _overlap(was, now) and was[0] <= recorded <= was[1]
    return Check(figure, recorded, measured, holds, "95 % intervals overlap")


def _formula(recorded: dict[str, Any]) -> Check:
    """That the total follows from the figures beside it."""
    baseline = recorded["baseline"]
    figures = Figures(recorded["model_size"], recorded["latency"], recorded["accuracy"])
    total = score(figures, Figures(baseline["model_size"], baseline["latency"], baseline["accuracy"])).total
    return _equal("total score, of the recorded figures", recorded["total_score"], total)


def _overlap(first: Any, second: Any) -> bool:
    return bool(first[0] <= second[1] and second[0] <= first[1])
