"""Repair across layers: the cut network is tuned on unlabelled, augmented images to answer as the whole one does.

The layer-wise solution (`reconstruct.py`) mends what each layer lost; what they lose together is left to this.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slimkit.core.architecture import Preprocessing
from slimkit.core.data import ImageSet, augment, epoch_order, evaluation_input
from slimkit.core.data.images import Images
from slimkit.core.device import computing
from slimkit.core.distillation.relations import relation_loss
from slimkit.core.folder import Classifier
from slimkit.core.progress import Progress
from slimkit.core.training.layout import memory_format
from slimkit.core.training.optimizer import make_optimizer
from slimkit.core.training.precision import autocast

log = logging.getLogger("slimkit")

RATE, WARM_UP, BATCH = 0.01, 30, 128  # of SGD; steps; images
TIMED = 5  # steps after which it is known how many fit
FEWEST = 50  # steps
HELD, HELD_SHARE = 512, 0.1  # images that only judge, at most
LARGEST_GRADIENT = 5.0  # norm


@dataclass(frozen=True)
class Tuned:
    """A network before and after, by how far its answers are from the whole one's on images that it was not shown."""

    classifier: Classifier
    before: float  # mean KL divergence
    after: float
    steps: int

    @property
    def note(self) -> str:
        """What a user should know of it."""
        kept = "" if self.after < self.before else " It was no nearer, so the repair was left as it was."
        return (
            f"Tuned without labels in {self.steps} steps: the divergence of its answers from the uncut network's fell "
            f"from {self.before:.4f} to {self.after:.4f} on images that only judged.{kept}"
        )


def tune(
    cut: Classifier,
    whole: nn.Module,
    data: ImageSet,
    *,
    minutes: float,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> Tuned:
    """Tune `cut`, which is changed, to answer as `whole` on the training images of `data`, in about `minutes`.

    Each step takes as long as it takes: the first ones tell how many there are, and the record says it. What is further
    from `whole` afterwards than before, on images that were kept apart, is not kept.
    """
    student, teacher = cut.module.to(device), whole.to(device).eval()
    order = epoch_order(len(data.train), seed, epoch=0)
    held = min(HELD, int(HELD_SHARE * len(order)))
    judge = _inputs(data.train.subset(order[:held]), data.preprocessing, device)
    before, start = _divergence(student, teacher, judge), copy.deepcopy(student.state_dict())
    with computing(seed=seed):
        steps = _run(student, teacher, data, order[held:], minutes, seed, device, progress)
    after = _divergence(student, teacher, judge)
    if not after < before:
        student.load_state_dict(start)
    student.to("cpu").eval()
    teacher.to("cpu")
    return Tuned(_recorded(cut, data, steps, seed, before, after), before, after, steps)


def _run(
    student: nn.Module,
    teacher: nn.Module,
    data: ImageSet,
    order: Tensor,
    minutes: float,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> int:
    """The steps; their number."""
    optimizer = make_optimizer(student, "sgd", RATE, weight_decay=0.0)
    student.train()
    times: list[float] = []
    steps, done = FEWEST, 0
    with progress("tune without labels", 100) as advance:
        shown = 0
        for inputs in _views(data, order, seed):
            started = time.monotonic()
            _step(student, teacher, inputs.to(device), optimizer, RATE * _share(done, steps))
            times.append(time.monotonic() - started)
            done += 1
            if done == TIMED:
                steps = max(FEWEST, int(60 * minutes / statistics.median(times)))
            advance(100 * done // steps - shown)
            shown = 100 * done // steps
            if done >= steps:
                return done
    return done


def _step(
    student: nn.Module, teacher: nn.Module, inputs: Tensor, optimizer: torch.optim.Optimizer, rate: float
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    inputs = inputs.contiguous(memory_format=memory_format(student))
    with autocast(inputs):
        with torch.no_grad():
            wanted = teacher(inputs)
        given = student(inputs)
    loss = relation_loss(given.float(), wanted.float())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
    nn.utils.clip_grad_norm_(student.parameters(), LARGEST_GRADIENT)
    optimizer.step()


def _share(step: int, steps: int) -> float:
    """Of the peak rate: up in WARM_UP steps, then linearly to zero."""
    return min(1.0, (step + 1) / WARM_UP) * (1 - step / max(steps, step + 1))


def _views(data: ImageSet, order: Tensor, seed: int) -> Iterator[Tensor]:
    """Augmented batches of the training images at `order`, without end."""
    epoch = 0
    while True:
        epoch += 1
        mixed = order[epoch_order(len(order), seed, epoch)]
        for pixels, _, indices in data.train.batches(mixed, min(BATCH, len(mixed))):
            if len(indices) > 1:  # BatchNorm can't learn from one
                yield augment(pixels, indices, data.preprocessing, epoch=epoch, seed=seed, flip=data.flip)


def _inputs(images: Images, preprocessing: Preprocessing, device: torch.device) -> list[Tensor]:
    order = torch.arange(len(images))
    return [evaluation_input(pixels, preprocessing).to(device) for pixels, _, _ in images.batches(order, BATCH)]


def _divergence(student: nn.Module, teacher: nn.Module, batches: list[Tensor]) -> float:
    """The mean KL divergence of the answers, teacher || student."""
    student.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for images in batches:
            ours, theirs = (functional.log_softmax(net(images).float(), 1) for net in (student, teacher))
            total += float(functional.kl_div(ours, theirs, reduction="sum", log_target=True))
            count += len(images)
    return total / max(1, count)


def _recorded(cut: Classifier, data: ImageSet, steps: int, seed: int, before: float, after: float) -> Classifier:
    detail: dict[str, Any] = {
        "stage": "tune",
        "data": data.name,
        "train_images": len(data.train),
        "steps": steps,
        "batch_size": BATCH,
        "optimizer": "sgd",
        "learning_rate": RATE,
        "seed": seed,
        "divergence": [before, after],
    }
    details = (*cut.architecture.training_details, detail)
    return dataclasses.replace(cut, architecture=dataclasses.replace(cut.architecture, training_details=details))
