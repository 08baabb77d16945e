"""What every kind of data set comes down to: labelled images that are decoded one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from slimkit.core.architecture import Preprocessing

IMAGENET_PREPROCESSING = Preprocessing(resize=256, crop=224)


class Source(Protocol):
    """The images of one split, wherever they lie. Read by several threads at once."""

    @property
    def labels(self) -> Tensor:
        """The class of each image: int64 [n]."""

    @property
    def pixel_type(self) -> torch.dtype:
        """uint8, or float32 where any of the images is an array."""

    def name(self, index: int) -> str:
        """What the image at `index` is called within the set, wherever the set lies."""

    def image(self, index: int, channels: int = 3) -> Image.Image | Tensor:
        """The image at `index`, as large as it is, as `model_loader.read_image` gives it.

        Raises DataError that names the file.
        """


@dataclass(frozen=True)
class Collection:
    """A data set as it was found: some of the splits "train", "holdout" and "test", or "all" where it isn't split."""

    name: str
    class_names: tuple[str, ...]  # sorted as strings; none where the images are of no known class
    sources: Mapping[str, Source]
    suggested: Preprocessing = IMAGENET_PREPROCESSING
    flip: bool = True  # whether an image's mirror image is of the same class
    published_order: tuple[str, ...] | None = None  # of the classes, where the set has one that isn't sorted
    left_out: tuple[str, ...] = ()  # a sentence for each kind of file, or folder, that is not used
