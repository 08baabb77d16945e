"""Data sets that torchvision knows, downloaded once into the cache folder."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from slimkit.core.compat import import_torchvision
from slimkit.core.data.sources import Collection
from slimkit.core.errors import DataError, NetworkError
from slimkit.core.files import cache_folder
from slimkit.core.progress import Progress
from slimkit.standalone import model_loader

TIMEOUT = 20  # seconds without an answer


@dataclass(frozen=True)
class Recipe:
    """How torchvision's class is asked for the two splits, and where it keeps the labels."""

    cls: str
    train: dict[str, Any]
    test: dict[str, Any]
    labels: str = "_labels"
    flip: bool = True


TRAIN_FLAG: dict[str, Any] = {"train": {"train": True}, "test": {"train": False}, "labels": "targets"}
TRAIN_TEST: dict[str, Any] = {"train": {"split": "train"}, "test": {"split": "test"}}
RECIPES = {
    "cifar10": Recipe("CIFAR10", **TRAIN_FLAG),
    "cifar100": Recipe("CIFAR100", **TRAIN_FLAG),
    "mnist": Recipe("MNIST", **TRAIN_FLAG, flip=False),
    "fashionmnist": Recipe("FashionMNIST", **TRAIN_FLAG),
    "imagenette": Recipe("Imagenette", {"split": "train"}, {"split": "val"}, labels="_samples"),
    "flowers102": Recipe("Flowers102", **TRAIN_TEST),
    "food101": Recipe("Food101", **TRAIN_TEST),
    "oxford_iiit_pet": Recipe("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
    "stl10": Recipe("STL10", **TRAIN_TEST, labels="labels"),
    "svhn": Recipe("SVHN", **TRAIN_TEST, labels="labels", flip=False),
    "dtd": Recipe("DTD", **TRAIN_TEST),
}
NAMES = tuple(RECIPES)


class TorchvisionImages:
    """Images of a torchvision data set, with their classes in another order."""

    pixel_type = torch.uint8

    def __init__(self, dataset: Any, labels: Tensor) -> None:
        self.labels = labels
        self._dataset = dataset

    def name(self, index: int) -> str:
        """As `Source.name`."""
        return str(index)

    def image(self, index: int, channels: int = 3) -> Image.Image:
        """As `Source.image`."""
        try:
            return model_loader.with_channels(self._dataset[index][0], channels)
        except (OSError, ValueError) as error:
            raise DataError(
                f"Image {index} of {type(self._dataset).__name__} can't be read: {error}.",
                f"Remove the data set from {cache_folder()}, so that it is downloaded again.",
            ) from error


def torchvision_set(name: str, progress: Progress) -> Collection:
    """The data set `name`, downloaded first where it isn't in the cache. Raises NetworkError."""
    recipe = RECIPES[name]
    cls = getattr(import_torchvision().datasets, recipe.cls)
    root = cache_folder() / name
    if not root.is_dir():
        _download(cls, recipe, root, progress)
    datasets = {split: cls(root, **arguments) for split, arguments in _splits(recipe).items()}
    return as_collection(name, datasets, recipe)


def as_collection(name: str, datasets: dict[str, Any], recipe: Recipe) -> Collection:
    """The splits with their classes sorted by name as strings, whatever torchvision's order."""
    own_names = tuple(map(model_loader.normalized, _class_names(datasets["train"])))
    class_names = tuple(sorted(own_names))
    places = torch.tensor([class_names.index(own) for own in own_names])
    labels = {split: places[_labels(dataset, recipe.labels)] for split, dataset in datasets.items()}
    sources = {split: TorchvisionImages(dataset, labels[split]) for split, dataset in datasets.items()}
    return Collection(name, class_names, sources, flip=recipe.flip, published_order=own_names)


def _splits(recipe: Recipe) -> dict[str, dict[str, Any]]:
    return {"train": recipe.train, "test": recipe.test}


def _class_names(dataset: Any) -> list[str]:
    """The class names in the order of the labels; SVHN has none, its classes are the ten digits."""
    names = getattr(dataset, "classes", [str(digit) for digit in range(10)])
    return [name if isinstance(name, str) else name[0] for name in names]


def _labels(dataset: Any, attribute: str) -> Tensor:
    values = getattr(dataset, attribute)
    if attribute == "_samples":
        values = [label for _, label in values]
    return torch.as_tensor(values, dtype=torch.int64)


def _download(cls: Any, recipe: Recipe, root: Path, progress: Progress) -> None:
    """Download into a folder beside `root` and rename it: what is in the cache is whole."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    except OSError as error:
        reason = f"{root.parent} can't be written: {error.strerror}."
        raise DataError(reason, "Set SLIMKIT_CACHE to a folder that can.") from error
    try:
        with progress(f"downloading {root.name}", 1) as advance, _quiet(), _timeout():
            for arguments in _splits(recipe).values():
                cls(staging, **arguments, download=True)
            advance(1)
        staging.replace(root)
    except (OSError, RuntimeError) as error:  # torchvision raises RuntimeError where a download is incomplete
        raise NetworkError(
            f"{root.name} can't be downloaded: {error}.",
            f"Check the network, or name a folder or .zip; downloads go to {root.parent}.",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow what torchvision prints: its progress bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    """Let a silent network fail; torchvision itself would wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
