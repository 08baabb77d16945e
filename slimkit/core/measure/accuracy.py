"""Accuracy: how many images of a split a network names rightly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from slimkit.core.architecture import Preprocessing
from slimkit.core.data import Images, ImageSet, evaluation_input, label_map
from slimkit.core.errors import DataError, ModelError
from slimkit.core.folder import Classifier
from slimkit.core.measure.answers import Answers, wilson
from slimkit.core.progress import Progress, silent


@dataclass(frozen=True)
class Accuracy:
    """What share of the images had their class first, or among the first five, in %."""

    top1: float
    top5: float
    correct: int  # images with their class first
    images: int
    answers: Answers = field(repr=False, compare=False)  # to each image, in the order of the split

    @property
    def confidence(self) -> tuple[float, float]:
        """The 95 % interval of `top1`."""
        return wilson(self.correct, self.images)


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
    was_training = module.training
    module.to(device).eval()
    try:
        with torch.inference_mode():
            return judge(
                lambda inputs: module(inputs.to(device)),
                images,
                preprocessing,
                torch.arange(len(images)),
                batch_size=batch_size,
                progress=progress,
                label_map=label_map,
            )
    finally:
        module.train(was_training)


def evaluate_held_out(
    classifier: Classifier, data: ImageSet, *, device: str | torch.device = "cpu", progress: Progress = silent
) -> Accuracy:
    """Accuracy of `classifier` on the images of `data` that are held out of training, whose classes it has by name.

    Raises as `evaluate`, and DataError for a class that it does not know.
    """
    return evaluate(
        classifier.module,
        data.holdout,
        data.preprocessing,
        device=device,
        progress=progress,
        label_map=label_map(classifier.architecture.class_names, data.class_names),
    )


def judge(
    answer: Callable[[Tensor], Tensor],
    images: Images,
    preprocessing: Preprocessing,
    order: Tensor,
    *,
    batch_size: int = 64,
    progress: Progress = silent,
    label_map: Tensor | None = None,
) -> Accuracy:
    """As `evaluate`, of whatever answers normalized images [n, c, h, w] by logits [n, classes].

    order: int64 [images], in which they are shown.
    """
    total = len(images)
    if total == 0:
        raise DataError(
            "The split that the accuracy is measured on has no image.", "Give a data set with images in it."
        )
    ranks, given = torch.empty(total, dtype=torch.int64), torch.empty(total, dtype=torch.int64)
    labels, confidence = images.labels if label_map is None else label_map[images.labels], torch.empty(total)
    with progress("evaluate", total) as advance:
        for pixels, _, indices in images.batches(order, batch_size):
            logits = answer(evaluation_input(pixels, preprocessing))
            ranks[indices] = _ranks(logits, labels[indices].to(logits.device)).cpu()
            highest, best = logits.float().softmax(1).max(1)
            unanswered = logits.isnan().any(1)
            given[indices] = best.masked_fill(unanswered, -1).cpu()
            confidence[indices] = highest.masked_fill(unanswered, 0).cpu()
            advance(len(indices))
    first, among_five = int((ranks == 0).sum()), int((ranks < 5).sum())
    answers = Answers(labels, given, confidence)
    return Accuracy(100 * first / total, 100 * among_five / total, first, total, answers)


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
