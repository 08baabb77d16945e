"""`digits100`: the 100 two-digit numbers, each composed from two handwritten digits. Needs no network.

The handwritten digits are scikit-learn's bundled set (1797 of 8x8 pixels, from the UCI repository: Alpaydin and Kaynak
1998). Three quarters of each digit's specimens make the training and the held-out images, in pools of their own, the
others the test images. Size, place and colours vary from image to image, and everything about an image is a function of
its split and index.
"""

from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from slimkit.core.architecture import Preprocessing
from slimkit.core.data.randomness import permutation, uniform
from slimkit.core.data.sources import Collection
from slimkit.standalone import model_loader

NAME = "digits100"
SIDE = 64  # pixels of the square canvas
MARGIN = 4  # pixels left and right that stay empty, so that augmentation seldom cuts into a digit
CLASS_NAMES = tuple(f"{number:02d}" for number in range(100))
IMAGES_PER_CLASS = {"train": 76, "holdout": 4, "test": 20}
KEYS = {"train": 1, "holdout": 3, "test": 2}  # of the random numbers
RAMP = np.linspace(0, 1, 256)[:, None]
POOLS = {"train": (0, 2 / 3), "holdout": (2 / 3, 3 / 4), "test": (3 / 4, 1)}  # shares of each digit's specimens


def digits100() -> Collection:
    """The data set: 7600 training, 400 held-out and 2000 test images."""
    sources = {split: DigitPairs(split) for split in IMAGES_PER_CLASS}
    return Collection(NAME, CLASS_NAMES, sources, suggested=Preprocessing(resize=SIDE, crop=SIDE), flip=False)


class DigitPairs:
    """The images of one split, each drawn when it is asked for."""

    pixel_type = torch.uint8

    def __init__(self, split: str) -> None:
        self.labels: Tensor = torch.arange(100).repeat_interleave(IMAGES_PER_CLASS[split])
        self._split = split
        self._draws = uniform(torch.arange(len(self.labels)), (KEYS[split],), draws=12).tolist()

    def name(self, index: int) -> str:
        """As `Source.name`."""
        return f"{self._split}/{index}"

    def image(self, index: int, channels: int = 3) -> Image.Image:
        """Two digits side by side, 64x64."""
        draws = self._draws[index]
        canvas = Image.new("L", (SIDE, SIDE))
        for position, digit in enumerate(divmod(int(self.labels[index]), 10)):
            _draw_digit(canvas, specimens(self._split)[digit], position, draws[4 * position : 4 * position + 4])
        canvas.putpalette(_palette(draws[8:12]))
        return model_loader.with_channels(canvas, channels)


def _draw_digit(canvas: Image.Image, candidates: list[Image.Image], position: int, draws: list[float]) -> None:
    """Draw one of `candidates` into the left (`position` 0) or right half of the canvas, white on black."""
    half = SIDE // 2
    specimen = candidates[int(draws[0] * len(candidates))]
    side = int((half - MARGIN) * (0.85 + 0.15 * draws[1]))
    left = (half if position else MARGIN) + int(draws[2] * (half - MARGIN - side + 1))
    top = int((SIDE - side) * (0.35 + 0.3 * draws[3]))
    canvas.paste(specimen.resize((side, side), Image.Resampling.BICUBIC), (left, top))


def _palette(draws: list[float]) -> bytes:
    """The colour of each shade of gray, from a dark paper to a bright pen, tinted: 256 times red, green, blue."""
    paper, pen = 0.3 * draws[0], 0.7 + 0.3 * draws[1]
    tint = np.array([1.0, 1.0 - 0.3 * draws[2], 1.0 - 0.3 * draws[3]])
    colours = (paper + (pen - paper) * RAMP) * tint * 255
    return bytes(colours.astype(np.uint8))


@cache
def specimens(split: str) -> list[list[Image.Image]]:
    """For each digit its 8x8 specimens of `split`."""
    from sklearn.datasets import load_digits  # imported here: it takes half a second

    bundle = load_digits()
    pictures = (bundle.images * 255 / 16).astype(np.uint8)
    found = []
    for digit in range(10):
        own = pictures[bundle.target == digit]
        start, end = (round(len(own) * share) for share in POOLS[split])
        chosen = permutation(len(own), (digit,)).numpy()[start:end]
        found.append([Image.fromarray(picture) for picture in own[chosen]])
    return found
