"""Where and with how many threads torch computes."""

from __future__ import annotations

import torch

from slimkit.core.errors import UsageError
from slimkit.core.options import Device


def resolve_device(device: Device) -> torch.device:
    """The device that is meant; `auto` is CUDA or MPS where there is one. Raises UsageError where it is absent."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[device]:
        raise UsageError(f"This machine has no {device} device.", "Give --device auto, or cpu.")
    return torch.device(device)


def use_threads(threads: int | None) -> None:
    """Let torch compute with `threads` threads in this process; None leaves its choice. Raises UsageError."""
    if threads is None:
        return
    if threads < 1:
        raise UsageError(f"--threads {threads} is no number of threads.", "Give 1 or more.")
    torch.set_num_threads(threads)
