"""What a teacher answers to augmented images that are seen again, kept on disk: it is asked about each once."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slimkit.core.data import ImageSet, augment
from slimkit.core.digests import digest_of, weights_digest
from slimkit.core.folder import Classifier
from slimkit.core.progress import Progress, silent
from slimkit.core.shelf import Shelf
from slimkit.core.training.layout import memory_format
from slimkit.core.training.plan import FitOptions
from slimkit.core.training.precision import autocast, prefers_bfloat16
from slimkit.core.training.views import Batch

Logits = np.ndarray[Any, np.dtype[np.float16]]  # [training images, classes of the teacher]

SHELF = Shelf("teacher-logits", most=8 * 2**30)
FORM = 1  # of how images are augmented: raise it where that changes
BATCH = 128


@dataclass(frozen=True)
class KnownLogits:
    """The teacher of a `DistillationLoss` that has answered already."""

    views: tuple[Logits, ...]
    classes: Tensor  # int64: the teacher's index of each class of the student

    def __call__(self, batch: Batch) -> Tensor:
        """Float32 [n, classes of the student]."""
        rows = torch.from_numpy(self.views[batch.view][batch.indices.numpy()])
        return rows.to(self.classes.device).float()[:, self.classes]


def know_logits(
    teacher: Classifier, data: ImageSet, classes: Tensor, options: FitOptions, progress: Progress = silent
) -> KnownLogits:
    """The answers of `teacher`, which is on the device, to the training images of `data` in all views of a training.

    data: in the teacher's preprocessing; classes: the teacher's index of each class of the student.
    """
    assert options.views is not None
    seen = options.views if options.minutes else min(options.views, options.epochs)
    digest = _digest(teacher, data)
    views = tuple(_view(teacher, data, digest, view, options, progress) for view in range(seen))
    return KnownLogits(views, classes)


def ask_about_views(
    teacher: Classifier, data: ImageSet, options: FitOptions, seconds: float, progress: Progress = silent
) -> int:
    """How many views of a training the teacher has answered, for trainings to come, in about so many `seconds`.

    One at least, `options.views` at most. data: in the teacher's preprocessing.
    """
    assert options.views is not None
    began, digest = time.monotonic(), _digest(teacher, data)
    for view in range(options.views):
        if view and (time.monotonic() - began) * (view + 1) / view > seconds:
            return view
        _view(teacher, data, digest, view, options, progress)
    return options.views


def _view(
    teacher: Classifier, data: ImageSet, digest: str, view: int, options: FitOptions, progress: Progress
) -> Logits:
    """The answers to all training images in one view."""
    how = dataclasses.asdict(options.augmentation) | {"seed": options.seed, "view": view, "flip": data.flip}
    shape = (len(data.train), teacher.architecture.num_classes)
    depends_on = f"{FORM} {digest} {sorted(how.items())}"
    return SHELF.get(depends_on, shape, np.float16, lambda: _ask(teacher, data, shape, view, options, progress))


def _ask(
    teacher: Classifier, data: ImageSet, shape: tuple[int, int], view: int, options: FitOptions, progress: Progress
) -> Logits:
    logits = torch.zeros(shape, dtype=torch.float16)
    seen = partial(augment, epoch=view, seed=options.seed, flip=data.flip, augmentation=options.augmentation)
    layout, bfloat16 = memory_format(teacher.module), prefers_bfloat16(options.device)
    with torch.inference_mode(), progress(f"teacher, view {view + 1}/{options.views}", len(data.train)) as advance:
        for pixels, _, indices in data.train.batches(torch.arange(len(data.train)), BATCH):
            inputs = seen(pixels.to(options.device), indices, data.preprocessing)
            with autocast(inputs, bfloat16):
                answers = teacher.module(inputs.contiguous(memory_format=layout))
            logits[indices] = answers.float().clamp(-6e4, 6e4).half().cpu()  # float16 holds up to 65504
            advance(len(indices))
    return logits.numpy()


def _digest(teacher: Classifier, data: ImageSet) -> str:
    """Of the teacher's weights, and of the training images, which are decoded for it."""
    batches = data.train.batches(torch.arange(len(data.train)), BATCH)
    pixels = digest_of(pixels for pixels, _, _ in batches)
    return f"{weights_digest(teacher.module)} {data.preprocessing} {data.train.digest()} {pixels}"
