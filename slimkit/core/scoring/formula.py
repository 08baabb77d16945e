"""The contest's score: size, latency and accuracy against a baseline.

    size_score     = baseline size / size            MB of 2^20 bytes, of the weights file on disk
    latency_score  = baseline latency / latency      ms, mean of the runs at batch 1
    accuracy_score = accuracy / baseline accuracy    % top-1 on the whole test split
    total_score    = 0.3 size_score + 0.3 latency_score + 0.4 accuracy_score

The formula has no floor, so the smallest network wins it whatever it answers. Hence a network whose accuracy is under
a minimum is called degenerate, and should rank below all that are not.
"""

from __future__ import annotations

from dataclasses import dataclass

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
