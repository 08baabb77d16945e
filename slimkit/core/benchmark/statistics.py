"""What can be said of durations that were taken in turns: figures with their 95 % intervals.

Runs that follow each other share the machine's mood (its clock, its caches, its other programs), so they are no
independent samples, and a bootstrap that draws single runs gives intervals that are far too narrow. It has to draw
blocks that are independent (Künsch 1989; Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 8.6).
A process keeps for its life where its memory lies, so the turns of one process are not independent either (Kalibera and
Jones 2013, Rigorous Benchmarking in Reasonable Time). Hence the blocks are the starts of the processes; where there was
one alone, its turns, and the interval then knows nothing of what another start would change.

A bootstrap of n blocks has 1 - 1/n of the variance that it should, and quantiles of the normal where those of
Student's t belong. Starts are dear, so n is small and both matter: the interval is widened by what they are short of
(after Hesterberg 2015, What Teachers Should Know About the Bootstrap, on expanded percentile intervals).

Durations are compared by their ratios, so all of it is done in their logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from slimkit.core.measure.answers import Z

Numbers = NDArray[np.float64]
Turns = Sequence[Sequence[float]]  # the durations of each turn of one process, in ms

RESAMPLES = 2000
LAP = 2  # turns: one on the way there, one on the way back


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, which a single block does not give."""

    value: float
    low: float | None
    high: float | None

    @property
    def width(self) -> float:
        """Of the interval, as a share of the value; infinite where there is none."""
        return math.inf if self.low is None or self.high is None else (self.high - self.low) / self.value

    def as_rate(self, amount: float) -> Estimate:
        """Of a duration: how often `amount` goes into it."""
        low, high = (bound and amount / bound for bound in (self.high, self.low))
        return Estimate(amount / self.value, low, high)

    def covers(self, value: float) -> bool:
        """Whether `value` can't be excluded."""
        return self.low is None or self.high is None or self.low <= value <= self.high


def time_ratio(own: Sequence[Turns], others: Sequence[Turns]) -> Estimate:
    """How long a network takes in units of another's time; both in turn, in as many starts of their processes.

    Each lap there and back compares turns that stood beside each other, so what changes slowly hits both alike, and a
    steady drift not at all. A start's ratio is the median of its laps, and the ratio the geometric mean of the starts.
    """
    return _level([lap_levels(a) - lap_levels(b) for a, b in zip(own, others, strict=True)])


def typical_time(starts: Sequence[Turns]) -> Estimate:
    """As `time_ratio`, of one network by itself, in ms."""
    return _level([lap_levels(turns) for turns in starts])


def quantile(starts: Sequence[Turns], share: float) -> Estimate:
    """The duration in ms that this share of all runs stays within."""
    return _estimate(_samples(starts), lambda drawn: math.log(np.quantile(np.concatenate(drawn), share)))


def mean_time(starts: Sequence[Turns]) -> Estimate:
    """The mean duration of all runs, in ms."""
    return _estimate(_samples(starts), lambda drawn: math.log(np.concatenate(drawn).mean()))


def lap_levels(turns: Turns) -> Numbers:
    """For each lap of one process, the mean of the logarithms of its turns' medians: [laps]."""
    medians: Numbers = np.log([np.median(turn) for turn in turns]).reshape(-1, LAP)
    return np.asarray(medians.mean(axis=1))


def _level(starts: Sequence[Numbers]) -> Estimate:
    """Of the logarithms of each start's laps."""
    if len(starts) > 1:
        return _estimate([np.median(laps) for laps in starts], np.mean)
    return _estimate(list(starts[0]), np.median)


def _samples(starts: Sequence[Turns]) -> list[Numbers]:
    """The durations in ms of each block."""
    if len(starts) > 1:
        return [np.concatenate(turns) for turns in starts]
    return [np.asarray(turn) for turn in starts[0]]


def _estimate(blocks: Sequence[Any], statistic: Callable[[list[Any]], Any]) -> Estimate:
    """A statistic of all blocks, which is a logarithm, and the percentiles of a bootstrap that draws blocks."""
    count, value = len(blocks), float(statistic(list(blocks)))
    if count < 2:
        return Estimate(math.exp(value), None, None)
    draws = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    distinct, places = np.unique(np.sort(draws, axis=1), axis=0, return_inverse=True)  # of few blocks few are
    found = np.array([statistic([blocks[index] for index in draw]) for draw in distinct])[places.ravel()]
    low, high = value + _widening(count) * (np.percentile(found, [2.5, 97.5]) - value)
    # what the blocks' spread is on one side alone must not take the value itself out of its interval
    return Estimate(math.exp(value), math.exp(min(low, value)), math.exp(max(high, value)))


def _widening(blocks: int) -> float:
    """By how much a bootstrap of so few blocks is too narrow: 1.9 for 4, 1.2 for 10."""
    return float(stdtrit(blocks - 1, 0.975) / Z * math.sqrt(blocks / (blocks - 1)))
