"""The stages that make a model: each opens a model and its data, does its work and writes a model folder.

The commands and the recipe of `slimkit compress` are made of these.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from slimkit.core.architecture import Architecture
from slimkit.core.coding.classifier import stored_bytes
from slimkit.core.data import ImageSet, decoded_once
from slimkit.core.distillation.control import compare_with_labels
from slimkit.core.distillation.stage import ask_teacher, distill
from slimkit.core.errors import ModelError
from slimkit.core.files import write_atomically
from slimkit.core.folder import Classifier, weights_file, write_folder
from slimkit.core.measure.accuracy import evaluate_held_out
from slimkit.core.measure.size import size_breakdown
from slimkit.core.models.lineage import record_baseline, remember
from slimkit.core.models.resolve import open_model_and_data
from slimkit.core.models.seen import record_data
from slimkit.core.options import DistillOptions, PruneOptions, QuantizeOptions, TrainOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.pruning.choose.sensitivity import Sensitivity
from slimkit.core.pruning.choose.sensitivity_plot import draw_sensitivity
from slimkit.core.pruning.repair.finetune import finetuner
from slimkit.core.pruning.stage import measure_sensitivity, prune_to_budget
from slimkit.core.quantization.stage import quantize_for
from slimkit.core.run import checked, output_files
from slimkit.core.torchrun import launch
from slimkit.core.training.curves import draw_curves
from slimkit.core.training.files import TrainingFiles
from slimkit.core.training.ranks import Ranks, first_of_machine_first, joined_ranks
from slimkit.core.training.stage import train

log = logging.getLogger("slimkit")

LongRun = TypeVar("LongRun", TrainOptions, DistillOptions)


@dataclass(frozen=True)
class StageResult:
    """What a stage wrote, and what was measured of it."""

    folder: Path
    architecture: Architecture
    figures: dict[str, Any]
    notes: tuple[str, ...] = ()  # what was left alone, and why


@dataclass(frozen=True)
class SensitivityResult:
    """The report on the sensitivity of a network's groups, and where it was written."""

    file: Path  # JSON
    picture: Path  # PNG
    report: Sensitivity


@checked
def run_train(options: TrainOptions, progress: Progress = silent) -> StageResult:
    """Train a network on the data's training images and write it to `options.output`. Raises SlimkitError."""
    return _run_training(options, "Training", train, progress, options.width)


@checked
def run_prune(options: PruneOptions, progress: Progress = silent) -> StageResult:
    """Cut channels until the budget of `options` is kept, repair the rest and write the result to `options.output`.

    Raises MissedError, and writes nothing, where the budget can't be kept or the proof of the cut fails.
    """
    classifier, data = open_model_and_data(options, may_resize=True, progress=progress)
    _require_float(classifier)
    _require_labels(data, options)
    data = data.without_unreadable(progress, few=not options.finetune_epochs)
    pruned = prune_to_budget(classifier, data, options, finetuner(classifier, data, options, progress), progress)
    if pruned.result.report.shortfall:
        log.warning(pruned.result.report.shortfall)
    made, notes = pruned.result.classifier, pruned.notes
    return _write(made, classifier, data, options, progress, notes, pruned.figures)


@checked
def run_sensitivity(options: PruneOptions, progress: Progress = silent) -> SensitivityResult:
    """Report what each group of channels would cost and save, as JSON and as a picture beside `options.output`."""
    file, picture = output_files(options)
    classifier, data = open_model_and_data(options, may_resize=True, progress=progress)
    _require_float(classifier)
    data.require_labels("--sensitivity")
    report = measure_sensitivity(classifier, data, options, progress)
    write_atomically(picture, draw_sensitivity(report))
    write_atomically(file, json.dumps(report.to_dict(), indent=2) + "\n")
    return SensitivityResult(file, picture, report)


@checked
@decoded_once()
def run_distill(options: DistillOptions, progress: Progress = silent) -> StageResult:
    """Train a student on the labels and a teacher's logits, and write it to `options.output`.

    With `options.control` the figures tell, too, what the same training comes to without a teacher.
    """
    result = _run_training(options, "Distillation", distill, progress)
    if not options.control:
        return result
    classifier, data = open_model_and_data(options, may_resize=True, progress=progress)
    compared = compare_with_labels(
        classifier, data.without_unreadable(progress), options, result.figures["accuracy"], progress
    )
    return dataclasses.replace(result, figures=result.figures | compared.figures())


