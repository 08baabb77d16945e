"""What a score is told by, and what results.json holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from slimkit.core.measure.accuracy import Accuracy
from slimkit.core.measure.answers import Difference, compare_answers
from slimkit.core.measure.latency import Latency
from slimkit.core.scoring.formula import Figures, Score


@dataclass(frozen=True)
class Baseline:
    """What a model is scored against."""

    figures: Figures
    sources: dict[str, str]  # for each figure: where it is from
    accuracy: Accuracy | None = None  # where it was measured
    latency: Latency | None = None  # likewise


@dataclass(frozen=True)
class ScoreReport:
    """A model's score, with all that it was computed from."""

    model: str
    data: str
    figures: Figures
    baseline: Baseline
    score: Score
    accuracy: Accuracy
    latency: Latency
    latency_alone: Latency | None  # of the model on one thread, which waits for no other; None for a stranger's
    min_accuracy: float  # %
    changed_code: tuple[str, ...]  # files in the folder that are not slimkit's own, which alone was run
    remarks: tuple[str, ...]  # what else is to be known of the folder
    environment: dict[str, Any]
    sha256: dict[str, str]  # of the weights, of the code in the folder, and of the list of images
    options: dict[str, Any]  # with which it is measured again
    walls: dict[str, str] | None = None  # of a stranger's: those around its code, "" where they hold

    @property
    def degenerate(self) -> bool:
        """Whether the accuracy is under the minimum, so that the total says nothing."""
        return self.accuracy.top1 < self.min_accuracy

    @property
    def difference(self) -> Difference | None:
        """Between the model and the baseline on the same images, where both were measured."""
        other = self.baseline.accuracy
        if other is None or other.images != self.accuracy.images:
            return None
        return compare_answers(self.accuracy.answers, other.answers)

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
            "accuracy_confidence": list(self.accuracy.confidence),
            "accuracy_top5": self.accuracy.top5,
            "calibration_error": self.accuracy.answers.calibration_error(),
            "difference": asdict(self.difference) if self.difference else None,
            "correct": self.accuracy.correct,
            "unanswered": self.accuracy.answers.unanswered,
            "images": self.accuracy.images,
            "latency_median": self.latency.median,
            "latency_p90": self.latency.p90,
            "latency_confidence": self.latency.to_dict()["confidence"],
            "latency_median_confidence": self.latency.to_dict()["median_confidence"],
            "latency_median_one_thread": self.latency_alone and self.latency_alone.median,
            "latency_samples": _rounded(self.latency),
            "runs": self.latency.runs,
            "threads": self.latency.threads,
            "baseline": self._baseline_to_dict(),
            "data": self.data,
            "changed_code": list(self.changed_code),
            "remarks": list(self.remarks),
            "walls": self.walls,
            "environment": self.environment,
            "sha256": self.sha256,
            "options": self.options,
        }

    def _baseline_to_dict(self) -> dict[str, Any]:
        figures, timed, judged = self.baseline.figures, self.baseline.latency, self.baseline.accuracy
        return {
            "model_size": figures.size,
            "latency": figures.latency,
            "accuracy": figures.accuracy,
            "latency_median": timed.median if timed else None,
            "latency_p90": timed.p90 if timed else None,
            "latency_samples": _rounded(timed) if timed else None,
            "accuracy_confidence": list(judged.confidence) if judged else None,
            "calibration_error": judged.answers.calibration_error() if judged else None,
            "sources": self.baseline.sources,
        }


def _rounded(latency: Latency) -> list[float]:
    """Every run, in ms."""
    return [round(sample, 4) for sample in latency.samples]
