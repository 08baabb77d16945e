"""Repair across layers: the cut network is tuned on unlabelled, augmented images to answer as the uncut one does.

The layer-wise solution (`reconstruct.py`) mends what each layer lost; what they lose together is left to this.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimkit.core.architecture import with_detail
from slimkit.core.data import CalibrationBatches, ImageSet, augment, epoch_order
from slimkit.core.device import computing
from slimkit.core.distillation.losses import relations
from slimkit.core.errors import UsageError
from slimkit.core.folder import Classifier
from slimkit.core.progress import Progress, silent
from slimkit.core.training.optimizer import make_optimizer
from slimkit.core.training.precision import prefers_bfloat16
from slimkit.core.training.step import take_step
from slimkit.core.training.views import Batch

RATE, WARM_UP, BATCH = 0.01, 30, 128  # of SGD; steps; images
JUDGES = 512  # images that are not learned from, at most
FEWEST = 10  # images; of so many one judges


@dataclass(frozen=True)
class Tuned:
    """A network after its tuning, and how far its answers are from the uncut one's on images it did not learn from."""

    classifier: Classifier
    before: float  # distance of the answers from the uncut network's: `relations`, 0 to 4
    after: float  # of what came out of the tuning; kept only where it is less than `before`
    steps: int

    @property
    def note(self) -> str:
        """What a user should know of it."""
        became = f"from {self.before:.4f} to {self.after:.4f} on images that only judged"
        if self.after < self.before:
            return f"Tuned without labels in {self.steps} steps: its distance from the uncut network fell {became}."
        return (
            f"Tuning without labels took its distance from the uncut network {became} in {self.steps} steps, so it was "
            "not kept."
        )


def tune(
    cut: Classifier,
    uncut: nn.Module,
    data: ImageSet,
    *,
    minutes: float,
    seed: int,
    device: torch.device,
    progress: Progress = silent,
) -> Tuned:
    """Tune `cut`, whose network is changed, to answer as `uncut` on the training images of `data`, in so many minutes.

    The loss compares how answers are correlated (DIST, arXiv:2205.10536). The learning rate rises in WARM_UP steps and
    falls to zero over the rest. Where the result is further from `uncut` than before, the network is as it was.
    Raises UsageError for fewer than FEWEST images.
    """
    if len(data.train) < FEWEST:
        message = f"{data.name} has {len(data.train)} training images: too few to tune on."
        raise UsageError(message, f"Give {FEWEST} at least, or leave out --tune-minutes.")
    student, teacher = cut.module.to(device), uncut.to(device).eval()
    count = min(JUDGES, len(data.train) // FEWEST)
    judges = CalibrationBatches(data.train, data.preprocessing, count, seed, BATCH)
    judged = [images.to(device) for images in judges]
    others = epoch_order(len(data.train), seed, epoch=0)[count:]  # than those that `judges` draws
    before, start = _distance(student, teacher, judged), copy.deepcopy(student.state_dict())
    with computing(seed=seed):
        steps = _learn(student, teacher, _views(data, others, seed, device), 60 * minutes, progress)
    after = _distance(student, teacher, judged)
    if not after < before:
        student.load_state_dict(start)
    student.to("cpu").eval()
    teacher.to("cpu")
    return Tuned(_recorded(cut, data, steps, seed, before, after), before, after, steps)


def _learn(student: nn.Module, teacher: nn.Module, batches: Iterator[Batch], seconds: float, progress: Progress) -> int:
    """Take steps until the time is over; gives how many. The rate falls with the time, however long a step takes."""
    optimizer = make_optimizer(student, "sgd", RATE, weight_decay=0.0)
    bfloat16 = prefers_bfloat16(next(student.parameters()).device)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted = teacher(batch.seen_by_loss)
        return relations(logits, wanted.float())

    student.train()
    began, shown = time.monotonic(), 0
    with progress("tune without labels", 100) as advance:
        for step, batch in enumerate(batches):
            spent = (time.monotonic() - began) / seconds
            if spent >= 1:
                return step
            take_step(student, optimizer, loss, batch, RATE * min(1.0, (step + 1) / WARM_UP) * (1 - spent), bfloat16)
            advance(int(100 * spent) - shown)
            shown = int(100 * spent)
    raise AssertionError("there is no end of batches")


def _views(data: ImageSet, order: Tensor, seed: int, device: torch.device) -> Iterator[Batch]:
    """Augmented batches of the training images at `order`, without end."""
    for epoch in itertools.count(1):
        mixed = order[epoch_order(len(order), seed, epoch)]
        for pixels, labels, indices in data.train.batches(mixed, min(BATCH, len(mixed))):
            if len(indices) > 1:  # BatchNorm can't learn from one
                inputs = augment(pixels, indices, data.preprocessing, epoch=epoch, seed=seed, flip=data.flip).to(device)
                yield Batch(inputs, inputs, labels, indices, epoch)


def _distance(student: nn.Module, teacher: nn.Module, batches: Sequence[Tensor]) -> float:
    """The loss of the answers to all images together."""
    student.eval()
    with torch.inference_mode():
        ours, theirs = (torch.cat([network(images).float() for images in batches]) for network in (student, teacher))
    return float(relations(ours, theirs))


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
        "distance": [round(before, 4), round(after, 4)],
    }
    return dataclasses.replace(cut, architecture=with_detail(cut.architecture, detail))
