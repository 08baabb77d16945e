"""Narrowing a network step by step: where a budget of ms or MACs is spent, by what each step loses and saves."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slimkit.core.pruning.cost.shapes import Widths

MOVES = 16  # steps, about, in which a group is narrowed


def narrow_down(
    full: Widths,
    steps: Sequence[int],
    *,
    max_rate: float,
    lost: Callable[[int, int], float],
    saved: Callable[[int, Widths, int], float],
) -> tuple[Widths, ...]:
    """Narrow the groups one step at a time, each time the one that loses the least for what it saves.

    steps: what each group's width is a multiple of; it goes down by about a MOVES-th of itself at a time.
    max_rate: the share of its channels that a group loses at most.
    lost(group, width): what is lost by the time that a group is that narrow, in one unit for all groups.
    saved(group, widths, narrower): ms or MACs that it takes less.
    Gives the widths of every network on the way, the uncut one first.
    """
    strides = [step * max(1, width // (MOVES * step)) for step, width in zip(steps, full, strict=True)]
    least = [max(stride, width - int(max_rate * width)) for stride, width in zip(strides, full, strict=True)]
    path = [full]
    while True:
        widths = path[-1]
        moves = [(g, _next(w, strides[g])) for g, w in enumerate(widths) if _next(w, strides[g]) >= least[g]]
        if not moves:
            return tuple(path)
        group, width = min(
            moves,
            key=lambda move: (
                (lost(*move) - lost(move[0], widths[move[0]])) / max(saved(move[0], widths, move[1]), 1e-9)
            ),
        )
        path.append((*widths[:group], width, *widths[group + 1 :]))


def _next(width: int, step: int) -> int:
    """The next smaller multiple of `step`."""
    return (width - 1) // step * step


def score_lost(scores: Sequence[Tensor], *, one_unit: bool) -> Callable[[int, int], float]:
    """lost(group, width): the scores (float [full width] for each group) that are gone when so many channels are left.

    one_unit: whether the scores of all groups are in one unit; otherwise those of each are relative to their mean.
    """
    sums = [
        torch.cat([torch.zeros(1), (values if one_unit else values / values.mean()).sort().values.cumsum(0)]).tolist()
        for values in scores
    ]
    return lambda group, width: float(sums[group][len(sums[group]) - 1 - width])