@checked
def run_ask(options: DistillOptions, seconds: float, progress: Progress = silent) -> int:
    """Let the teacher answer up to `options.views` views for trainings to come; gives how many it did in `seconds`.

    Writes no model. Raises as `run_distill`.
    """
    classifier, data = open_model_and_data(options, may_resize=True, progress=progress)
    return ask_teacher(classifier, data.without_unreadable(progress), options, seconds, progress)


def _run_training(
    options: LongRun,
    what: str,
    work: Callable[[Classifier, ImageSet, LongRun, Progress, TrainingFiles | None, Ranks], Classifier],
    progress: Progress,
    width: int | None = None,
) -> StageResult:
    """Do `work` on the images that can be read, and write its result; its checkpoints are gone then.

    Where torchrun started several processes they share the work; the first of them writes.
    """
    files = TrainingFiles.of(options) if launch().is_first else None
    with joined_ranks(options.device, options.batch_size) as ranks:
        with first_of_machine_first(ranks):
            classifier, data = open_model_and_data(options, width=width, may_resize=True, progress=progress)
        _require_float(classifier)
        data.require_labels(what)
        data = data if options.epochs == 0 else data.without_unreadable(progress)
        made = work(classifier, data, options, progress, files, ranks)

        def write() -> StageResult:
            result = _write(made, classifier, data, options, progress)
            if files:
                if options.plot and options.epochs != 0:
                    write_atomically(files.curves, draw_curves(files.metrics))
                files.remove()
            return result

        return ranks.from_first(write)


@checked
def run_quantize(options: QuantizeOptions, progress: Progress = silent) -> StageResult:
    """Turn every Conv2d and Linear to int8 and write the submission to `options.output`."""
    classifier, data = open_model_and_data(options, may_resize=True, progress=progress)
    _require_float(classifier)
    _require_labels(data, options)
    data = data.without_unreadable(progress, few=not options.qat_epochs)
    made = quantize_for(classifier, data, options, progress)
    known = made.fidelity.figures()
    result = _write(made.classifier, classifier, data, options, progress, made.notes, known)
    sizes = dataclasses.asdict(size_breakdown(stored_bytes(made.classifier), weights_file(options.output)))
    return dataclasses.replace(result, figures=result.figures | {f"{part}_bytes": n for part, n in sizes.items()})


def _require_labels(data: ImageSet, options: PruneOptions | QuantizeOptions) -> None:
    """Raise DataError where an option trains or measures on labels, and the images have none."""
    unasked = {"finetune_epochs": 0, "qat_epochs": 0, "max_drop": None}
    for name, value in unasked.items():
        if getattr(options, name, value) != value:
            data.require_labels(f"--{name.replace('_', '-')}")


def _require_float(classifier: Classifier) -> None:
    if classifier.architecture.is_quantized:
        raise ModelError(
            f"{classifier.folder} is int8 already: its weights can't be trained, cut or quantized again.",
            "Give the float model that it was made from.",
        )


def _write(
    made: Classifier,
    source: Classifier,
    data: ImageSet,
    options: TrainOptions | PruneOptions | DistillOptions | QuantizeOptions,
    progress: Progress,
    notes: tuple[str, ...] = (),
    known: dict[str, Any] | None = None,
) -> StageResult:
    """Measure `made` on the held-out images and write it, with the figures that are `known`, as a model folder."""
    architecture = made.architecture
    if not isinstance(options, TrainOptions):
        architecture = record_baseline(architecture, source)
    if not (isinstance(options, TrainOptions) and options.epochs == 0):
        architecture = record_data(architecture, data)
    figures = _figures(made, data, progress) | (known or {})
    written = write_folder(Classifier(made.module, architecture), options.output, force=options.force, figures=figures)
    remember(options.output, data.source)
    return StageResult(options.output, written.architecture, figures, notes)


def _figures(classifier: Classifier, data: ImageSet, progress: Progress) -> dict[str, Any]:
    count = classifier.architecture.count
    size = {
        "parameters": classifier.architecture.parameters,
        "macs": classifier.architecture.macs,
        "macs_not_counted": ", ".join(count.not_counted) if count else "",
    }
    if not data.can_measure:
        reason = "no class has two images" if data.is_labelled else f"{data.name} holds photos without classes"
        log.warning("No accuracy was measured: %s.", reason)
        return size
    accuracy = evaluate_held_out(classifier, data, progress=progress)
    return size | {
        "accuracy": accuracy.top1,
        "accuracy_images": accuracy.images,
        "accuracy_split": f"kept out of training on {data.name}",
    }
