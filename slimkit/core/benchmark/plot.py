"""The runs as a picture: how the durations of each candidate are distributed, and how its turns went over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slimkit.core.benchmark.report import BenchmarkReport
from slimkit.core.benchmark.statistics import Turns
from slimkit.core.figures import new_figure, png_of

SLOWEST = 99.5  # % of the runs are in the picture; the slowest few would squeeze the rest


def draw_benchmark(report: BenchmarkReport, turns: Sequence[Sequence[Turns]]) -> bytes:
    """A PNG. turns: [candidate][start][turn][run], ms."""
    figure, (left, right) = new_figure(1, 2, figsize=(13, 4.5 + 0.2 * len(turns)))
    for result, starts in zip(report.candidates, turns, strict=True):
        _draw_distribution(left, starts)
        _draw_turns(right, starts, str(result))
    left.set_xlabel("ms")
    left.set_ylabel("% of the runs take no longer")
    left.set_xscale("log")
    right.set_xlabel("turn, in order; each line is one start of the processes")
    right.set_ylabel("median of the turn, ms")
    right.set_yscale("log")
    figure.legend(loc="outside lower center", ncols=2)
    return png_of(figure)


def _draw_distribution(axis: Any, starts: Sequence[Turns]) -> None:
    samples = np.sort(np.concatenate([run for turns in starts for run in turns]))
    shares = 100 * np.arange(1, len(samples) + 1) / len(samples)
    axis.plot(samples[shares <= SLOWEST], shares[shares <= SLOWEST])


def _draw_turns(axis: Any, starts: Sequence[Turns], label: str) -> None:
    place, colour = 0, None
    for turns in starts:
        medians = [float(np.median(turn)) for turn in turns]
        (line,) = axis.plot(range(place, place + len(medians)), medians, ".-", color=colour, label=label)
        place, colour, label = place + len(medians), line.get_color(), "_"  # a name with _ stays out of the legend
