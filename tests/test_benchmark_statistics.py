"""What is said of durations: intervals that hold what they say, on samples made with a known truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from slimkit.core.benchmark.statistics import Estimate, Turns, lap_levels, mean_time, quantile, time_ratio, typical_time
from slimkit.core.measure.worker import settles

TRIALS = 200
STARTS, TURNS, RUNS = 4, 12, 20


def correlated(draws: np.random.Generator, count: int, deviation: float) -> np.ndarray:
    """Values of that deviation that remember the last one (an AR(1) process)."""
    values = np.zeros(count)
    values[0] = draws.normal(0, deviation)
    for i in range(1, count):
        values[i] = 0.8 * values[i - 1] + 0.6 * draws.normal(0, deviation)
    return values


def measured(draws: np.random.Generator, *times: float) -> list[list[Turns]]:
    """Networks of known median times, in turn on a moody machine: [network][start][turn][run].

    The machine's speed drifts for all, each process has a speed of its own, so has each turn, and single runs scatter.
    """
    found: list[list[Turns]] = [[] for _ in times]
    for _ in range(STARTS):
        machine = correlated(draws, TURNS, 0.1)
        for own, time in zip(found, times, strict=True):
            levels = math.log(time) + machine + draws.normal(0, 0.01) + draws.normal(0, 0.02, TURNS)
            scatter = draws.normal(0, 0.02, (TURNS, RUNS)) + (draws.random((TURNS, RUNS)) < 0.05) * draws.exponential(2)
            own.append(np.exp(levels[:, None] + scatter).tolist())
    return found


def covered(truth: float, estimate: Callable[[np.random.Generator], Estimate]) -> int:
    """In how many of TRIALS measurements the interval holds the truth."""
    draws = np.random.default_rng(0)
    return sum(estimate(draws).covers(truth) for _ in range(TRIALS))


@pytest.mark.parametrize("truth", [1.0, 0.5])
def test_the_interval_of_a_ratio_holds_what_it_says(truth: float) -> None:
    assert covered(truth, lambda draws: time_ratio(*measured(draws, 4 * truth, 4.0))) >= 0.9 * TRIALS


def test_the_interval_of_a_time_holds_what_it_says() -> None:
    assert covered(4.0, lambda draws: typical_time(measured(draws, 4.0)[0])) >= 0.9 * TRIALS


def test_drawing_single_runs_would_not_do() -> None:
    """The samples above are correlated indeed: intervals of theirs as if they were not miss the truth mostly."""

    def naive(draws: np.random.Generator) -> Estimate:
        own, others = (np.log(np.ravel(network)) for network in measured(draws, 4.0, 4.0))
        error = math.sqrt(own.var() / own.size + others.var() / others.size)
        difference = own.mean() - others.mean()
        return Estimate(*(math.exp(difference + z * error) for z in (0, -1.96, 1.96)))

    assert covered(1.0, naive) < 0.8 * TRIALS


def test_a_difference_is_found() -> None:
    draws = np.random.default_rng(0)
    found = [time_ratio(*measured(draws, 4.4, 4.0)) for _ in range(50)]
    assert sum(not each.covers(1) for each in found) >= 45
    assert np.median([each.value for each in found]) == pytest.approx(1.1, rel=0.01)


@pytest.mark.parametrize("starts", [4, 12])
def test_the_interval_is_as_wide_as_students(starts: int) -> None:
    logs = np.random.default_rng(2).normal(0, 0.01, starts)
    estimate = typical_time([[[math.exp(value)]] * 2 for value in logs])
    low, high = scipy.stats.t.interval(0.95, starts - 1, logs.mean(), scipy.stats.sem(logs))
    assert estimate.value == pytest.approx(math.exp(logs.mean()))
    assert estimate.low is not None
    assert estimate.high is not None
    assert math.log(estimate.high / estimate.low) == pytest.approx(high - low, rel=0.15)


def test_a_steady_drift_cancels_out() -> None:
    """Two networks that take the same, on a machine that slows down by 10 % from turn to turn: A B B A A B B A."""
    slower = 1.1 ** np.arange(8)
    own, other = ([[time] for time in slower[[0, 3, 4, 7]]], [[time] for time in slower[[1, 2, 5, 6]]])
    assert time_ratio([own], [other]).value == pytest.approx(1)


def test_a_lap_is_the_geometric_mean_of_its_turns_medians() -> None:
    assert np.exp(lap_levels([[1, 2, 90], [8], [3], [3]])) == pytest.approx([4, 3])


def test_quantiles_are_those_of_all_runs() -> None:
    starts = measured(np.random.default_rng(3), 4.0)[0]
    everything = np.ravel(starts)
    for share in (0.5, 0.9, 0.99):
        estimate = quantile(starts, share)
        assert estimate.value == pytest.approx(np.quantile(everything, share))
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < estimate.value < estimate.high
    rate = mean_time(starts).as_rate(1000)
    assert rate.value == pytest.approx(1000 / everything.mean())
    assert rate.low is not None
    assert rate.high is not None
    assert rate.low < rate.value < rate.high


def test_one_start_is_judged_by_its_turns_and_one_lap_by_nothing() -> None:
    own, other = (network[:1] for network in measured(np.random.default_rng(4), 2.0, 4.0))
    assert time_ratio(own, other).width < 0.2
    alone = time_ratio([own[0][:2]], [other[0][:2]])
    assert (alone.low, alone.high, alone.width) == (None, None, math.inf)
    assert alone.covers(1)  # nothing is known


@pytest.mark.parametrize(
    ("medians", "settled"),
    [
        ([9, 5, 3, 3, 3], True),
        ([3, 3, 3], True),
        ([3, 3.5, 2.99], True),  # less than 2 % faster is no gain
        ([9, 8, 7, 6, 5], False),
        ([9, 9, 5, 5], False),  # one window more would tell
        ([9], False),
    ],
)
def test_a_network_has_settled_when_it_gets_no_faster(medians: list[float], settled: bool) -> None:
    assert settles(iter(medians)) is settled
