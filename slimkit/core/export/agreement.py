"""The one comparison of what two runtimes answer to the same images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

AGREEMENT = 99.5  # % of the images that must have the same best class; int8 logits differ where sums are near a tie
BATCH = 50  # images at once


@dataclass(frozen=True)
class Agreement:
    """How far a runtime's logits are from the model's own.

    These are as slimkit's own process computes them in torch, or a stranger's process while no clock runs.
    """

    images: str  # what they are
    count: int
    agreement: float  # % of the images with the same best class
    max_difference: float  # the largest absolute difference of two logits
    max_logit: float  # the largest absolute logit of the model, to judge it by


def compare_logits(images: str, ours: Tensor, theirs: Tensor) -> Agreement:
    """Compare logits [n, classes] to the same images; `images` says what they are."""
    return Agreement(
        images=images,
        count=len(ours),
        agreement=100 * (ours.argmax(1) == theirs.argmax(1)).double().mean().item(),
        max_difference=(ours - theirs).abs().max().item(),
        max_logit=ours.abs().max().item(),
    )
