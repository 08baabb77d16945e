"""A model's latency beside its baseline's and its ONNX export's, timed in turn, each in a process of its own."""

from __future__ import annotations

import json
import logging
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from slimkit.core.baseline import open_baseline
from slimkit.core.data import ImageSet, evaluation_input, random_images
from slimkit.core.environment import describe_environment
from slimkit.core.errors import ModelError
from slimkit.core.export import to_onnx
from slimkit.core.files import write_atomically
from slimkit.core.folder import Classifier, changed_code, read_architecture, read_folder, weights_name
from slimkit.core.measure.latency import Latency, Target, measure_latencies
from slimkit.core.measure.size import size_mb
from slimkit.core.models.resolve import is_folder, materialize, open_model_and_data
from slimkit.core.options import BenchmarkOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.run import checked

log = logging.getLogger("slimkit")

CHECKED_INPUTS = 64


@dataclass(frozen=True)
class Timing:
    """One network in one runtime."""

    role: str  # "model", "baseline", "onnx" or "model, 1 thread"
    name: str  # the model argument, or the folder
    runtime: str  # "torch" or "onnxruntime"
    size: float  # MB, of the weights file or the .onnx file
    latency: Latency

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return vars(self) | {"latency": self.latency.to_dict()}


@dataclass(frozen=True)
class CrossCheck:
    """How far the ONNX export's logits in ONNX Runtime are from the model's own."""

    inputs: str  # what they were compared on
    count: int
    agreement: float  # % of the inputs with the same top-1 answer
    max_difference: float  # the largest absolute difference of two logits
    max_logit: float  # the largest absolute logit of the model, to judge it by


@dataclass(frozen=True)
class BenchmarkReport:
    """Everything that `slimkit benchmark` measured. The model comes first among the timings."""

    model: str
    timings: tuple[Timing, ...]
    onnx_check: CrossCheck | None
    changed_code: tuple[str, ...]  # files in the folder that are not slimkit's own, which alone was run
    environment: dict[str, Any]

    def speedup(self, timing: Timing) -> float:
        """How many times faster the model is than `timing`, by the medians."""
        return timing.latency.median / self.timings[0].latency.median

    def to_dict(self) -> dict[str, Any]:
        """The content of benchmark.json."""
        return {
            "model": self.model,
            "timings": [each.to_dict() | {"model_speedup": self.speedup(each)} for each in self.timings],
            "onnx_check": asdict(self.onnx_check) if self.onnx_check else None,
            "changed_code": list(self.changed_code),
            "environment": self.environment,
        }


@checked
def run_benchmark(options: BenchmarkOptions, progress: Progress = silent) -> BenchmarkReport:
    """Time the model, its baseline where there is one and its ONNX export; write the report to `options.output`.

    The logits are compared on held-out images of `options.data`; without data, on random images. Raises FolderError
    where the output exists, ModelError when one of them can't be run, and what reading the model and the data raises.
    """
    classifier, data = _open(options, progress)
    baseline = open_baseline(options, classifier)
    with ExitStack() as stack:
        folder = stack.enter_context(materialize(classifier))
        entries = [("model", options.model, folder)]
        if baseline:
            name = str(baseline.folder or options.baseline)
            entries.append(("baseline", name, stack.enter_context(materialize(baseline))))
        check = None
        if options.onnx:
            file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slimkit-"))) / "model.onnx"
            try:
                file.write_bytes(to_onnx(classifier))
            except ModelError as error:
                log.warning("ONNX is not timed: %s", error)
            else:
                entries.append(("onnx", options.model, file))
                check = compare_logits(classifier, file, data)
        timings = _time(entries, folder if torch.get_num_threads() > 1 else None, options, progress)
    changed = changed_code(classifier.folder) if classifier.folder else ()
    report = BenchmarkReport(options.model, timings, check, changed, describe_environment())
    write_atomically(options.output, json.dumps(report.to_dict(), indent=2) + "\n")
    return report


def compare_logits(classifier: Classifier, file: Path, data: ImageSet | None) -> CrossCheck:
    """Run the model here and its export `file` in ONNX Runtime on the same inputs."""
    shape = classifier.architecture.input_shape
    images = random_images(shape, CHECKED_INPUTS) if data is None else _held_out_images(data)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    theirs = torch.from_numpy(np.asarray(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]))
    with torch.inference_mode():
        ours = classifier.module(images)
    return CrossCheck(
        inputs="random images" if data is None else f"{'held-out ' if data.can_measure else ''}images of {data.name}",
        count=len(images),
        agreement=100 * (ours.argmax(1) == theirs.argmax(1)).double().mean().item(),
        max_difference=(ours - theirs).abs().max().item(),
        max_logit=ours.abs().max().item(),
    )


def _open(options: BenchmarkOptions, progress: Progress) -> tuple[Classifier, ImageSet | None]:
    """The model, and the data where they are named or the model needs them for its classes."""
    if is_folder(options.model) and options.data is None and options.weights is None and not options.pretrained:
        return read_folder(Path(options.model)), None
    classifier, data = open_model_and_data(options, progress=progress)
    return classifier, data


def _held_out_images(data: ImageSet) -> Tensor:
    """Up to CHECKED_INPUTS images, evenly spread over those held out of training, or over all."""
    images = data.holdout if data.can_measure else data.train
    order = torch.linspace(0, len(images) - 1, min(CHECKED_INPUTS, len(images))).long()
    pixels, _, _ = next(iter(images.batches(order, CHECKED_INPUTS)))
    return evaluation_input(pixels, data.preprocessing)


def _time(
    entries: list[tuple[str, str, Path]], on_one_thread: Path | None, options: BenchmarkOptions, progress: Progress
) -> tuple[Timing, ...]:
    """Of each entry, then of the model's folder once more on one thread, where that is asked for."""
    targets = [Target(path) for _, _, path in entries]
    if on_one_thread:
        entries = [*entries, ("model, 1 thread", options.model, on_one_thread)]
        targets.append(Target(on_one_thread, threads=1))
    latencies = measure_latencies(
        targets,
        runs=options.runs,
        batch_size=options.batch_size,
        threads=options.threads,
        progress=progress,
    )
    return tuple(_timing(*entry, latency) for entry, latency in zip(entries, latencies, strict=True))


def _timing(role: str, name: str, path: Path, latency: Latency) -> Timing:
    if path.suffix == ".onnx":
        return Timing(role, name, "onnxruntime", size_mb(path), latency)
    return Timing(role, name, "torch", size_mb(path / weights_name(read_architecture(path).model_type)), latency)
