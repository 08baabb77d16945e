"""How far the answers of one network are from those of another, without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def log_probabilities(network: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """Of each class for each image of the batches: [images, classes]."""
    return torch.cat([functional.log_softmax(network(batch), dim=1) for batch in batches])


def divergence(given: Tensor, wanted: Tensor) -> float:
    """The KL divergence of the answers `given` from those `wanted`, in nats per image; both are log-probabilities."""
    return float(functional.kl_div(given, wanted, reduction="batchmean", log_target=True))
