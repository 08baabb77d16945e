"""The teacher: which one, what it sees, and whether it knows anything."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from slimkit.core.data import ImageSet
from slimkit.core.errors import UsageError
from slimkit.core.folder import Classifier, read_folder
from slimkit.core.measure.accuracy import evaluate_held_out
from slimkit.core.models.classes import class_order
from slimkit.core.models.lineage import find_baseline
from slimkit.core.models.resolve import is_folder, open_named
from slimkit.core.options import DistillOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.sizes import show_size

log = logging.getLogger("slimkit")

HARDLY = 0.05  # of the way from guessing to knowing all: a teacher that stays below teaches nothing


def teacher_view(teacher: Classifier, data: ImageSet) -> ImageSet | None:
    """The images of `data` as the teacher wants them, or None where that is how the student has them."""
    wanted = teacher.architecture.preprocessing
    if wanted == data.preprocessing:
        return None
    shown = (show_size(wanted.crop), show_size(wanted.resize))
    log.info("the teacher sees the images in its own preprocessing: %s pixels of %s", *shown)
    return data.prepared(wanted)


def require_knowledge(
    teacher: Classifier, view: ImageSet, name: str, device: torch.device, progress: Progress = silent
) -> float:
    """The teacher's accuracy in % on the held-out images of `view`.

    Raises UsageError where it is certain (95 %) that the teacher is hardly better than guessing.
    """
    held_out = evaluate_held_out(teacher, view, device=device, progress=progress)
    guessing = 100 / len(view.class_names)
    _, highest = held_out.confidence
    if highest < guessing + HARDLY * (100 - guessing):
        raise UsageError(
            f"The teacher {name} answers {held_out.top1:.1f} % of {held_out.images} held-out images rightly, where "
            f"guessing gives {guessing:.1f} %: it has nothing to teach.",
            "Give --teacher a model that was trained on these classes, or --teacher-weights.",
        )
    return held_out.top1


def open_teacher(student: Classifier, data: ImageSet, options: DistillOptions) -> Classifier:
    """The teacher that `options` name, or else the model that the student was cut from. Raises UsageError."""
    if options.teacher is None:
        folder = find_baseline(student)
        if folder is None:
            raise UsageError(
                f"The model that {options.model} was cut from can't be found, so there is no teacher.",
                "Give one with --teacher: a model folder, or a name with --teacher-weights FILE.",
            )
        return read_folder(folder)
    if is_folder(options.teacher):
        return read_folder(Path(options.teacher))
    named = options.naming(options.teacher, options.teacher_weights)
    return open_named(named, class_order(named.weights, data), data.preprocessing)
