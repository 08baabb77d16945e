"""What a figure can tell: intervals of accuracies, and means over seeds."""

import statistics
from collections.abc import Sequence

from slimkit.core.measure.answers import wilson


def with_interval(percent: float, images: int) -> str:
    """ "64.44 ± 1.3": half the width of the interval beside the accuracy."""
    low, high = wilson(round(percent * images / 100), images)
    return f"{percent:.2f} ± {(high - low) / 2:.1f}"


def over_seeds(values: Sequence[float]) -> str:
    """ "64.40 ± 0.21 (3 seeds)": the mean and the standard deviation."""
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)} seeds)"
