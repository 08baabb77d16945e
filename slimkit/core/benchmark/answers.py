"""Whether a backend computes the same network: its answers beside the model's own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from slimkit.core.benchmark.candidates import Candidate
from slimkit.core.benchmark.models import Foreign, Model
from slimkit.core.export.agreement import BATCH, Agreement, compare_logits


def own_logits(model: Model) -> Tensor:
    """The model's answers to its images: [n, classes]."""
    if isinstance(model.source, Foreign):
        return model.source.logits
    with torch.inference_mode():
        return torch.cat([model.source.module(part) for part in torch.split(model.images[: model.distinct], BATCH)])


def compared(candidate: Candidate, ours: Tensor) -> Agreement:
    """The answers that the candidate's process wrote, beside those of `own_logits`."""
    theirs = torch.from_numpy(np.load(candidate.logits))[: len(ours)]
    return compare_logits(candidate.model.images_are, ours, theirs)
