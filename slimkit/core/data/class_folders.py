"""Data sets that lie in files: a folder per class, below train/ and val/ or test/, or below neither; or photos alone.

    train/cat/1.png  train/dog/2.png  val/cat/3.png  val/dog/4.png      split as it is
    cat/1.png  dog/2.png                                                to be split
    1.png  2.png                                                        without classes

What an image is and which folder is which is decided by `standalone/model_loader.py`, for the submissions as well.
"""

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from slimkit.core.data.sources import Collection
from slimkit.core.data.trees import Tree
from slimkit.core.errors import DataError
from slimkit.standalone import model_loader

log = logging.getLogger("slimkit")

LAYOUT_HINT = (
    "Put the images of each class into a folder of its name: train/<class>/… and val/<class>/…, or <class>/… alone."
)
USES = {
    "train": "{} to learn from",
    "holdout": "{} to select models on",
    "test": "{} to score on, and for nothing else",
    "all": "{} comes without a split",
}
Classes = Mapping[str, list[str]]  # the image files of each class


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images in the files of a tree."""

    tree: Tree
    folder: str  # that holds the class folders
    files: list[str]
    labels: Tensor  # int64 [n]

    @cached_property
    def pixel_type(self) -> torch.dtype:
        """As `Source.pixel_type`; asked for with every image."""
        return torch.float32 if any(map(model_loader.is_array_name, self.files)) else torch.uint8

    def name(self, index: int) -> str:
        """As `Source.name`."""
        return self.files[index][len(self.folder) :]

    def image(self, index: int, channels: int = 3) -> Image.Image | Tensor:
        """As `Source.image`."""
        name = self.files[index]
        content = self.tree.read(name)
        if not content:
            raise DataError(f"{self.tree.path / name} is not a readable image: it is empty.", "Remove the file.")
        try:
            return model_loader.read_image(io.BytesIO(content), channels, f"{self.tree.path / name}")
        except ValueError as error:
            raise DataError(f"{error}.", "Repair or remove the file.") from error

    def sketch(self) -> str:
        """What these images are known by when they are met again; see `model_loader.sketch`."""
        return model_loader.sketch(self.files, self.folder, self.tree.read)


def read_tree(tree: Tree) -> Collection:
    """Find the splits, classes and images of a tree. Raises DataError that names what is wrong."""
    names = tree.names()
    photos = [name for name in model_loader.visible(names) if model_loader.is_image_name(name)]
    if photos and not any("/" in name for name in photos):
        return _photos(tree, photos)
    return _class_folders(tree, names)


def _photos(tree: Tree, files: list[str]) -> Collection:
    """Images that lie side by side: they are of no classes, and all of them may be learned from."""
    name = tree.path.resolve().name.removesuffix(".zip")
    log.info("%s: %d photos without classes.", name, len(files))
    return Collection(name, (), {"train": FileImages(tree, "", files, torch.zeros(len(files), dtype=torch.int64))})


def _class_folders(tree: Tree, names: list[str]) -> Collection:
    try:
        found = model_loader.read_class_folders(names, tree.path)
    except ValueError as error:
        raise DataError(f"{error}.", LAYOUT_HINT) from None
    for remark in found.remarks:
        log.warning("%s", remark)
    uses = _uses(found.splits)
    classes = {use: found.splits[split] for split, use in uses.items()}
    folders = {use: found.folders[split] for split, use in uses.items()}
    class_names = _class_names(tree, folders, classes)
    sources = {use: _file_images(tree, folders[use], files, class_names) for use, files in classes.items()}
    name = tree.path.resolve().name.removesuffix(".zip")
    log.info("%s: %s.", name, "; ".join(USES[use].format(folders[use] or "the folder") for use in classes))
    return Collection(name, class_names, sources, left_out=tuple(found.remarks))


def _uses(splits: Mapping[str, Classes]) -> dict[str, str]:
    """What each split is used for. train/ alone is split; val/ is the test split where there is no other."""
    if splits.keys() == {"train"}:
        return {"train": "all"}
    val = "holdout" if "test" in splits else "test"
    return {split: val if split == "val" else split for split in splits}


def _class_names(tree: Tree, folders: Mapping[str, str], classes: Mapping[str, Classes]) -> tuple[str, ...]:
    """The classes of the training images, sorted as strings; the other splits must have no others."""
    first = next((use for use in ("train", "all") if use in classes), next(iter(classes)))
    known = classes[first].keys()
    if len(known) < 2:
        only = next(iter(known))
        raise DataError(
            f"{tree.path / folders[first]} holds only one class, {only!r}; it takes two at least.", LAYOUT_HINT
        )
    for use in classes:
        if extra := sorted(classes[use].keys() - known):
            raise DataError(
                f"{tree.path / folders[use]} has classes that {folders[first]} lacks: {', '.join(extra)}.",
                "Give both the same class folders.",
            )
        if missing := sorted(known - classes[use].keys()):
            log.warning("%s has no images of: %s.", tree.path / folders[use], ", ".join(missing))
    return tuple(sorted(known))


def _file_images(tree: Tree, folder: str, classes: Classes, class_names: tuple[str, ...]) -> FileImages:
    files = [(name, label) for label, class_name in enumerate(class_names) for name in classes.get(class_name, ())]
    return FileImages(tree, folder, [name for name, _ in files], torch.tensor([label for _, label in files]))
