"""The trials as a picture: what accuracy costs in time, and in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slimkit.core.figures import new_figure, png_of
from slimkit.core.tune.study import Trial

AXES = (("latency", "latency, ms (median, batch of one)"), ("size", "size, MB"))


def draw_trials(trials: Sequence[Trial]) -> bytes:
    """A PNG; the trials that no other beats have their numbers."""
    figure, axes = new_figure(1, 2, figsize=(13, 5), sharey=True)
    for axis, (figure_name, label) in zip(axes, AXES, strict=True):
        for best, colour, name in ((False, "0.7", "beaten by another"), (True, "tab:blue", "best: no other beats it")):
            _draw(axis, [trial for trial in trials if trial.best == best], figure_name, colour, name)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on held-out training images, %")
    axes[0].legend()
    return png_of(figure)


def _draw(axis: Any, trials: Sequence[Trial], figure_name: str, colour: str, label: str) -> None:
    points = [(getattr(t.figures, figure_name), t.figures.accuracy, t) for t in trials if t.figures]
    axis.scatter([x for x, _, _ in points], [y for _, y, _ in points], color=colour, label=label)
    for x, y, trial in points:
        if trial.best:
            axis.annotate(str(trial.number), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=9)
