"""Distilling a teacher into a classifier, with its record in the architecture."""

from __future__ import annotations

import dataclasses
import logging

import torch

from slimkit.core.architecture import with_detail
from slimkit.core.data import ImageSet, label_map
from slimkit.core.distillation.known_logits import ask_about_views, know_logits
from slimkit.core.distillation.losses import DistillationLoss, network_as_teacher
from slimkit.core.distillation.teacher import open_teacher, require_knowledge, teacher_view
from slimkit.core.folder import Classifier
from slimkit.core.models.lineage import weights_sha256
from slimkit.core.options import DISTILL_EPOCHS, DistillOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.training.files import TrainingFiles
from slimkit.core.training.identity import describe_run
from slimkit.core.training.loop import FitOptions, fit
from slimkit.core.training.ranks import ALONE, Ranks
from slimkit.core.training.stage import fit_options_of, how_long, training_detail

log = logging.getLogger("slimkit")


def ask_teacher(
    classifier: Classifier, data: ImageSet, options: DistillOptions, seconds: float, progress: Progress = silent
) -> int:
    """How many of `options.views` the teacher has answered in about so many `seconds`: see `ask_about_views`.

    Raises as `distill`.
    """
    fit_options = fit_options_of(options, 0, progressive=False)
    teacher, view, _ = _open_knowing(classifier, data, options, fit_options, progress)
    return ask_about_views(teacher, view or data, fit_options, seconds, progress)


def distill(
    classifier: Classifier,
    data: ImageSet,
    options: DistillOptions,
    progress: Progress = silent,
    files: TrainingFiles | None = None,
    ranks: Ranks = ALONE,
) -> Classifier:
    """Train `classifier` (in place) on the labels of `data` and the logits of the teacher that `options` name.

    The training is kept in `files`. All of `ranks` give the same.

    Raises UsageError for impossible options or where no teacher can be found, ModelError where training diverges.
    """
    epochs = DISTILL_EPOCHS if options.epochs is None else options.epochs
    fit_options = fit_options_of(options, epochs, progressive=False, ranks=ranks)
    teacher, view, accuracy = _open_knowing(classifier, data, options, fit_options, progress)
    name = _name_of(teacher)
    log.info("distilling %s into %s for %s", name, options.model, how_long(fit_options))
    files = files and files.of_run(describe_run(options, data, classifier.module, teacher.module, ranks=ranks))
    names = classifier.architecture.class_names
    classes = label_map(teacher.architecture.class_names, names).to(fit_options.device)
    if fit_options.views is None:
        answers = network_as_teacher(teacher.module, classes)
    else:
        answers = know_logits(teacher, view or data, classes, fit_options, progress)
        view = None
    loss = DistillationLoss(answers, options.temperature, options.alpha, options.method)
    trained = fit(classifier.module, names, data, fit_options, loss, progress, view, files)
    detail = training_detail("distill", data, fit_options, trained)
    detail |= {
        "teacher": name,
        "teacher_sha256": weights_sha256(teacher.folder) if teacher.folder else None,
        "teacher_held_out_accuracy": round(accuracy, 3),
        "method": options.method,
        "temperature": options.temperature,
        "alpha": options.alpha,
    }
    architecture = with_detail(classifier.architecture, detail)
    steps = (*architecture.compression_steps, f"distill: {how_long(fit_options)} from {name}")
    return dataclasses.replace(classifier, architecture=dataclasses.replace(architecture, compression_steps=steps))


def _name_of(teacher: Classifier) -> str:
    """As the log and the record say it."""
    return teacher.folder.name if teacher.folder else str(teacher.architecture.base["name"])


def _open_knowing(
    student: Classifier, data: ImageSet, options: DistillOptions, fit_options: FitOptions, progress: Progress
) -> tuple[Classifier, ImageSet | None, float]:
    """The teacher, on the device; what it sees, where that is not what the student sees; and its accuracy in %."""
    teacher = open_teacher(student, data, options)
    view = teacher_view(teacher, data)
    accuracy = require_knowledge(teacher, view or data, _name_of(teacher), fit_options.device, progress)
    teacher.module.to(fit_options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stub
    return teacher, view, accuracy
