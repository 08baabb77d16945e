"""Distilling a teacher into a classifier, with its record in the architecture."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch

from slimkit.core.data import ImageSet, label_map
from slimkit.core.distillation.losses import DistillationLoss
from slimkit.core.errors import UsageError
from slimkit.core.folder import Classifier, read_folder
from slimkit.core.models.classes import class_order
from slimkit.core.models.lineage import find_baseline, weights_sha256
from slimkit.core.models.resolve import is_folder, open_named
from slimkit.core.options import DISTILL_EPOCHS, DistillOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.sizes import show_size
from slimkit.core.training.files import TrainingFiles
from slimkit.core.training.identity import describe_run
from slimkit.core.training.loop import fit
from slimkit.core.training.stage import fit_options_of, how_long, training_detail, with_detail

log = logging.getLogger("slimkit")


def distill(
    classifier: Classifier,
    data: ImageSet,
    options: DistillOptions,
    progress: Progress = silent,
    files: TrainingFiles | None = None,
) -> Classifier:
    """Train `classifier` (in place) on the labels of `data` and the logits of the teacher that `options` name.

    The training is kept in `files`.

    Raises UsageError for impossible options or where no teacher can be found, ModelError where training diverges.
    """
    epochs = DISTILL_EPOCHS if options.epochs is None else options.epochs
    fit_options = fit_options_of(options, epochs, options.lr, progressive=False)
    teacher = open_teacher(classifier, data, options)
    name = teacher.folder.name if teacher.folder else str(teacher.architecture.base["name"])
    log.info("distilling %s into %s for %s", name, options.model, how_long(fit_options))
    files = files and files.of_run(describe_run(options, data, classifier.module, teacher.module))
    loss = DistillationLoss(
        teacher.module.to(fit_options.device, memory_format=torch.channels_last),  # type: ignore[call-overload]  # not in the stub
        label_map(teacher.architecture.class_names, classifier.architecture.class_names).to(fit_options.device),
        temperature=options.temperature,
        alpha=options.alpha,
    )
    view = teacher_view(teacher, data)
    names = classifier.architecture.class_names
    trained = fit(classifier.module, names, data, fit_options, loss, progress, view, files)
    detail = training_detail("distill", data, fit_options, trained)
    detail |= {
        "teacher": name,
        "teacher_sha256": weights_sha256(teacher.folder) if teacher.folder else None,
        "temperature": options.temperature,
        "alpha": options.alpha,
    }
    architecture = with_detail(classifier.architecture, detail)
    steps = (*architecture.compression_steps, f"distill: {how_long(fit_options)} from {name}")
    return dataclasses.replace(classifier, architecture=dataclasses.replace(architecture, compression_steps=steps))


def teacher_view(teacher: Classifier, data: ImageSet) -> ImageSet | None:
    """The images of `data` as the teacher wants them, or None where that is how the student has them."""
    wanted = teacher.architecture.preprocessing
    if wanted == data.preprocessing:
        return None
    shown = (show_size(wanted.crop), show_size(wanted.resize))
    log.info("the teacher sees the images in its own preprocessing: %s pixels of %s", *shown)
    return data.prepared(wanted)


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
