"""Whether int8 sums can saturate on x86 CPUs without VNNI, and weights whose sums cannot.

Such CPUs multiply and add by `vpmaddubsw`: two products of a uint8 and an int8 are added to one number of 16 bits, and
what is above 32767 or below -32768 is cut to that, silently. Which two weights meet depends on the kernel, so any two
of one output channel are taken to; and any activation may have the largest code, as calibration clips.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimkit.core.quantization.rounding import best_scale
from slimkit.core.quantization.weights import LARGEST

LARGEST_PAIR = 32767 // 255  # 128: the most that two weights of one sign may come to
PORTABLE = LARGEST_PAIR // 2  # the largest code of weights that can't saturate: 7 bits


def can_saturate(codes: Tensor) -> bool:
    """Whether two of the int8 weights of some output channel, codes [out, ...], can saturate a sum of 16 bits."""
    flat = codes.int().flatten(1)
    count = min(2, flat.shape[1])
    positive, negative = (part.clamp(min=0).topk(count).values.sum(1) for part in (flat, -flat))
    return bool((torch.maximum(positive, negative) > LARGEST_PAIR).any())


def largest_code(bits: int, portable: bool) -> int:
    """The largest code of weights with `bits`, on both sides of 0."""
    return min(LARGEST[bits], PORTABLE) if portable else LARGEST[bits]


def portable_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes [out, ...], none above 64, and float32 scale [out], with the least squared error from `weight`."""
    flat = weight.flatten(1)
    scale = best_scale(flat[None], torch.ones(1, flat.shape[1]), -PORTABLE, PORTABLE)[0].float()
    codes = (flat / scale[:, None].double()).round().clamp(-PORTABLE, PORTABLE)
    return codes.to(torch.int8).view(weight.shape), scale
