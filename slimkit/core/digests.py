"""By which weights and images are known again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def digest_of(tensors: Iterable[Tensor]) -> str:
    """The sha256 of the numbers of all of them."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """The sha256 of tensors with their names."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """The sha256 of all weights and buffers, with their names."""
    return digest_of_state(module.state_dict())


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
