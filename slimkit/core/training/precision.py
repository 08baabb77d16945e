"""Which precision the matrix work of training is done in."""

import functools
import time
from typing import Literal

import torch
from torch import Tensor

# pixels; below, oneDNN's bfloat16 gradients of strided convolutions on 1x1 maps are not finite (seen in torch 2.13)
SMALLEST_SAFE = 32


def autocast(inputs: Tensor, bfloat16: bool) -> torch.autocast:
    """Autocast for images [n, 3, h, w], to bfloat16 if that is wished and safe; else a context that changes nothing."""
    enabled = precision_of(bfloat16, min(inputs.shape[2:])) == "bfloat16"
    return torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=enabled)


def precision_of(bfloat16: bool, size: int) -> Literal["bfloat16", "float32"]:
    """What images of `size` pixels are trained in, where bfloat16 is wished or not."""
    return "bfloat16" if bfloat16 and size >= SMALLEST_SAFE else "float32"


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there. What has no instructions for it emulates it, far slower.

    The answer hangs on the machine, so a training asks once and records it.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _cpu_prefers_bfloat16()


@functools.cache
def _cpu_prefers_bfloat16() -> bool:
    """Time a matrix product in both: one that has instructions for bfloat16 gains two-fold or more."""
    single = torch.ones(512, 512)
    half = single.bfloat16()
    return _seconds(half) < 0.75 * _seconds(single)


def _seconds(matrix: Tensor, repeats: int = 4) -> float:
    """The shortest of `repeats` products, which noise can only lengthen."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    return min(times)
