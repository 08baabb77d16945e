"""How the learning rate and the image size move through a run."""

import math

from slimkit.core.sizes import Size
from slimkit.standalone.model_loader import sides

SMALLEST = 32  # pixels: most networks divide the side by 32, and below one pixel there is nothing to learn from


def learning_rate(step: int, steps: int, peak: float, warmup: float = 0.15) -> float:
    """Linear warm-up over the first share `warmup` of `steps`, then a cosine to zero (Loshchilov & Hutter 2017)."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def training_size(epoch: int, epochs: int, full: Size) -> Size:
    """The pixels that are trained on: half of `full` at first, all of it for the last two fifths.

    Small images first save half of the time (progressive resizing: Howard 2018; Tan & Le 2021, arXiv:2104.00298).
    """
    rising = 0.6 * epochs
    share = 1.0 if epoch >= rising else 0.5 + 0.5 * epoch / rising
    height, width = (min(side, max(SMALLEST, math.ceil(side * share / 16) * 16)) for side in sides(full))
    return height if isinstance(full, int) else (height, width)
