"""How near an int8 network's logits are to those of the float network that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slimkit.core.errors import ModelError, first_line
from slimkit.core.progress import Progress

DEFAULT_IMAGES = 64  # random ones, where there are no others


@dataclass(frozen=True)
class Fidelity:
    """Float and int8 logits of the same images, compared."""

    images: str  # what they are
    count: int
    agreement: float  # % of the images to which both give the same best class
    cosine: float  # of the two logit vectors of an image, the mean over the images
    error: float  # the squared error of all logits, as a share of the float network's squares
    answers: int  # different classes among the float network's answers

    def figures(self) -> dict[str, Any]:
        """What is stored with the model."""
        return {
            "agreement": self.agreement,
            "agreement_images": self.count,
            "agreement_split": self.images,
            "logit_cosine": self.cosine,
        }


def nearest(
    original: nn.Module, choices: Sequence[nn.Module], batches: Sequence[Tensor], images: str, progress: Progress
) -> tuple[nn.Module, Fidelity]:
    """Of several int8 networks the one whose logits have the least error, and how near they are."""
    found = compare(original, choices, batches, images, progress)
    best = min(range(len(choices)), key=lambda index: found[index].error)
    return choices[best], found[best]


@torch.no_grad()
def compare(
    original: nn.Module, networks: Sequence[nn.Module], batches: Sequence[Tensor], images: str, progress: Progress
) -> list[Fidelity]:
    """How near the logits of each of `networks` are to those of the float network `original`.

    batches: normalized float32 images [n, 3, h, w] each; images: what these are, in words.
    Raises ModelError where one of them can't answer.
    """
    wanted: list[Tensor] = []
    given: list[list[Tensor]] = [[] for _ in networks]
    with progress("compare int8 with float", sum(len(batch) for batch in batches)) as advance:
        for batch in batches:
            wanted.append(original(batch))
            for logits, network in zip(given, networks, strict=True):
                logits.append(_answers(network, batch))
            advance(len(batch))
    return [_compared(torch.cat(wanted).double(), torch.cat(logits).double(), images) for logits in given]


def _answers(network: nn.Module, batch: Tensor) -> Tensor:
    try:
        logits: Tensor = network(batch)
    except RuntimeError as error:
        raise ModelError(
            f"The int8 network can't answer {len(batch)} images: {first_line(error)}",
            "Keep this model in float, or let its code take the number of images from them: x.shape[0].",
        ) from error
    return logits


def _compared(wanted: Tensor, given: Tensor, images: str) -> Fidelity:
    """Of float and int8 logits, float64 [n, classes]."""
    same = (wanted.argmax(1) == given.argmax(1)).double()
    are_zero = (wanted.abs().amax(1) == 0) & (given.abs().amax(1) == 0)
    cosines = functional.cosine_similarity(wanted, given, dim=1, eps=1e-300).masked_fill(are_zero, 1.0)
    return Fidelity(
        images=images,
        count=len(wanted),
        agreement=100 * float(same.mean()),
        cosine=float(cosines.mean()),
        error=float((given - wanted).square().sum()) / (float(wanted.square().sum()) or 1.0),
        answers=len(set(wanted.argmax(1).tolist())),
    )
