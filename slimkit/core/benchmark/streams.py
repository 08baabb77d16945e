"""Throughput of several processes side by side, as a service runs them: one request each, on a core of its own."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from slimkit.core.benchmark.candidates import Candidate
from slimkit.core.measure.latency import ROUND_WARMUP
from slimkit.core.measure.timed_process import Timed
from slimkit.core.progress import Progress

DURATION = 3000.0  # ms in which all compute at once


@dataclass(frozen=True)
class Streams:
    """What processes of one candidate do together."""

    count: int  # of processes, each on one thread
    throughput: float  # images per second, of all together
    median: float  # ms of a batch meanwhile


def run_streams(
    candidates: Sequence[Candidate], count: int, batch_size: int, progress: Progress
) -> tuple[Streams | None, ...]:
    """Of each candidate `count` processes at once, one candidate after the other; None of each for a single stream.

    Raises ModelError where one can't be loaded or run.
    """
    if count == 1:
        return (None,) * len(candidates)
    found = []
    with progress(f"{count} streams", len(candidates)) as advance:
        for each in candidates:
            found.append(_of_candidate(each, count, batch_size))
            advance(1)
    return tuple(found)


def _of_candidate(candidate: Candidate, count: int, batch_size: int) -> Streams:
    with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        processes = [stack.enter_context(candidate.launch(1)) for _ in range(count)]
        for process in processes:
            process.answer()
            process.ask("time_runs", warmup=1, runs=0)
        samples = list(pool.map(_time_together, processes))
    throughput = sum(1e3 * batch_size * len(own) / sum(own) for own in samples)
    return Streams(count, throughput, statistics.median(run for own in samples for run in own))


def _time_together(process: Timed) -> list[float]:
    """The ms of its runs in the time that all of them have."""
    samples: list[float] = process.ask("time_turn", warmup=ROUND_WARMUP, duration=DURATION)["samples"]
    return samples
