"""Opening a data set by what the user calls it, with its splits, classes and preprocessing."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slimkit.core.architecture import Preprocessing
from slimkit.core.data import digits, torchvision_sets
from slimkit.core.data.class_folders import FileImages, read_tree
from slimkit.core.data.images import Images
from slimkit.core.data.randomness import permutation
from slimkit.core.data.sources import Collection
from slimkit.core.data.stores import MemoryStore, StreamStore, fits_in_memory
from slimkit.core.data.trees import FolderTree, ZipTree
from slimkit.core.errors import DataError, UsageError
from slimkit.core.progress import Progress, silent
from slimkit.core.sizes import Size, covers, show_size
from slimkit.standalone import model_loader
from slimkit.standalone.model_loader import sides

log = logging.getLogger("slimkit")

HOLDOUT_SHARE = 0.05  # of the training images
TEST_SHARE = 0.2  # of a set that comes unsplit
LABEL_HINT = "Give data with a folder for each class with --data."
SPLIT_HINT = "Name a data set with a train/ folder and a val/ or test/ folder."


@dataclass(frozen=True)
class ImageSet:
    """A data set, opened. Images are decoded when they are first read."""

    name: str
    source: str  # as the user called it
    class_names: tuple[str, ...]  # sorted as strings; none where it is photos alone
    preprocessing: Preprocessing
    splits: Mapping[str, Images]  # some of "train", "holdout" and "test"; "all" besides where the set comes unsplit
    flip: bool  # whether an image's mirror image is of the same class
    published_order: tuple[str, ...]  # of the classes: the one that others' weights know
    collection: Collection  # what it is made from
    sketch: str | None = None  # of the files that training images are carved from; see `model_loader.sketch`

    def prepared(self, preprocessing: Preprocessing) -> ImageSet:
        """The same images for another network. Raises DataError where it takes more channels than they have."""
        if preprocessing == self.preprocessing:
            return self
        other = _prepared(self.collection, self.source, preprocessing)
        same = {
            name: dataclasses.replace(images, store=other.splits[name].store) for name, images in self.splits.items()
        }
        return dataclasses.replace(other, splits=same)

    def without_unreadable(self, progress: Progress = silent, *, few: bool = False) -> ImageSet:
        """The same without the training and the held-out images that can't be read: each of them is named in the log.

        Training images that are streamed are named when their turn comes, and all where but a `few` will be looked at.
        """
        splits = dict(self.splits)
        for name in [name for name in ("train", "holdout") if name in splits]:
            images, is_later = splits[name], name == "train" and (few or not splits[name].store.is_held)
            splits[name] = images.leaving_out() if is_later else images.readable(progress)
        return dataclasses.replace(self, splits=splits)

    @property
    def train(self) -> Images:
        """What is learned from. Raises DataError where the set has none."""
        return self._split("train")

    @property
    def holdout(self) -> Images:
        """What models are selected on, carved from the training images. Raises DataError where the set has none."""
        return self._split("holdout")

    @property
    def test(self) -> Images:
        """What the score is measured on, and nothing else. Raises DataError where the set has none."""
        return self._split("test")

    @property
    def is_labelled(self) -> bool:
        """Whether it is known what the images show."""
        return bool(self.class_names)

    @property
    def can_measure(self) -> bool:
        """Whether labelled images are held out of training."""
        return self.is_labelled and "holdout" in self.splits

    def require_labels(self, purpose: str) -> None:
        """Raise DataError where the images have no classes. purpose: what takes them, as the subject of a sentence."""
        if not self.is_labelled:
            raise DataError(f"{purpose} takes labelled images; {self.name} holds photos without classes.", LABEL_HINT)

    def _split(self, split: str) -> Images:
        if split != "train":
            self.require_labels("Measuring accuracy")
        if split not in self.splits and split != "train" and "train" in self.splits:
            raise DataError(f"No class of {self.name} has two images, so none can be set aside.", "Add images.")
        if split not in self.splits:
            wanted = "test" if split == "test" else "training"
            raise DataError(f"{self.name} has no {wanted} images.", SPLIT_HINT)
        return self.splits[split]


def open_dataset(
    spec: str,
    *,
    image_size: Size | None = None,
    resize: Size | None = None,
    wanted: Preprocessing | None = None,
    stated: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> ImageSet:
    """Open a data set: `digits100`, a torchvision name, a folder or a .zip (for one called like a name, write ./name).

    wanted: the preprocessing that a model asks for; None: what the set suggests, else 256 and 224 pixels.
    stated: fields of the preprocessing that are to be others.
    image_size: pixels of the network's input, where that is to be another. resize: pixels (of a square: of the shorter
    side) before the centre is cut; None: in the same proportion as there. `progress` shows a download.
    Raises DataError, UsageError for sizes that can't be, and NetworkError where a download fails.
    """
    collection = find_collection(spec, progress)
    usual = dataclasses.replace(wanted or collection.suggested, **(stated or {}))
    preprocessing, kept = sized(usual, image_size, resize), _kept.get()
    if kept and (kept[0].source, kept[0].preprocessing) == (spec, preprocessing):
        return kept[0]
    data = _prepared(collection, spec, preprocessing)
    if kept is not None:
        kept[:] = [data]
    return data


@contextmanager
def decoded_once() -> Iterator[None]:
    """While the block runs, a data set that is opened again in the same preprocessing comes with all that was decoded.

    The last one alone is kept, so that memory holds one set. What changes on the disk meanwhile is not seen.
    """
    outer = _kept.get()
    token = _kept.set([] if outer is None else outer)
    try:
        yield
    finally:
        _kept.reset(token)


_kept: ContextVar[list[ImageSet] | None] = ContextVar("kept", default=None)  # within `decoded_once`: the last one


def _prepared(collection: Collection, spec: str, preprocessing: Preprocessing) -> ImageSet:
    """The images of `collection`, which the user called `spec`, with stores for what is decoded of them."""
    require_channels(collection, len(preprocessing.mean))
    images = sum(len(source.labels) for source in collection.sources.values())
    held = fits_in_memory(collection.sources.values(), preprocessing)
    if not held:
        log.info("%s: %d images do not fit in memory, so they are streamed.", collection.name, images)
    whole = {
        split: _all_of(MemoryStore(source, preprocessing) if held else StreamStore(source, preprocessing))
        for split, source in collection.sources.items()
    }
    carved_from = collection.sources.get("all", collection.sources.get("train"))
    return ImageSet(
        name=collection.name,
        source=spec,
        class_names=collection.class_names,
        preprocessing=preprocessing,
        splits=_split(whole) if collection.class_names else whole,
        flip=collection.flip,
        published_order=collection.published_order or collection.class_names,
        collection=collection,
        sketch=carved_from.sketch() if isinstance(carved_from, FileImages) else None,
    )


def find_collection(spec: str, progress: Progress = silent) -> Collection:
    """The data set that `spec` names, before preprocessing. Raises as `open_dataset`."""
    if spec == digits.NAME:
        return digits.digits100()
    if spec in torchvision_sets.NAMES:
        return torchvision_sets.torchvision_set(spec, progress)
    path = Path(spec)
    if path.is_dir():
        return read_tree(FolderTree(path))
    if path.is_file() and (path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)):
        return read_tree(ZipTree(path))
    if path.exists():
        raise DataError(f"{path} is neither a folder nor a .zip file.", "Name a folder, a .zip or a data set.")
    names = [digits.NAME, *torchvision_sets.NAMES]
    near = difflib.get_close_matches(spec.lower(), names, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Check the path, or take one of: {', '.join(names)}."
    raise DataError(f"{spec} is no folder, no .zip file and no known data set.", hint)


def label_map(model_names: Sequence[str], data_names: Sequence[str]) -> Tensor:
    """For each class of the data, the model's index of the class of that name: int64 [len(data_names)].

    The model may have more classes. Raises DataError that names the classes it lacks.
    """
    places = model_loader.class_places(model_names)
    if odd := [name for name in data_names if model_loader.normalized(name) not in places]:
        shown = ", ".join(odd[:5]) + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
        raise DataError(
            f"The model has no class called {shown}; its classes are {model_names[0]} … {model_names[-1]}.",
            "Name the data that the model was made with, or data with classes of the same names.",
        )
    return torch.tensor([places[model_loader.normalized(name)] for name in data_names])


def sized(usual: Preprocessing, image_size: Size | None, resize: Size | None) -> Preprocessing:
    """The preprocessing with an image size, or a size before the cut, that is asked for. Raises UsageError."""
    crop = usual.crop if image_size is None else image_size
    resize = _in_proportion(crop, usual) if resize is None else resize
    if min(sides(crop)) < 1 or not covers(resize, crop):
        raise UsageError(
            f"An image size of {show_size(crop)} can't be cut from {show_size(resize)} pixels.",
            "Give an --image-size of 1 or more, and a --resize that is not smaller.",
        )
    return dataclasses.replace(usual, resize=resize, crop=crop)


def _in_proportion(crop: Size, usual: Preprocessing) -> Size:
    """What `crop` is cut from, as much larger as it usually is."""
    larger = [whole / cut for whole, cut in zip(sides(usual.resize), sides(usual.crop), strict=True)]
    if isinstance(crop, int):
        return round(crop * larger[0])
    return round(crop[0] * larger[0]), round(crop[1] * larger[1])


def require_channels(collection: Collection, channels: int) -> None:
    """Raise DataError where a network takes more channels than images have."""
    if channels not in model_loader.MODES and any(s.pixel_type == torch.uint8 for s in collection.sources.values()):
        raise DataError(
            f"The network takes {channels} channels; the images of {collection.name} have 1 to 4.",
            f"Name data whose images are NumPy arrays [height, width, {channels}], in .npy files.",
        )


def _all_of(store: MemoryStore | StreamStore) -> Images:
    return Images(store, torch.arange(len(store.labels)))


def _split(whole: Mapping[str, Images]) -> dict[str, Images]:
    """Carve what the set does not come with: train and test from all, holdout from train."""
    splits = dict(whole)
    if "all" in splits and splits["all"].labels.bincount().max() < 2:
        return splits | {"train": splits["all"]}  # enough to calibrate on, and to score on
    if "all" in splits:
        splits["train"], splits["test"] = carve(splits["all"], TEST_SHARE)
    if "train" in splits and "holdout" not in splits and splits["train"].labels.bincount().max() > 1:
        splits["train"], splits["holdout"] = carve(splits["train"], HOLDOUT_SHARE)
    return splits


def carve(images: Images, share: float) -> tuple[Images, Images]:
    """Split off `share` of each class, one image at least where there are two; always the same ones.

    Raises DataError where no class has two images.
    """
    chosen = torch.zeros(len(images), dtype=torch.bool)
    for label in torch.unique(images.labels):
        members = torch.nonzero(images.labels == label).flatten()
        count = max(1, round(share * len(members))) if len(members) > 1 else 0
        chosen[members[permutation(len(members), (int(label),))[:count]]] = True
    if not chosen.any():
        raise DataError("No class has two images, so none can be set aside for testing.", "Add images.")
    return images.subset(torch.nonzero(~chosen).flatten()), images.subset(torch.nonzero(chosen).flatten())
