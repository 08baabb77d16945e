"""Size: what a model takes on disk, and of what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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


def size_breakdown(tensors: Mapping[str, float], file: Path) -> SizeBreakdown:
    """What the bytes of `file` hold, where `tensors` says by name how many each tensor takes: see `stored_bytes`."""
    scales = round(sum(size for name, size in tensors.items() if _is_scale(name)))
    weights = round(sum(tensors.values())) - scales
    return SizeBreakdown(weights=weights, scales=scales, container=file.stat().st_size - weights - scales)


def _is_scale(name: str) -> bool:
    """Whether a tensor belongs to the quantization: `layer.weight_scale`, `layer.zero_point`."""
    last = name.rpartition(".")[2]
    return "scale" in last or "zero_point" in last
