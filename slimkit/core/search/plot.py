"""What a search tried, as a picture: accuracy against what was kept of the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from slimkit.core.figures import new_figure, png_of
from slimkit.core.search.record import SHOWN, Budget, Tried

MARKS = {"cut": "o", "trained": "^", "rounded": "s"}


def draw_search(tried: Sequence[Tried], budget: Budget, baseline: float, target: float) -> bytes:
    """A PNG. budget: what the shares are of; baseline, target: % of the held-out training images."""
    figure, axis = new_figure(figsize=(7, 4.5))
    for step, mark in MARKS.items():
        points = sorted((100 * each.share, each.accuracy) for each in tried if each.step == step)
        if points:
            axis.plot(*zip(*points, strict=True), mark, label=step)
    for each in tried:
        if each.bits:
            axis.annotate(f"{each.bits} bits", (100 * each.share, each.accuracy), (6, -3), textcoords="offset points")
    axis.axhline(baseline, color="gray", linewidth=1, label="baseline")
    axis.axhline(target, color="gray", linewidth=1, linestyle="--", label="asked for")
    axis.set_xlabel(f"{SHOWN[budget]} kept, % of the baseline's")
    axis.set_ylabel("held-out training images, % right")
    axis.set_xscale("log")
    axis.legend()
    return png_of(figure)
