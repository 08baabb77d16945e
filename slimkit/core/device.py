"""Where and with how many threads torch computes, and what it draws its random numbers from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
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


@contextmanager
def computing(threads: int | None = None, seed: int | None = None) -> Iterator[None]:
    """Compute with so many threads, and random numbers from `seed`, while the block runs.

    None leaves what is there. Afterwards torch's threads, its quantized engine and the random state of torch, numpy and
    Python are as they were found.
    """
    own_threads, engine = torch.get_num_threads(), torch.backends.quantized.engine
    states, plain = np.random.get_state(), random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            if seed is not None:
                torch.manual_seed(seed)
            yield
        finally:
            torch.set_num_threads(own_threads)
            torch.backends.quantized.engine = engine
            np.random.set_state(states)
            random.setstate(plain)
