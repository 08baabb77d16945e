"""The course of a training as a picture: its loss with the learning rate, and the accuracy on held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slimkit.core.figures import new_figure, png_of
from slimkit.core.training.metrics import read_metrics

PALE, STRONG, RATE = "#9ecae1", "#08519c", "#a1a1a1"


def draw_curves(metrics: Path) -> bytes:
    """A PNG of the lines that `Metrics` has written to `metrics`. Dashed: where a loss was not finite."""
    lines = read_metrics(metrics)
    figure, (left, right) = new_figure(1, 2, figsize=(11, 4))
    epochs = [line for line in lines if "held_out_accuracy" in line]
    _draw_loss(left, [line for line in lines if "learning_rate" in line], epochs)
    right.plot(*_points(epochs, "held_out_accuracy"), ".-", color=STRONG)
    right.set_ylabel("held-out accuracy, %")
    for axis in (left, right):
        axis.set_xlabel("step")
        for line in lines:
            if "back_to" in line:
                axis.axvline(line["step"], color="red", linestyle="--", linewidth=1)
    return png_of(figure)


def _draw_loss(axis: Any, steps: list[dict[str, Any]], epochs: list[dict[str, Any]]) -> None:
    rates = axis.twinx()
    rates.plot(*_points(steps, "learning_rate"), color=RATE, linewidth=1)
    rates.set_ylabel("learning rate", color=RATE)
    axis.plot(*_points(steps, "loss"), color=PALE, label="of a step")
    axis.plot(*_points(epochs, "loss"), ".-", color=STRONG, label="of an epoch")
    axis.set_ylabel("loss")
    axis.legend(loc="upper right")


def _points(lines: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    return [line["step"] for line in lines], [line[key] for line in lines]
