"""Size: what a model takes on disk, and of what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

MB = 2**20


@dataclass(frozen=True)
class SizeBreakdown:
    """Bytes of a weights file, by what they hold."""

    weights: int  # weights, biases and the statistics of normalization
    scales: int  # scales and zero points of quantization
    container: int  # what the file format adds


def size_mb(file: Path) -> float:
    """The size of a file on disk, in MB of 2^20 bytes."""
    return file.stat().st_size / MB


def size_breakdown(state_dict: Mapping[str, Tensor], file: Path) -> SizeBreakdown:
    """What the bytes of `file` hold, which `state_dict` was saved in."""
    total = {True: 0, False: 0}
    for name, tensor in state_dict.items():
        total[_is_scale(name)] += tensor.numel() * tensor.element_size()
    return SizeBreakdown(
        weights=total[False], scales=total[True], container=file.stat().st_size - total[True] - total[False]
    )


def _is_scale(name: str) -> bool:
    """Whether a tensor belongs to the quantization: `layer.weight_scale`, `layer.zero_point`."""
    last = name.rpartition(".")[2]
    return "scale" in last or "zero_point" in last
