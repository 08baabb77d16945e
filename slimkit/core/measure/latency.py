"""Latency: networks timed in turn, each in a process of its own.

Two runtimes in one process disturb each other, since the idle threads of one spin while the other computes; and a
machine that grows slower within a measurement favours whoever came first. So each network has its own process
(`worker.py`), and rounds of runs go from one to the next and back.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slimkit.core.errors import UsageError
from slimkit.core.load import OutsideLoad
from slimkit.core.measure.timed_process import start_process
from slimkit.core.progress import Progress, silent

log = logging.getLogger("slimkit")

ROUNDS = 10
ROUND_WARMUP = 2  # uncounted runs at the head of each round: the pause and the other network have cooled the caches
PAUSE = 0.05  # seconds between rounds, in which the other network's threads stop spinning
NOISY = 0.1  # of the mean: a confidence interval that reaches farther gets a warning
RESAMPLES = 2000  # of the bootstrap
BUSY = 0.2  # cores: more than that, kept busy by other programs meanwhile, gets a warning


@dataclass(frozen=True)
class Target:
    """Something to be timed on the CPU: a model folder (eager, by slimkit's own code) or an .onnx file."""

    path: Path
    threads: int | None = None  # None: as many as the others

    @property
    def backend(self) -> str:
        """What it is run in."""
        return "onnxruntime" if self.path.suffix == ".onnx" else "torch"


@dataclass(frozen=True)
class Latency:
    """How long one batch takes, in ms."""

    mean: float
    median: float
    p10: float
    p90: float
    confidence: tuple[float, float] | None  # 95 % interval of the mean, see `bootstrap_interval`; None for one round
    median_confidence: tuple[float, float] | None  # and of the median
    runs: int
    batch_size: int
    threads: int
    samples: tuple[float, ...] = field(repr=False)  # every run, in the order in which they ran

    @property
    def uncertainty(self) -> float | None:
        """Half the confidence interval as a share of the mean; None for a single round."""
        return (self.confidence[1] - self.confidence[0]) / 2 / self.mean if self.confidence else None

    def to_dict(self) -> dict[str, Any]:
        """All but the samples, as plain JSON values."""
        values = {name: value for name, value in vars(self).items() if name != "samples"}
        intervals = {name: values[name] and list(values[name]) for name in ("confidence", "median_confidence")}
        return values | intervals


def measure_latencies(
    targets: Sequence[Target],
    *,
    runs: int = 100,
    batch_size: int = 1,
    threads: int | None = None,
    warmup: int = 10,
    progress: Progress = silent,
) -> tuple[Latency, ...]:
    """Time every target `runs` times, in alternating rounds; `threads` None takes as many as torch uses here.

    Raises UsageError for counts below 1, and ModelError when a target can't be loaded or run.
    """
    threads = torch.get_num_threads() if threads is None else threads
    for name, value in (("runs", runs), ("batch size", batch_size), ("threads", threads)):
        if value < 1:
            raise UsageError(f"The number of {name} is {value}.", "Give a whole number of at least 1.")
    rounds: list[list[list[float]]] = [[] for _ in targets]
    with ExitStack() as stack, progress("time runs", runs * len(targets)) as advance:
        load = OutsideLoad()
        workers = [
            stack.enter_context(start_process(target.path, target.backend, target.threads or threads, batch_size))
            for target in targets
        ]
        for each in workers:
            each.answer()  # all have loaded before the first is timed
        for each in workers:
            each.ask("time_runs", warmup=warmup, runs=0)
        for index, share in enumerate(split_runs(runs)):
            for place in round_order(len(targets), index):
                time.sleep(PAUSE)
                answer = workers[place].ask("time_runs", warmup=ROUND_WARMUP, runs=share)
                rounds[place].append(answer["samples"])
                advance(share)
        _warn_of_load(load.cores(each.process.pid for each in workers))
    latencies = tuple(
        summarize(samples, batch_size=batch_size, threads=target.threads or threads)
        for target, samples in zip(targets, rounds, strict=True)
    )
    for target, latency in zip(targets, latencies, strict=True):
        _warn_of_noise(target, latency)
    return latencies


def _warn_of_load(cores: float | None) -> None:
    if cores is not None and cores > BUSY:
        log.warning("Other programs kept %.1f cores busy while latencies were measured: they read high.", cores)


def _warn_of_noise(target: Target, latency: Latency) -> None:
    if latency.uncertainty is not None and latency.uncertainty > NOISY:
        log.warning(
            "%s: the mean latency is known to ±%.0f %% only (median %.3g ms): is something else computing here?",
            target.path.name,
            100 * latency.uncertainty,
            latency.median,
        )


def split_runs(runs: int) -> tuple[int, ...]:
    """`runs` in up to ROUNDS rounds of nearly equal length."""
    count = min(ROUNDS, runs)
    return tuple(runs // count + (index < runs % count) for index in range(count))


def round_order(targets: int, index: int) -> range:
    """There and back again: a steady drift of the machine then hits all alike."""
    return range(targets) if index % 2 == 0 else range(targets - 1, -1, -1)


def summarize(rounds: Sequence[Sequence[float]], *, batch_size: int, threads: int) -> Latency:
    """The figures of rounds of samples in ms."""
    samples = tuple(sample for part in rounds for sample in part)
    return Latency(
        mean=statistics.fmean(samples),
        median=statistics.median(samples),
        p10=float(np.percentile(samples, 10)),
        p90=float(np.percentile(samples, 90)),
        confidence=bootstrap_interval(rounds, lambda drawn: np.nanmean(drawn, axis=1)),
        median_confidence=bootstrap_interval(rounds, lambda drawn: np.nanmedian(drawn, axis=1)),
        runs=len(samples),
        batch_size=batch_size,
        threads=threads,
        samples=samples,
    )


def bootstrap_interval(
    rounds: Sequence[Sequence[float]], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[float, float] | None:
    """The 95 % interval of a statistic of all samples, by the percentiles of a bootstrap; None for a single round.

    Runs that follow each other share the machine's mood, so whole rounds are drawn (Efron and Tibshirani 1993, An
    Introduction to the Bootstrap, chapter 8.6). It can't leave the range of what was measured.
    statistic: [resamples, samples] -> [resamples], where NaN is no sample.
    """
    if len(rounds) < 2:
        return None
    table = np.full((len(rounds), max(len(part) for part in rounds)), np.nan)  # rounds may differ in length
    for row, part in zip(table, rounds, strict=True):
        row[: len(part)] = part
    drawn = np.random.default_rng(0).integers(len(table), size=(RESAMPLES, len(table)))
    values = statistic(table[drawn].reshape(RESAMPLES, -1))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
