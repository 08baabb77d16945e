"""Whether the teacher helps: the same training from the same weights on the labels alone, with several seeds."""

from __future__ import annotations

import copy
import dataclasses
import logging
import statistics
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from slimkit.core.data import ImageSet
from slimkit.core.distillation.stage import distill
from slimkit.core.folder import Classifier
from slimkit.core.measure.accuracy import evaluate_held_out
from slimkit.core.options import DISTILL_EPOCHS, DistillOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.training.loop import fit
from slimkit.core.training.stage import fit_options_of
from slimkit.core.training.views import Batch

log = logging.getLogger("slimkit")


@dataclass(frozen=True)
class Control:
    """Accuracies in % on held-out images, one for each seed; both trainings keep their best epoch by these images."""

    taught: tuple[float, ...]
    on_labels: tuple[float, ...]

    def figures(self) -> dict[str, float | int]:
        """Means, and the standard deviations where there are several seeds."""
        found: dict[str, float | int] = {"control_seeds": len(self.taught)}
        for name, accuracies in (("with_teacher", self.taught), ("labels_alone", self.on_labels)):
            found[f"accuracy_{name}"] = statistics.fmean(accuracies)
            if len(accuracies) > 1:
                found[f"accuracy_{name}_deviation"] = statistics.stdev(accuracies)
        return found


def compare_with_labels(
    classifier: Classifier, data: ImageSet, options: DistillOptions, first: float, progress: Progress = silent
) -> Control:
    """Distil with the seeds that follow the option's own, whose accuracy is `first`, and train without with all.

    classifier: the student before its training; it stays as it is.
    """
    taught, on_labels = [first], []
    for seed in range(options.seed, options.seed + options.control):
        seeded = dataclasses.replace(options, seed=seed)
        if seed > options.seed:
            taught.append(evaluate_held_out(distill(_copy(classifier), data, seeded, progress), data).top1)
        on_labels.append(evaluate_held_out(_train_on_labels(_copy(classifier), data, seeded, progress), data).top1)
        log.info("seed %d: %.2f %% with the teacher, %.2f %% on labels alone", seed, taught[-1], on_labels[-1])
    return Control(tuple(taught), tuple(on_labels))


def _train_on_labels(classifier: Classifier, data: ImageSet, options: DistillOptions, progress: Progress) -> Classifier:
    epochs = DISTILL_EPOCHS if options.epochs is None else options.epochs
    how = fit_options_of(options, epochs, progressive=False)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return functional.cross_entropy(logits, batch.labels)

    fit(classifier.module, classifier.architecture.class_names, data, how, loss, progress)
    return classifier


def _copy(classifier: Classifier) -> Classifier:
    return dataclasses.replace(classifier, module=copy.deepcopy(classifier.module))
