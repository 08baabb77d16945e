"""Training a classifier on a data set, with its record in the architecture."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from slimkit.core.architecture import with_detail
from slimkit.core.checks import check_options
from slimkit.core.data import Augmentation, ImageSet
from slimkit.core.device import resolve_device
from slimkit.core.folder import Classifier
from slimkit.core.options import DistillOptions, TrainOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.training.files import TrainingFiles
from slimkit.core.training.identity import describe_run
from slimkit.core.training.loop import FitOptions, Trained, fit
from slimkit.core.training.optimizer import USUAL_DECAYS, USUAL_RATES
from slimkit.core.training.probe import takes_smaller_images
from slimkit.core.training.ranks import ALONE, Ranks
from slimkit.core.training.views import Batch

log = logging.getLogger("slimkit")

_USUAL_EPOCHS = {"digits100": 5}
_EPOCHS = 20  # of any other data set


def train(
    classifier: Classifier,
    data: ImageSet,
    options: TrainOptions,
    progress: Progress = silent,
    files: TrainingFiles | None = None,
    ranks: Ranks = ALONE,
) -> Classifier:
    """Train `classifier` (in place) on the labels of `data`; gives it with the training recorded, and kept in `files`.

    A network with random weights sees small images first, if it can. No epochs at all leave the weights as they are.
    All of `ranks` give the same.
    Raises UsageError for impossible options, ModelError where training diverges.
    """
    has_weights = classifier.folder is not None or options.weights is not None or options.pretrained
    progressive = not has_weights and takes_smaller_images(classifier.module, data.preprocessing)
    epochs = _USUAL_EPOCHS.get(data.name, _EPOCHS) if options.epochs is None else options.epochs
    fit_options = fit_options_of(options, epochs, progressive=progressive, ranks=ranks)
    length = how_long(fit_options)
    log.info("training %s on %d images of %s for %s", options.model, len(data.train), data.name, length)
    files = files and files.of_run(describe_run(options, data, classifier.module, ranks=ranks))

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits, batch.labels, label_smoothing=options.label_smoothing)

    names = classifier.architecture.class_names
    trained = fit(classifier.module, names, data, fit_options, loss, progress, files=files)
    detail = training_detail("train", data, fit_options, trained) | {"label_smoothing": options.label_smoothing}
    return dataclasses.replace(classifier, architecture=with_detail(classifier.architecture, detail))


def fit_options_of(
    options: TrainOptions | DistillOptions, epochs: int, *, progressive: bool, ranks: Ranks = ALONE
) -> FitOptions:
    """Check the options that training and distillation share. Raises UsageError."""
    name, lr, decay = options.optimizer, options.lr, options.weight_decay
    check_options(options)
    return FitOptions(
        epochs=0 if options.minutes else epochs,
        minutes=options.minutes,
        batch_size=options.batch_size,
        optimizer=name,
        lr=USUAL_RATES[name] if lr is None else lr,
        weight_decay=USUAL_DECAYS[name] if decay is None else decay,
        seed=options.seed,
        device=resolve_device(options.device),
        progressive=progressive,
        ranks=ranks,
        augmentation=augmentation_of(options),
        ema=options.ema,
        views=options.views if isinstance(options, DistillOptions) else None,
    )


def augmentation_of(options: TrainOptions | DistillOptions) -> Augmentation:
    """How the options say that training images are changed."""
    return Augmentation(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Augmentation)})


def how_long(options: FitOptions) -> str:
    """As the log and the record say it: 5 epochs, 30 minutes."""
    return f"{options.minutes:g} minutes" if options.minutes else f"{options.epochs} epochs"


def training_detail(stage: str, data: ImageSet, options: FitOptions, trained: Trained) -> dict[str, Any]:
    """The entry of `training_details` for one run of training."""
    return {
        "stage": stage,
        "data": data.name,
        "train_images": len(data.train),
        "epochs": round(trained.steps / trained.batches, 3) if options.minutes else options.epochs,
        "minutes": options.minutes,
        "steps": trained.steps,
        "batch_size": options.batch_size,
        "optimizer": options.optimizer,
        "learning_rate": options.lr,
        "weight_decay": options.weight_decay,
        "augmentation": dataclasses.asdict(options.augmentation),
        "ema": options.ema,
        "views": options.views,
        "seed": options.seed,
        "teacher": None,
        "processes": options.ranks.count,
        "threads": trained.threads,
        "seconds": round(trained.seconds, 1),
        "precision": [epoch.precision for epoch in trained.epochs],
        "loss": [round(epoch.loss, 4) for epoch in trained.epochs],
        "held_out_accuracy": [round(epoch.accuracy, 3) for epoch in trained.epochs],
        "rollbacks": [dataclasses.asdict(rollback) for rollback in trained.rollbacks],
    }
