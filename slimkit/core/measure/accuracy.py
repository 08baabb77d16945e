"""Accuracy: how many images of a split a network names rightly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimkit.core.architecture import Preprocessing
from slimkit.core.data import Images, evaluation_input
from slimkit.core.errors import DataError, ModelError
from slimkit.core.progress import Progress, silent


@dataclass(frozen=True)
class Accuracy:
    """What share of the images had their class first, or among the first five, in %."""

    top1: float
    top5: float
    correct: int  # images with their class first
    images: int


def evaluate(
    module: nn.Module,
    images: Images,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
    label_map: Tensor | None = None,
) -> Accuracy:
    """Accuracy of `module` on all of `images`. The module is moved to `device` and stays there.

    `label_map` holds, for each class of the data, the model's index of the class of that name (int64 [classes of the
    data]); None where both number their classes alike. Raises DataError when there is no image.
    """
    total = len(images)
    if total == 0:
        raise DataError(
            "The split that the accuracy is measured on has no image.", "Give a data set with images in it."
        )
    was_training = module.training
    module.to(device).eval()
    first = among_five = 0
    try:
        with torch.inference_mode(), progress("evaluate", total) as advance:
            for pixels, labels, _ in images.batches(torch.arange(total), batch_size):
                wanted = labels if label_map is None else label_map[labels]
                ranks = _ranks(module(evaluation_input(pixels, preprocessing).to(device)), wanted.to(device))
                first += int((ranks == 0).sum())
                among_five += int((ranks < 5).sum())
                advance(len(labels))
    finally:
        module.train(was_training)
    return Accuracy(100 * first / total, 100 * among_five / total, first, total)


def _ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the right one, for logits [n, classes] and labels [n]: int64 [n].

    A class with the same logit comes before it when its index is lower, as in argmax. An image with a NaN among its
    logits has no answer, and so the worst rank.
    """
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ModelError(
            f"The model answers {len(labels)} images with the shape {list(logits.shape)}.",
            "A classifier must answer with one row of logits per image.",
        )
    classes = logits.shape[1]
    own = logits.gather(1, labels[:, None])
    lower_index = torch.arange(classes, device=logits.device) < labels[:, None]
    before = (logits > own) | ((logits == own) & lower_index)
    unanswered = logits.isnan().any(dim=1)
    return before.sum(dim=1).masked_fill(unanswered, max(classes, 5))
