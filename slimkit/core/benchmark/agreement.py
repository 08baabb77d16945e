"""Whether a backend computes the same network: its answers beside the model's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slimkit.core.benchmark.candidates import Candidate
from slimkit.core.benchmark.models import Foreign, Model

BATCH = 50  # images at once


@dataclass(frozen=True)
class Agreement:
    """How far a candidate's logits are from those of its model.

    That is as slimkit's own process computes it in torch, or a stranger's process while no clock runs.
    """

    inputs: str  # what they were compared on
    count: int
    agreement: float  # % of the inputs with the same top-1 answer
    max_difference: float  # the largest absolute difference of two logits
    max_logit: float  # the largest absolute logit of the model, to judge it by


def own_logits(model: Model) -> Tensor:
    """The model's answers to its images: [n, classes]."""
    if isinstance(model.source, Foreign):
        return model.source.logits
    with torch.inference_mode():
        return torch.cat([model.source.module(part) for part in torch.split(model.images[: model.distinct], BATCH)])


def compare_logits(candidate: Candidate, ours: Tensor) -> Agreement:
    """The answers that the candidate's process wrote, beside those of `own_logits`."""
    theirs = torch.from_numpy(np.load(candidate.logits))[: len(ours)]
    return Agreement(
        inputs=candidate.model.images_are,
        count=len(ours),
        agreement=100 * (ours.argmax(1) == theirs.argmax(1)).double().mean().item(),
        max_difference=(ours - theirs).abs().max().item(),
        max_logit=ours.abs().max().item(),
    )
