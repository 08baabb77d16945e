"""Random numbers as pure functions of (seed, epoch, index), never of a global state.

Whoever knows the seed, the epoch and an image's index knows its place in the order and its augmentation: a run that was
stopped goes on exactly where it was, and several processes share an epoch by index alone.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
FLIP, CUTOUT, MIXING = range(3)  # a key behind seed and epoch, for draws of their own


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order in which epoch `epoch` visits `count` images: a permutation, int64 [count]."""
    return permutation(count, (seed, epoch))


def permutation(count: int, keys: Sequence[int]) -> Tensor:
    """A permutation of 0 … count-1 that depends on `keys` alone: int64 [count]."""
    return torch.from_numpy(np.argsort(_hash(np.arange(count), keys), kind="stable"))


def uniform(indices: Tensor, keys: Sequence[int], draws: int) -> Tensor:
    """For each of `indices` [n] a row of numbers in [0, 1), a function of the index and `keys`: float32 [n, draws]."""
    steps = np.arange(1, draws + 1, dtype=np.uint64) * GOLDEN_GAMMA
    words = _mix(_hash(indices.cpu().numpy(), keys)[:, None] + steps)
    return torch.from_numpy((words >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24))


def _hash(indices: npt.NDArray[np.int64], keys: Sequence[int]) -> Words:
    """One 64-bit word per index."""
    words = _mix(indices.astype(np.uint64) + GOLDEN_GAMMA)
    for key in keys:
        words = _mix(words ^ _mix(np.array([key % 2**64], dtype=np.uint64) + GOLDEN_GAMMA))
    return words


def _mix(words: Words) -> Words:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
