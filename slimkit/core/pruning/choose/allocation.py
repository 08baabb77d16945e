"""From the scores of channels to those that are cut: how much of each group goes at a given severity."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from slimkit.core.errors import UsageError
from slimkit.core.pruning.channels.groups import Group

Scope = Literal["local", "global", "isomorphic"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
MAX_RATE = 0.9  # of a group's channels, whatever the scope says
MIN_WIDTH = 8  # what one vector of float32 holds: so many channels, or half of them, ranking leaves in each group


def allocate(
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    severity: float,
    *,
    scope: Scope = "local",
    max_rate: float = MAX_RATE,
    round_to: Sequence[int] | None = None,
    costs: Sequence[float] | None = None,
) -> tuple[Tensor, ...]:
    """The channels that each group loses when the share `severity` of all channels goes: sorted, int64.

    scores: of each group's channels, float [width]; the lowest go first.
    scope: what is ranked together: each group by itself (all lose the same share), all groups, or those whose layers
        are of the same kinds (Isomorphic Pruning, Fang et al. 2024, arXiv:2407.04616).
    max_rate: the share of its channels that a group loses at most where groups are ranked together.
    costs: of a channel of each group (MACs, parameters or ms, say): where groups are ranked together, those channels go
        first whose score is the least for what they cost. None: all cost alike.
    round_to: for each group, what its remaining width is made a multiple of (the nearest, and at least one of it);
        a group narrower than that stays whole.

    Raises UsageError for a severity or cap that is no share, and a scope that isn't known.
    """
    _check(severity, scope, max_rate)
    if scope == "local":
        cut = [min(int(severity * group.width + 0.5), group.width - 1) for group in groups]
        least = [1] * len(groups)
    else:
        prices = [values / cost for values, cost in zip(scores, costs or [1.0] * len(groups), strict=True)]
        kinds = [_kind(group) if scope == "isomorphic" else None for group in groups]
        cut = _rank(prices, kinds, severity, max_rate)
        least = [group.width - _most(group.width, max_rate) for group in groups]
    steps = round_to or [1] * len(groups)
    widths = [
        round_width(group.width - count, step, at_least, group.width)
        for group, count, step, at_least in zip(groups, cut, steps, least, strict=True)
    ]
    return tuple(least_important(values, len(values) - width) for values, width in zip(scores, widths, strict=True))


def least_important(scores: Tensor, count: int) -> Tensor:
    """The `count` channels with the lowest scores (float [width]): int64, in order of their number."""
    return scores.argsort(stable=True)[:count].sort().values


def round_width(wanted: int, step: int, least: int, most: int) -> int:
    """The multiple of `step` that is nearest to `wanted`, from `least` (1 or more) on; `most` where that is less."""
    nearest = (wanted + step // 2) // step
    return min(most, max(nearest, -(-least // step)) * step)


def _check(severity: float, scope: Scope, max_rate: float) -> None:
    if not 0 <= severity < 1:  # NaN fails this too
        raise UsageError(f"The pruning rate {severity:g} is not 0 < rate < 1.", "Give a share such as 0.3.")
    if not 0 < max_rate <= 1:
        raise UsageError(f"The cap {max_rate:g} is not 0 < cap <= 1.", "Give a share such as 0.9.")
    if scope not in SCOPES:
        raise UsageError(f"There is no scope called {scope}.", f"Choose one of {', '.join(SCOPES)}.")


def _kind(group: Group) -> Hashable:
    """What makes two groups comparable: the same number of layers of each type on each side."""
    return frozenset(Counter((m.layer.operation, m.side) for m in group.members).items())


def _rank(scores: Sequence[Tensor], kinds: Sequence[Hashable], severity: float, max_rate: float) -> list[int]:
    """How many channels each group loses when of each kind of groups the lowest share `severity` goes.

    No group loses more than its cap: what that keeps is cut in the other groups of the kind.
    """
    counts = [0] * len(scores)
    for kind in dict.fromkeys(kinds):
        alike = [index for index, other in enumerate(kinds) if other == kind]
        wanted = int(severity * sum(len(scores[index]) for index in alike) + 0.5)
        open_to_cut = [scores[index].sort().values[: _most(len(scores[index]), max_rate)] for index in alike]
        owners = torch.cat(
            [torch.full((len(values),), index) for index, values in zip(alike, open_to_cut, strict=True)]
        )
        for owner in owners[torch.cat(open_to_cut).argsort(stable=True)[:wanted]].tolist():
            counts[owner] += 1
    return counts


def _most(width: int, max_rate: float) -> int:
    """How many channels a group of that width may lose."""
    return min(int(max_rate * width), width - min(MIN_WIDTH, -(-width // 2)))
