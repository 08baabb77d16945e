"""Codes that are stored by their frequencies: those that come often take fewer bits, 0 above all.

Where a bit has a price, a code that is nearly as good and shorter is the better one (rate-distortion optimization;
Conzelmann & Bamler 2025, arXiv:2505.18758), and wider steps between codes may be worth what they lose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

STRETCHES = (1.0, 1.25, 1.6, 2.0)  # of the scale with the least error, where bits have a price
ROUNDS = 2  # of choosing codes by their lengths, which follow from the choice


@dataclass(frozen=True)
class Grid:
    """The codes that weights may have, and what each takes."""

    lowest: int
    highest: int
    price: float = 0.0  # of a bit, in terms of the squared error of the outputs
    savings: Tensor | None = None  # bits by which each code is longer than its neighbour on the side of 0: [codes]

    def with_lengths_of(self, codes: Tensor) -> Grid:
        """With each code as long as it is where all of `codes`, of any shape, are coded by their frequencies."""
        if not self.price:
            return self
        counts = torch.bincount((codes.flatten() - self.lowest).long(), minlength=self.highest - self.lowest + 1)
        steps = -(counts + 1).log2().diff()
        return replace(self, savings=torch.cat([-steps[: -self.lowest], torch.zeros(1), steps[-self.lowest :]]))

    def best(self, wanted: Tensor, curvature: Tensor) -> Tensor:
        """The codes in place of `wanted`, real numbers: the nearest, or the next one towards 0 where that pays.

        curvature: what the squared error of a code, in codes, counts; it broadcasts to `wanted`.
        """
        near = wanted.round().clamp_(self.lowest, self.highest)
        if self.savings is None:
            return near
        sign = near.sign()
        lost = (sign * (wanted - near) * 2 + sign.abs()) * curvature
        return torch.where(lost < self.price * self.savings[(near - self.lowest).long()], near - sign, near)


@dataclass(frozen=True)
class Trial:
    """Weights rounded one by one."""

    scale: Tensor  # [g, o]
    codes: Tensor  # [g, o, d]
    error: float  # squared
    bits: float


def try_scales(weight: Tensor, scale: Tensor, variances: Tensor, grid: Grid) -> Trial:
    """Of some multiples of `scale` [g, o] the one with which rounding `weight` [g, o, d] one by one costs least.

    variances: how much the squared error of each weight counts, [g, d].
    """
    stretches = STRETCHES if grid.price else (1.0,)
    trials = [_try(weight, stretch * scale, variances, grid) for stretch in stretches]
    return min(trials, key=lambda trial: trial.error + grid.price * trial.bits)


def _try(weight: Tensor, scale: Tensor, variances: Tensor, grid: Grid) -> Trial:
    wanted, curvature = weight / scale[..., None], scale[..., None].square() * variances[:, None]
    codes = grid.best(wanted, curvature)
    for _ in range(ROUNDS if grid.price else 0):
        codes = grid.with_lengths_of(codes).best(wanted, curvature)
    error = (codes - wanted).square_().mul_(curvature).sum()
    return Trial(scale, codes, float(error), entropy(codes))


def entropy(codes: Tensor) -> float:
    """Bits that integers take, coded by their frequencies."""
    counts = torch.bincount((codes.flatten() + 128).long()).double()
    return float((counts * (counts.sum() / counts.clamp(min=1)).log2()).sum())
