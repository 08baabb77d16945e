"""What a figure can tell: intervals of accuracies, and means over seeds."""

import math
import statistics
from collections.abc import Sequence

Z = 1.959964  # of a 95 % interval


def wilson(percent: float, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy in % on so many images (Wilson 1927)."""
    share = percent / 100
    centre = share + Z**2 / (2 * images)
    half = Z * math.sqrt(share * (1 - share) / images + Z**2 / (4 * images**2))
    return tuple(100 * (centre + sign * half) / (1 + Z**2 / images) for sign in (-1, 1))  # type: ignore[return-value]


def with_interval(percent: float, images: int) -> str:
    """ "64.44 ± 1.3": half the width of the interval beside the accuracy."""
    low, high = wilson(percent, images)
    return f"{percent:.2f} ± {(high - low) / 2:.1f}"


def over_seeds(values: Sequence[float]) -> str:
    """ "64.40 ± 0.21 (3 seeds)": the mean and the standard deviation."""
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)} seeds)"
