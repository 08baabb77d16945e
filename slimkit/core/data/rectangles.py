"""Rectangles within images, in shares of their sides: the same part of an image in whatever size it is seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rectangles:
    """One for each image, from (top, left) to (bottom, right): values 0 … 1."""

    start: Tensor  # float32 [n, 2]
    end: Tensor  # float32 [n, 2]

    @classmethod
    def around(cls, centres: Tensor, sides: Tensor) -> Rectangles:
        """Those with `centres` [n, 2] and `sides` [n], shares of both sides, less what would lie outside."""
        half = sides[:, None] / 2
        return cls((centres - half).clamp(min=0), (centres + half).clamp(max=1))

    @property
    def area(self) -> Tensor:
        """As a share of the image's: float32 [n]."""
        return (self.end - self.start).prod(1)

    def mask(self, height: int, width: int) -> Tensor:
        """Which pixels have their centre within: bool [n, 1, height, width]."""
        rows, columns = (self._covers(axis, pixels) for axis, pixels in enumerate((height, width)))
        return (rows[:, :, None] & columns[:, None, :])[:, None]

    def _covers(self, axis: int, pixels: int) -> Tensor:
        places = (torch.arange(pixels) + 0.5) / pixels
        return (places >= self.start[:, axis, None]) & (places < self.end[:, axis, None])
