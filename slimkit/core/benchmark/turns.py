"""The schedule: processes that are started, warmed up, take turns, and are started anew.

Two runtimes in one process disturb each other, since the idle threads of one spin while the other computes; a machine
that grows slower within a measurement favours whoever came first; and a process keeps for its life where its memory
lies. So each candidate has a process of its own, laps go there and back over all of them (A B B A), and all of them are
started anew several times.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from slimkit.core.benchmark.candidates import Candidate
from slimkit.core.benchmark.statistics import LAP, Estimate, Turns, time_ratio, typical_time
from slimkit.core.measure.latency import PAUSE, ROUND_WARMUP, round_order
from slimkit.core.measure.timed_process import Timed
from slimkit.core.progress import Advance, Progress

TURN = 100.0  # ms of samples at least
LAPS = 5  # there and back, at least, in each start


@dataclass(frozen=True)
class Plan:
    """How long it is measured."""

    batch_size: int
    restarts: int  # after the first start, at least
    seconds: float  # of samples of each candidate, after which it ends in any case
    width: float  # of the intervals, as a share of the value, at which it ends before

    @property
    def share(self) -> float:
        """The seconds of one start."""
        return self.seconds / (self.restarts + 1)


@dataclass(frozen=True)
class Start:
    """What one process of a candidate gave in its life."""

    load_ms: float  # reading the network into its runtime, which is imported already; with it, timed from outside
    first_call_ms: float
    settled: bool  # it got no faster any more before it was timed
    turns: Turns  # the durations of each, in ms; the second goes back where the first came from, and so on
    peak_memory: float  # MB: runtime, network and images

    @property
    def seconds(self) -> float:
        """Of samples."""
        return sum(map(sum, self.turns)) / 1e3


def reference_of(candidates: Sequence[Candidate]) -> int:
    """The place of the one that the others are compared with: the baseline, else the first."""
    return next((i for i, each in enumerate(candidates) if each.model.role == "baseline"), 0)


def take_turns(candidates: Sequence[Candidate], plan: Plan, progress: Progress) -> tuple[tuple[Start, ...], ...]:
    """The starts of each candidate: as many of each.

    At least 1 + `plan.restarts`, until every ratio is known to `plan.width`, or every candidate was timed for
    `plan.seconds`. Raises ModelError when one can't be loaded or run.
    """
    starts: list[list[Start]] = []
    with progress("time (ms of samples)", round(1e3 * plan.seconds * len(candidates))) as advance:
        while len(starts) <= plan.restarts or not _is_enough(candidates, starts, plan):
            starts.append(_one_start(candidates, plan, len(starts), advance))
    return tuple(zip(*starts, strict=True))


def judged(candidates: Sequence[Candidate], turns: Sequence[Sequence[Turns]]) -> list[Estimate | None]:
    """The ratio of each candidate to the reference, by its turns [candidate][start]; None for that one itself."""
    reference = reference_of(candidates)
    return [None if i == reference else time_ratio(own, turns[reference]) for i, own in enumerate(turns)]


def _is_enough(candidates: Sequence[Candidate], starts: list[list[Start]], plan: Plan) -> bool:
    if min(sum(start.seconds for start in own) for own in zip(*starts, strict=True)) >= plan.seconds:
        return True
    return _is_precise(candidates, [[start.turns for start in own] for own in zip(*starts, strict=True)], plan)


def _is_precise(candidates: Sequence[Candidate], turns: Sequence[Sequence[Turns]], plan: Plan) -> bool:
    """Whether every ratio is known well enough; of a candidate alone, its time."""
    estimates = [each for each in judged(candidates, turns) if each] or [typical_time(turns[0])]
    return all(each.width <= plan.width for each in estimates)


def _one_start(candidates: Sequence[Candidate], plan: Plan, number: int, advance: Advance) -> list[Start]:
    """Start a process of each, one after the other; then laps until they agree, or the share of this start is over."""
    order = round_order(len(candidates), number)
    with ExitStack() as stack:
        awake: dict[int, tuple[Timed, dict[str, Any]]] = {}
        for place in order:
            each = candidates[place]
            process = stack.enter_context(each.start())
            awake[place] = process, process.answer() | process.ask("warm_up")
            if number == 0:
                process.ask("answer", file=str(each.logits))
        turns = _laps(candidates, [awake[place][0] for place in range(len(candidates))], plan, number, advance)
        return [
            Start(**awake[place][1], **awake[place][0].ask("peak_memory"), turns=own) for place, own in enumerate(turns)
        ]


def _laps(
    candidates: Sequence[Candidate], processes: Sequence[Timed], plan: Plan, number: int, advance: Advance
) -> list[list[list[float]]]:
    """The turns of each process; every other start begins with the last one, so that none is always the first."""
    turns: list[list[list[float]]] = [[] for _ in processes]
    while True:
        for way in (number, number + 1):
            for place in round_order(len(processes), way):
                time.sleep(PAUSE)
                samples = processes[place].ask("time_turn", warmup=ROUND_WARMUP, duration=TURN)["samples"]
                turns[place].append(samples)
                advance(round(sum(samples)))
        is_over = min(sum(map(sum, own)) for own in turns) >= 1e3 * plan.share
        if len(turns[0]) >= LAP * LAPS and (is_over or _is_precise(candidates, [[own] for own in turns], plan)):
            return turns
