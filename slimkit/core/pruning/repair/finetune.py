"""What trains a network after its cut and repair, where that is asked: the uncut network's answers, then the labels."""

from __future__ import annotations

import dataclasses
import logging

import torch.nn.functional as F
from torch import Tensor

from slimkit.core.architecture import with_detail
from slimkit.core.data import ImageSet
from slimkit.core.device import resolve_device
from slimkit.core.folder import Classifier
from slimkit.core.options import PruneOptions, TrainOptions
from slimkit.core.progress import Progress
from slimkit.core.pruning.choose.search import Finetune
from slimkit.core.pruning.repair.tune import tune
from slimkit.core.training.loop import fit
from slimkit.core.training.stage import fit_options_of, training_detail
from slimkit.core.training.views import Batch

log = logging.getLogger("slimkit")


def finetuner(uncut: Classifier, data: ImageSet, options: PruneOptions, progress: Progress) -> Finetune | None:
    """What trains a network that was cut out of `uncut`; None where `options` ask for nothing."""
    if options.tune_minutes == 0 and options.finetune_epochs == 0:
        return None
    device, minutes = resolve_device(options.device), options.tune_minutes

    def finetune(cut: Classifier) -> Classifier:
        if minutes:
            tuned = tune(cut, uncut.module, data, minutes=minutes, seed=options.seed, device=device, progress=progress)
            log.info(tuned.note)
            cut = tuned.classifier
        return _on_labels(cut, data, options, progress) if options.finetune_epochs else cut

    return finetune


def _on_labels(classifier: Classifier, data: ImageSet, options: PruneOptions, progress: Progress) -> Classifier:
    """Trained on the labels alone, by the loop that `train` uses."""
    as_training = TrainOptions(device=options.device, seed=options.seed, optimizer="adam")
    fit_options = fit_options_of(as_training, options.finetune_epochs, progressive=False)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits, batch.labels, label_smoothing=as_training.label_smoothing)

    trained = fit(classifier.module, classifier.architecture.class_names, data, fit_options, loss, progress)
    detail = training_detail("finetune", data, fit_options, trained)
    return dataclasses.replace(classifier, architecture=with_detail(classifier.architecture, detail))
