"""Sensitivity: what each group alone would cost in accuracy, and save in ms, MACs and bytes, at several rates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from slimkit.core.errors import UsageError
from slimkit.core.graph import Graph
from slimkit.core.progress import silent
from slimkit.core.pruning.channels.groups import Grouping
from slimkit.core.pruning.choose.allocation import least_important
from slimkit.core.pruning.cost.shapes import Shapes, Widths
from slimkit.core.pruning.prune import Repair, cut_and_repair
from slimkit.core.pruning.repair.recalibrate import recalibrate
from slimkit.core.typed import FieldError, parse_dataclass

RATES = (0.1, 0.3, 0.5, 0.7)
TILT = 1e-3  # points of accuracy that a whole group is lost at least: of two that cost nothing, both lose a little


@dataclass(frozen=True)
class GroupSensitivity:
    """What one group costs and saves at one rate, all others being whole."""

    layers: tuple[str, ...]  # those that make its channels
    rate: float
    width_before: int
    width: int
    accuracy_lost: float  # points of top-1, both networks being repaired on the same images
    ms_saved: float
    macs_saved: int
    bytes_saved: int


@dataclass(frozen=True)
class Sensitivity:
    """The report on all groups, in execution order, rates within a group from the lowest."""

    model: str
    accuracy: float  # top-1 % of the uncut network
    reconstructed: bool  # whether the layers that read the channels were solved anew, or BatchNorm measured anew alone
    images: int  # that the accuracies are measured on, held out of the training data
    latency: float  # ms of the uncut network, measured
    target: str  # what it computes in: fp32, int8
    macs: int  # of the uncut network
    bytes: int
    entries: tuple[GroupSensitivity, ...]

    @property
    def repair(self) -> str:
        """What was done before the accuracies were taken, in words."""
        return "the layers that read it solved anew" if self.reconstructed else "BatchNorm measured anew"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


def measure_groups(
    grouping: Grouping,
    scores: Sequence[Tensor],
    shapes: Shapes,
    *,
    ms: Callable[[Widths], float],
    accuracy: Callable[[Graph], float],
    repair: Repair,
    rates: Sequence[float] = RATES,
) -> tuple[GroupSensitivity, ...]:
    """Cut each group alone at each rate, repair it, and take the accuracy.

    scores: of each group's channels, float [width]; ms: predicted for widths of the groups; accuracy: top-1 %.
    repair: on images; the layers that read the group are solved anew, or BatchNorm alone is measured anew, in the uncut
        network too then, so that what the images of the repair make of it is not laid to the groups.
    """
    assert repair.batches is not None
    found = []
    uncut = grouping.graph
    if not repair.reconstruct:
        network = uncut.network()
        recalibrate(network, repair.batches)
        uncut = dataclasses.replace(uncut, tensors={name: network.tensor(name) for name in uncut.tensors})
    whole, whole_ms, whole_accuracy = shapes.cost(shapes.full), ms(shapes.full), accuracy(uncut)
    silently = dataclasses.replace(repair, progress=silent)
    with repair.progress("sensitivity", len(grouping.groups) * len(rates)) as advance:
        for index, group in enumerate(grouping.groups):
            for rate in rates:
                lost = least_important(scores[index], min(int(rate * group.width + 0.5), group.width - 1))
                chosen = [lost if i == index else lost[:0] for i in range(len(grouping.groups))]
                readers = {member.layer.name for member in group.readers}
                cut = cut_and_repair(grouping, chosen, silently, only=readers)
                widths = tuple(w - len(c) for w, c in zip(shapes.full, chosen, strict=True))
                cost = shapes.cost(widths)
                found.append(
                    GroupSensitivity(
                        layers=tuple(maker.layer.name for maker in group.makers),
                        rate=rate,
                        width_before=group.width,
                        width=widths[index],
                        accuracy_lost=whole_accuracy - accuracy(cut.graph),
                        ms_saved=whole_ms - ms(widths),
                        macs_saved=whole.macs - cost.macs,
                        bytes_saved=whole.bytes - cost.bytes,
                    )
                )
                advance(1)
    return tuple(found)


def read_sensitivity(file: Path) -> Sensitivity:
    """The report that `slimkit prune --sensitivity` wrote as JSON. Raises UsageError."""
    try:
        return parse_dataclass(Sensitivity, json.loads(file.read_text(encoding="utf-8")), str(file))
    except (OSError, ValueError, FieldError) as error:
        raise UsageError(
            f"{file} is no sensitivity report: {error}.", "Make one: slimkit prune --sensitivity."
        ) from None


def accuracy_lost(report: Sensitivity, names: Sequence[str], full: Widths) -> Callable[[int, int], float]:
    """lost(group, width): the points of accuracy that a group loses by being that narrow, interpolated over its rates.

    names: the first layer of each group, by which it is found in the report. Raises UsageError for one that isn't.
    """
    curves = [_curve(report, name, width) for name, width in zip(names, full, strict=True)]
    return lambda group, width: _along(curves[group], 1 - width / full[group])


def _curve(report: Sensitivity, name: str, width: int) -> list[tuple[float, float]]:
    """(rate, points lost) from (0, 0) on; the points never fall, since what falls is the noise of few images."""
    entries = [entry for entry in report.entries if entry.layers[:1] == (name,) and entry.width_before == width]
    if not entries:
        raise UsageError(
            f"The sensitivity report has no group of {name} with {width} channels: it is of {report.model}.",
            "Make it for this very model: slimkit prune --sensitivity.",
        )
    curve = [(0.0, 0.0)]
    for entry in entries:
        rate = 1 - entry.width / width
        curve.append((rate, max(curve[-1][1], entry.accuracy_lost + TILT * rate)))
    return curve


def _along(curve: Sequence[tuple[float, float]], rate: float) -> float:
    """Linear between the points of a curve, and on in the last direction beyond them."""
    before, after = next(((a, b) for a, b in pairwise(curve) if rate <= b[0]), (curve[-2], curve[-1]))
    share = (rate - before[0]) / (after[0] - before[0]) if after[0] > before[0] else 0.0
    return before[1] + share * (after[1] - before[1])
