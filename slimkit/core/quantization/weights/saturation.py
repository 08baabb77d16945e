"""Weights whose int8 sums can't saturate on x86 CPUs without VNNI: see `standalone.model.can_saturate`."""

from __future__ import annotations

import torch
from torch import Tensor

from slimkit.core.quantization.weights.per_channel import LARGEST
from slimkit.core.quantization.weights.rounding import best_scale
from slimkit.standalone.model import LARGEST_PAIR

REDUCED = LARGEST_PAIR // 2  # the largest code of weights that can't saturate: 7 bits


def largest_code(bits: int, reduce_range: bool) -> int:
    """The largest code of weights with `bits`, on both sides of 0."""
    return min(LARGEST[bits], REDUCED) if reduce_range else LARGEST[bits]


def reduced_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes [out, ...], none above 64, and float32 scale [out], with the least squared error from `weight`."""
    flat = weight.flatten(1)
    scale = best_scale(flat[None], torch.ones(1, flat.shape[1]), -REDUCED, REDUCED)[0].float()
    codes = (flat / scale[:, None].double()).round().clamp(-REDUCED, REDUCED)
    return codes.to(torch.int8).view(weight.shape), scale
