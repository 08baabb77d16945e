"""What is timed: each model in each backend, the baseline, and the files that their processes read."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from slimkit.core.baseline import open_baseline
from slimkit.core.data import ImageSet, evaluation_input, random_images
from slimkit.core.errors import ModelError, UsageError
from slimkit.core.export import to_onnx
from slimkit.core.folder import Classifier, read_folder, weights_name
from slimkit.core.measure.size import size_mb
from slimkit.core.models.resolve import is_folder, materialize, open_model_and_data
from slimkit.core.options import Backend, BenchmarkOptions, ModelOptions
from slimkit.core.progress import Progress

log = logging.getLogger("slimkit")

Role = Literal["model", "baseline"]

IMAGES, BATCHES = 64, 2  # that a network is shown, at least
READ_ONNX = ("onnxruntime", "openvino")
EXTRAS = {"openvino": "openvino"}  # backends that not everyone has, and what of slimkit's extras brings them


@dataclass(frozen=True, eq=False)
class Model:
    """A model with the images that it is shown."""

    role: Role
    name: str  # the model argument, or the folder
    classifier: Classifier
    data: ImageSet | None  # that the images are of; None: they are random
    images: Tensor  # normalized, float32 [whole batches, channels, height, width]
    distinct: int  # how many of them, from the first on, come no second time
    images_are: str  # in words


@dataclass(frozen=True)
class Candidate:
    """A model in a backend."""

    model: Model
    backend: Backend
    threads: int
    path: Path  # its model folder, or its .onnx file
    size: float  # MB, of the weights file or the .onnx file
    room: Path  # a folder for what its process reads and writes

    @property
    def images(self) -> Path:
        """An .npy file of the model's images."""
        return self.room / "images.npy"

    @property
    def logits(self) -> Path:
        """An .npy file where its process puts its answers to them."""
        return self.room / f"{self.backend}-{self.threads}.npy"


def require_backends(backends: Sequence[Backend]) -> None:
    """Raise UsageError for a backend that is not installed; it isn't imported."""
    for name in backends:
        if name in EXTRAS and importlib.util.find_spec(EXTRAS[name]) is None:
            raise UsageError(
                f"--backend {name}: {name} is not installed.", f'Run `pip install "slimkit[{EXTRAS[name]}]"`.'
            )


@contextmanager
def open_candidates(options: BenchmarkOptions, progress: Progress) -> Iterator[tuple[Candidate, ...]]:
    """All that is to be timed; their files are there while the context is open.

    The models come first, each in every backend, then the baseline in the first backend, then the first candidate on
    one thread, where the others have more. Raises as `run_benchmark`.
    """
    models = _open_models(options, progress)
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        found: list[Candidate] = []
        for model in models:
            folder = stack.enter_context(materialize(model.classifier))
            room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slimkit-")))
            np.save(room / "images.npy", model.images.numpy())
            backends = options.backend if model.role == "model" else options.backend[:1]
            files = _files(model, backends, folder, room)
            found += [Candidate(model, name, threads, *file, room) for name, file in files.items()]
        if not found:
            raise ModelError("No model can be timed in these backends.", "Add torch to --backend.")
        yield (*found, *([dataclasses.replace(found[0], threads=1)] if threads > 1 else []))


def _open_models(options: BenchmarkOptions, progress: Progress) -> list[Model]:
    """The models that are named, each once, and the baseline of the first where there is one."""
    opened: list[Model] = []
    for name in dict.fromkeys((options.model, *options.others)):
        own = options if name == options.model else options.naming(name, None)
        opened.append(_with_images("model", name, *_open(own, progress), options.batch_size))
    first, data = opened[0].classifier, opened[0].data
    if baseline := open_baseline(options, first):
        name = str(baseline.folder or options.baseline)
        data = data and data.prepared(baseline.architecture.preprocessing)
        opened.append(_with_images("baseline", name, baseline, data, options.batch_size))
    return opened


def _open(options: ModelOptions, progress: Progress) -> tuple[Classifier, ImageSet | None]:
    """A model, and the data where they are named or the model needs them for its classes."""
    if is_folder(options.model) and options.data is None and options.weights is None and not options.pretrained:
        return read_folder(Path(options.model)), None
    return open_model_and_data(options, progress=progress)


def _with_images(role: Role, name: str, classifier: Classifier, data: ImageSet | None, batch_size: int) -> Model:
    """A model with whole batches of images, at least IMAGES and BATCHES; few images come several times."""
    wanted = batch_size * max(BATCHES, math.ceil(IMAGES / batch_size))
    if data is None:
        images, what = random_images(classifier.architecture.input_shape, wanted), "random images"
    else:
        images = _held_out_images(data, wanted)
        what = f"{'held-out ' if data.can_measure else ''}images of {data.name}"
    return Model(role, name, classifier, data, images[torch.arange(wanted) % len(images)], len(images), what)


def _held_out_images(data: ImageSet, most: int) -> Tensor:
    """Evenly spread over those held out of training, or over all."""
    images = data.holdout if data.can_measure else data.train
    order = torch.linspace(0, len(images) - 1, min(most, len(images))).long()
    pixels, _, _ = next(iter(images.batches(order, len(order))))
    return evaluation_input(pixels, data.preprocessing)


def _files(model: Model, backends: Sequence[Backend], folder: Path, room: Path) -> dict[Backend, tuple[Path, float]]:
    """What each backend reads of a model, and its size in MB; without those that the model can't be exported for."""
    weights = size_mb(folder / weights_name(model.classifier.architecture.model_type))
    found: dict[Backend, tuple[Path, float]] = {name: (folder, weights) for name in backends if name not in READ_ONNX}
    onnx_backends = [name for name in backends if name in READ_ONNX]
    if onnx_backends:
        file = room / "model.onnx"
        try:
            file.write_bytes(to_onnx(model.classifier))
        except ModelError as error:
            log.warning("%s is not timed in %s: %s", model.name, " and ".join(onnx_backends), error)
        else:
            found |= {name: (file, size_mb(file)) for name in onnx_backends}
    return {name: found[name] for name in backends if name in found}
