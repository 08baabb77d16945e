"""Data sets that lie in files: a folder per class, below train/ and val/ or test/, or below neither.

    train/cat/1.png  train/dog/2.png  val/cat/3.png  val/dog/4.png      split as it is
    cat/1.png  dog/2.png                                                to be split

All of it may lie in one folder more, as .zip files have it.
"""

import io
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch
from PIL import Image
from torch import Tensor

from slimkit.core.data.sources import Collection
from slimkit.core.data.trees import Tree
from slimkit.core.errors import DataError
from slimkit.standalone import model_loader

log = logging.getLogger("slimkit")

LAYOUT_MEND = "Put the images of each class into a folder of its name: train/<class>/… and val/<class>/…"
SPLITS = ("train", "val", "test")
Classes = Mapping[str, list[str]]  # the image files of each class


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images in the files of a tree."""

    tree: Tree
    files: list[str]
    labels: Tensor  # int64 [n]

    def image(self, index: int) -> Image.Image:
        """As `Source.image`."""
        name = self.files[index]
        try:
            return model_loader.decode_image(io.BytesIO(self.tree.read(name)), f"{self.tree.path / name}")
        except ValueError as error:
            raise DataError(f"{error}.", "Repair or remove the file.") from error


def read_class_folders(tree: Tree) -> Collection:
    """Find the splits, classes and images of a tree. Raises DataError that names what is wrong."""
    names = tree.names()
    folders = _split_folders(names, _root(names))
    classes = {split: _classes(tree, folder, names) for split, folder in folders.items()}
    class_names = _class_names(tree, folders, classes)
    sources = {split: _file_images(tree, files, class_names) for split, files in classes.items()}
    return Collection(tree.path.resolve().name.removesuffix(".zip"), class_names, sources)


def _root(names: list[str]) -> str:
    """The folder that holds the set: the tree's own root (""), or the one folder there, where it holds folders."""
    tops = _subfolders(names, "")
    if len(tops) == 1 and not tops & set(SPLITS) and _subfolders(names, root := f"{tops.pop()}/"):
        return root
    return ""


def _split_folders(names: list[str], root: str) -> dict[str, str]:
    """For each split its folder. Folders called train, val and test are splits where they hold folders themselves."""
    found = {split: f"{root}{split}/" for split in SPLITS if _subfolders(names, f"{root}{split}/")}
    if not found:
        return {"all": root}
    if found.keys() == {"train"}:
        return {"all": found["train"]}
    if "val" in found:
        found["holdout" if "test" in found else "test"] = found.pop("val")
    return found


def _subfolders(names: list[str], folder: str) -> set[str]:
    """The names of the folders directly in `folder`."""
    below = (name.removeprefix(folder) for name in names if name.startswith(folder))
    return {path.split("/")[0] for path in below if "/" in path}


def _classes(tree: Tree, folder: str, names: list[str]) -> Classes:
    """The image files of each class folder in `folder`. Raises DataError where one holds none."""
    classes: dict[str, list[str]] = {name: [] for name in sorted(_subfolders(names, folder))}
    left_out: Counter[str] = Counter()
    for name in names:
        if not name.startswith(folder) or name.endswith("/"):
            continue
        class_name, slash, _ = name.removeprefix(folder).partition("/")
        if not model_loader.is_image_name(PurePosixPath(name).name):
            left_out[f"with the suffix {PurePosixPath(name).suffix!r}"] += 1
        elif not slash:
            left_out["outside of the class folders"] += 1
        else:
            classes[class_name].append(name)
    for kind, count in left_out.most_common():
        log.warning("%s: left out %d files %s.", tree.path / folder, count, kind)
    for class_name, files in classes.items():
        if not files:
            raise DataError(f"{tree.path / folder / class_name} holds no images.", "Add some, or remove the folder.")
    return classes


def _class_names(tree: Tree, folders: Mapping[str, str], classes: Mapping[str, Classes]) -> tuple[str, ...]:
    """The classes of the first split, sorted as strings; the other splits must have no others."""
    first, *others = classes
    known = classes[first].keys()
    if len(known) < 2:
        found = f"only one class, {next(iter(known))!r}" if known else "no class folders"
        raise DataError(f"{tree.path / folders[first]} holds {found}; it takes two at least.", LAYOUT_MEND)
    for split in others:
        if extra := sorted(classes[split].keys() - known):
            raise DataError(
                f"{tree.path / folders[split]} has classes that {folders[first]} lacks: {', '.join(extra)}.",
                "Give both the same class folders.",
            )
        if missing := sorted(known - classes[split].keys()):
            log.warning("%s has no images of: %s.", tree.path / folders[split], ", ".join(missing))
    return tuple(sorted(known))


def _file_images(tree: Tree, classes: Classes, class_names: tuple[str, ...]) -> FileImages:
    files = [(name, label) for label, class_name in enumerate(class_names) for name in classes.get(class_name, ())]
    return FileImages(tree, [name for name, _ in files], torch.tensor([label for _, label in files]))
