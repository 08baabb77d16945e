"""Budgets: how much has to go, found by search, so that the network keeps to what the user can spend."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

from slimkit.core.errors import MissedError, UsageError
from slimkit.core.progress import Progress, silent
from slimkit.core.pruning.cost.shapes import Widths

Kind = Literal["rate", "macs", "parameters", "latency", "max_drop"]
Chosen = tuple[Tensor, ...]  # the channels that each group loses: int64
T = TypeVar("T")

MOST = 0.99  # the highest severity that is searched
HALVINGS = 24  # of the severity, for costs that are known at once
TRIALS = 6  # halvings where each one has to be cut, repaired and evaluated
TIMINGS = 6  # networks that are timed for a latency budget
MARGIN = 0.98  # of a latency budget is aimed at: two measurements of one network differ by a percent or two
CLOSE = 0.95  # of it is near enough
UNITS = {"": 1.0, "ms": 1.0, "s": 1000.0, "us": 0.001}  # in ms


@dataclass(frozen=True)
class Budget:
    """What the cut network may cost."""

    kind: Kind
    amount: float  # a share of the channels to lose, MACs, parameters, ms, or points of top-1 accuracy

    def __str__(self) -> str:
        return f"{self.kind.replace('_', ' ')} {self.amount:.6g}" + {"latency": " ms", "max_drop": " points"}.get(
            self.kind, ""
        )


def parse_latency(text: str) -> float:
    """ "4ms", "4", "0.004 s" or "4000us" in ms. Raises UsageError."""
    match = re.fullmatch(r"([0-9.]+(?:e[-+]?[0-9]+)?)\s*(us|ms|s|)", text.strip().lower())
    try:
        amount = float(match[1]) * UNITS[match[2]] if match else 0.0
    except ValueError:  # such as 1.2.3
        amount = 0.0
    if amount <= 0:
        raise UsageError(f"--latency {text} is no time.", "Give milliseconds, such as 4ms.")
    return amount


def absolute(name: str, given: float, whole: int) -> float:
    """A budget of MACs or parameters as a number: up to 1 it is the share to keep of `whole`. Raises UsageError."""
    if not 0 < given < float("inf"):
        raise UsageError(f"--{name} {given:g} is no budget.", "Give the share to keep, such as 0.5, or a number: 75e6.")
    amount = given * whole if given <= 1 else given
    if amount >= whole:
        raise UsageError(
            f"--{name} {given:g} takes nothing away: the network has {whole:,}.", "Give less, such as 0.5 of it."
        )
    return amount


def fit_severity(
    choose: Callable[[float], Chosen], cost: Callable[[Chosen], float], budget: float, *, what: str
) -> tuple[Chosen, Chosen]:
    """The least cut whose cost is within `budget`, and the next smaller cut, which is not; by bisection.

    choose: the channels that go at a severity from 0 to MOST; the more severe, the fewer are left.
    cost: what the network costs without them.
    what: of what the costs are, for the error. Raises MissedError that names the feasible range.
    """
    within, beyond = MOST, 0.0
    least = cost(choose(within))
    if least > budget:
        raise missed(what, budget, least, cost(choose(0.0)))
    for _ in range(HALVINGS):
        middle = (within + beyond) / 2
        if cost(choose(middle)) <= budget:
            within = middle
        else:
            beyond = middle
    return choose(within), choose(beyond)


def spend_rest(within: Chosen, beyond: Chosen, cost: Callable[[Chosen], float], budget: float) -> Chosen:
    """Give single groups what the next smaller cut leaves them, as far as the budget goes: the dearest group first.

    Widths move in steps, and groups of one width move together, so that the cut within the budget may be well below it.
    """
    chosen, base = within, cost(within)
    prices = [cost(_with(within, i, lost)) - base for i, lost in enumerate(beyond)]
    for index in sorted(range(len(prices)), key=prices.__getitem__, reverse=True):
        tried = _with(chosen, index, beyond[index])
        if cost(tried) <= budget:
            chosen = tried
    return chosen


def _with(chosen: Chosen, index: int, lost: Tensor) -> Chosen:
    return (*chosen[:index], lost, *chosen[index + 1 :])


def fit_accuracy(
    choose: Callable[[float], Chosen],
    try_out: Callable[[Chosen], tuple[T | None, float]],
    wanted: float,
    progress: Progress = silent,
) -> T:
    """The most severe cut that was found to keep an accuracy of `wanted` %, by bisection over TRIALS networks.

    try_out: cuts, repairs and evaluates; gives whatever the caller needs of the network (None: nothing was cut), and
        its accuracy in %.
    Raises MissedError where none of them keeps it.
    """
    best: T | None = None
    within, beyond, reached = 0.0, MOST, 0.0
    with progress("search for the accuracy", TRIALS) as advance:
        for _ in range(TRIALS):
            middle = (within + beyond) / 2
            made, accuracy = try_out(choose(middle))
            if accuracy >= wanted:
                within, best = middle, made
            else:
                beyond, reached = middle, max(reached, accuracy)
            advance(1)
    if best is None:
        raise MissedError(
            f"The accuracy of {wanted:.2f} % was not kept: the least cut that was tried, {beyond:.1%} of the channels, "
            f"left {reached:.2f} %. Nothing was written.",
            "Allow a larger --max-drop, or give --finetune-epochs.",
        )
    return best


@dataclass(frozen=True)
class Point:
    """A network on the way from the largest to the smallest."""

    widths: Widths
    ms: float  # predicted


@dataclass(frozen=True)
class Timed:
    """A point that was measured."""

    index: int
    predicted: float  # ms
    measured: float  # ms


def fit_latency(points: Sequence[Point], measure: Callable[[Point], float], budget: float) -> Point:
    """The largest network of `points`, from large to small, that takes at most `budget` ms when it is measured.

    A network takes its predicted ms, times some factor, and the time of whatever no width changes. So the next one to
    be measured is where the line through the measured networks on both sides of the budget meets it.
    Raises UsageError where the uncut network keeps to the budget, MissedError with the feasible range where none does.
    """
    slow = Timed(0, points[0].ms, measure(points[0]))
    if slow.measured <= budget:
        raise UsageError(f"The uncut network takes {slow.measured:.3g} ms already.", "Give less than that.")
    fast = Timed(len(points) - 1, points[-1].ms, measure(points[-1]))
    if fast.measured > budget:
        raise missed("ms", budget, fast.measured, slow.measured)
    for _ in range(TIMINGS):
        if fast.index - slow.index < 2 or fast.measured >= CLOSE * budget:
            break
        share = (MARGIN * budget - fast.measured) / (slow.measured - fast.measured)
        aim = fast.predicted + max(0.0, share) * (slow.predicted - fast.predicted)
        index = next(i for i, point in enumerate(points) if point.ms <= aim or i == fast.index)
        index = min(max(index, slow.index + 1), fast.index - 1)
        timed = Timed(index, points[index].ms, measure(points[index]))
        slow, fast = (slow, timed) if timed.measured <= MARGIN * budget else (timed, fast)
    return points[fast.index]


def missed(what: str, budget: float, smallest: float, largest: float, reached: float | None = None) -> MissedError:
    """The error for a budget that was missed."""
    return MissedError(
        f"A budget of {budget:,.6g} {what} was missed: {smallest if reached is None else reached:,.6g} were reached. "
        f"From the smallest to the largest network there are {smallest:,.6g} to {largest:,.6g} {what}. "
        "Nothing was written.",
        f"Give a budget of {smallest:,.6g} {what} or more.",
    )
