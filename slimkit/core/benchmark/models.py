"""The models that are compared, each with the images that it is shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from slimkit.core.architecture import Preprocessing
from slimkit.core.baseline import named_baseline, open_baseline
from slimkit.core.data import ImageSet, evaluation_input, random_images
from slimkit.core.folder import Classifier
from slimkit.core.models.classes import numbered
from slimkit.core.models.resolve import is_folder, open_folder, open_model_and_data
from slimkit.core.options import BenchmarkOptions, ModelOptions
from slimkit.core.progress import Progress
from slimkit.core.sizes import as_size
from slimkit.core.strangers.convention import Submission, is_foreign
from slimkit.core.strangers.opened import Launch, opened, read_permitted
from slimkit.core.strangers.round_trips import answers_unwatched
from slimkit.core.strangers.stated import open_data_for_stranger, stated_size
from slimkit.standalone.model_loader import sides

Role = Literal["model", "baseline"]

IMAGES, BATCHES = 64, 2  # that a network is shown, at least
USUAL_SIDE = 224  # pixels of a stranger's images, where nothing is said of them
COLOURS = 3  # channels of a stranger's images


@dataclass(frozen=True, eq=False)
class Foreign:
    """A model that slimkit did not write."""

    submission: Submission  # a copy
    launch: Launch
    logits: Tensor  # what it answers to the distinct images where no clock runs: float32 [distinct, classes]
    walls: dict[str, str]  # around its process


@dataclass(frozen=True, eq=False)
class Model:
    """A model with the images that it is shown."""

    role: Role
    name: str  # the model argument, or the folder
    source: Classifier | Foreign
    data: ImageSet | None  # that the images are of; None: they are random
    images: Tensor  # normalized, float32 [whole batches, channels, height, width]
    distinct: int  # how many of them, from the first on, come no second time
    images_are: str  # in words

    @property
    def folder(self) -> Path | None:
        """Where slimkit wrote it; None of a stranger's, and of one that was never written."""
        return self.source.folder if isinstance(self.source, Classifier) else None


@contextmanager
def open_models(options: BenchmarkOptions, progress: Progress) -> Iterator[list[Model]]:
    """The models that are named, each once, and the baseline of the first where there is one.

    Copies of strangers' folders are there while the context is open. Raises as `run_benchmark`.
    """
    with ExitStack() as stack:
        found = [
            _open("model", options if name == options.model else options.naming(name, None), options, stack, progress)
            for name in dict.fromkeys((options.model, *options.others))
        ]
        baseline = _open_baseline(options, found[0], stack, progress)
        yield [*found, *([baseline] if baseline else [])]


def open_own(own: ModelOptions, progress: Progress) -> tuple[Classifier, ImageSet | None]:
    """A model of slimkit's, and the data where they are named or the model needs them for its classes."""
    if is_folder(own.model) and own.data is None and own.weights is None and not own.pretrained:
        return open_folder(own), None
    return open_model_and_data(own, progress=progress)


def _open(role: Role, own: ModelOptions, options: BenchmarkOptions, stack: ExitStack, progress: Progress) -> Model:
    if is_foreign(Path(own.model)):
        return _open_stranger(role, own.model, options, stack, progress)
    return _with_own_images(role, own.model, *open_own(own, progress), options)


def _open_baseline(options: BenchmarkOptions, first: Model, stack: ExitStack, progress: Progress) -> Model | None:
    """What the options name; else what the first model was made from, unless that is a stranger's."""
    named = options.baseline
    if named is not None and is_foreign(Path(named)):
        return _open_stranger("baseline", named, options, stack, progress)
    if isinstance(first.source, Classifier):
        baseline = open_baseline(options, first.source)
    elif named is None:
        return None
    else:
        size = as_size(*first.images.shape[-2:])
        preprocessing = first.data.preprocessing if first.data else Preprocessing(resize=size, crop=size)
        baseline = named_baseline(options, numbered(first.source.logits.shape[1]), preprocessing)
    if baseline is None:
        return None
    data = first.data and first.data.prepared(baseline.architecture.preprocessing)
    return _with_own_images("baseline", str(baseline.folder or named), baseline, data, options)


def _open_stranger(role: Role, name: str, options: BenchmarkOptions, stack: ExitStack, progress: Progress) -> Model:
    """A stranger's model, started once to see that it runs and what it answers. Raises as `opened` and `start`."""
    submission = read_permitted(Path(name), options)
    data = open_data_for_stranger(options, options.data, submission, progress) if options.data else None
    copy, launch = stack.enter_context(opened(submission, options))
    shape = (COLOURS, *sides(options.image_size or stated_size(copy) or USUAL_SIDE))
    images, distinct, images_are = _images(data, shape, options.batch_size)
    with launch(torch.get_num_threads()) as stranger:
        logits = answers_unwatched(stranger, images[:distinct])
    return Model(role, name, Foreign(copy, launch, logits, stranger.walls), data, images, distinct, images_are)


def _with_own_images(
    role: Role, name: str, classifier: Classifier, data: ImageSet | None, options: BenchmarkOptions
) -> Model:
    shown = _images(data, classifier.architecture.input_shape, options.batch_size)
    return Model(role, name, classifier, data, *shown)


def _images(data: ImageSet | None, shape: tuple[int, ...], batch_size: int) -> tuple[Tensor, int, str]:
    """Whole batches, at least IMAGES and BATCHES; how many images differ, and what they are. Few come several times."""
    wanted = batch_size * max(BATCHES, math.ceil(IMAGES / batch_size))
    if data is None:
        images, what = random_images(shape, wanted), "random images"
    else:
        images = _held_out_images(data, wanted)
        what = f"{'held-out ' if data.can_measure else ''}images of {data.name}"
    return images[torch.arange(wanted) % len(images)], len(images), what


def _held_out_images(data: ImageSet, most: int) -> Tensor:
    """Evenly spread over those held out of training, or over all."""
    images = data.holdout if data.can_measure else data.train
    order = torch.linspace(0, len(images) - 1, min(most, len(images))).long()
    pixels, _, _ = next(iter(images.batches(order, len(order))))
    return evaluation_input(pixels, data.preprocessing)
