"""From pixels to a network's input: as it is evaluated, and augmented as it is trained."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from slimkit.core.architecture import Preprocessing
from slimkit.core.data.randomness import CUTOUT, FLIP, uniform
from slimkit.core.data.rectangles import Rectangles
from slimkit.core.options import Flip
from slimkit.core.sizes import Size
from slimkit.standalone import model_loader
from slimkit.standalone.model_loader import sides

SCALE = (0.85, 1.15)  # sides of what is cut, as a share of what evaluation sees
SHIFT = 0.125  # of its centre, at most, as a share of what evaluation sees
STRETCH = 4 / 3  # of a part of random area: the longer side over the shorter, at most, as torchvision has it


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are changed; see `TrainOptions`."""

    flip: Flip = "random"
    min_crop: float | None = None
    cutout: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


USUAL_AUGMENTATION = Augmentation()


def evaluation_input(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Cut the centre of pixels [n, channels, *resize] and normalize: float32 [n, channels, *crop]."""
    crop = model_loader.centre_crop(pixels, preprocessing.crop)
    return model_loader.normalize(crop, dataclasses.asdict(preprocessing))


def augment(
    pixels: Tensor,
    indices: Tensor,
    preprocessing: Preprocessing,
    *,
    epoch: int,
    seed: int,
    flip: bool,
    size: Size | None = None,
    augmentation: Augmentation = USUAL_AUGMENTATION,
) -> Tensor:
    """Cut a random part out of each image, mirror half of them if `flip`, normalize, and hide a square if asked to.

    pixels: values 0 … 255 [n, channels, *resize]; indices [n]: the images' places in the training set; size: of the
    result, `preprocessing.crop` unless given. Gives float32 [n, channels, *size]. What happens to an image is a
    function of (seed, epoch, index): neither the rest of the batch nor any global state has a part in it. What is
    hidden (cutout: DeVries & Taylor 2017, arXiv:1708.04552) is of the mean colour. Mixing is left to `mixing.py`.
    """
    crop, resize = sides(preprocessing.crop), sides(preprocessing.resize)
    height, width = crop if size is None else sides(size)
    images = pixels.float()
    factors = (crop[0] // height, crop[1] // width)
    if max(factors) > 1:  # bilinear sampling alone would skip pixels
        images = avg_pool2d(images, factors)
    draws = uniform(indices, (seed, epoch), draws=5)
    if augmentation.min_crop is None:
        parts = _near_centre(draws, (crop[0] / resize[0], crop[1] / resize[1]))
    else:
        parts = _of_random_area(draws, augmentation.min_crop)
    if flip:
        parts[:, 0, 0] *= _mirrored(indices, draws[:, 3], augmentation.flip, seed, epoch)
    grid = affine_grid(parts.to(images.device), [*images.shape[:2], height, width], align_corners=False)
    images = grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    inputs = model_loader.normalize(images, dataclasses.asdict(preprocessing))
    if augmentation.cutout:
        centres = uniform(indices, (seed, epoch, CUTOUT), draws=2)
        hidden = Rectangles.around(centres, torch.full((len(indices),), augmentation.cutout))
        inputs = inputs.masked_fill(hidden.mask(height, width).to(inputs.device), 0)
    return inputs


def _near_centre(draws: Tensor, seen: tuple[float, float]) -> Tensor:
    """Affine maps to parts about as large as what evaluation sees: `seen`, shares of the height and the width."""
    scale = SCALE[0] + (SCALE[1] - SCALE[0]) * draws[:, 0]
    # a centre crop leaves room at its sides: use it
    reach_y, reach_x = (2 * (SHIFT * share + (1 - share) / 2) for share in seen)
    return _maps(seen[0] * scale, seen[1] * scale, reach_y * (2 * draws[:, 2] - 1), reach_x * (2 * draws[:, 1] - 1))


def _of_random_area(draws: Tensor, smallest: float) -> Tensor:
    """Affine maps to parts that lie anywhere in the image and have at least `smallest` of its area.

    Szegedy et al. 2015, arXiv:1409.4842.
    """
    area = smallest + (1 - smallest) * draws[:, 0]
    stretch = torch.exp(math.log(STRETCH) * (2 * draws[:, 4] - 1))
    height, width = (area / stretch).sqrt().clamp(max=1), (area * stretch).sqrt().clamp(max=1)
    return _maps(height, width, (1 - height) * (2 * draws[:, 2] - 1), (1 - width) * (2 * draws[:, 1] - 1))


def _maps(height: Tensor, width: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The affine map from output to input coordinates (both -1 … 1) for each image: float32 [n, 2, 3].

    height, width: of the part, as shares of the image's; y, x: its centre. All are [n].
    """
    maps = torch.zeros(len(height), 2, 3)
    maps[:, 0, 0], maps[:, 1, 1], maps[:, 0, 2], maps[:, 1, 2] = width, height, x, y
    return maps


def _mirrored(indices: Tensor, draw: Tensor, how: Flip, seed: int, epoch: int) -> Tensor:
    """-1 for images that are mirrored, else 1: float32 [n].

    An image that is mirrored in one epoch and not in the next is seen in full in two (Jordan 2024, arXiv:2404.00498).
    """
    if how == "none":
        return torch.ones(len(indices))
    mirrored = draw < 0.5
    if how == "alternate":
        mirrored = (uniform(indices, (seed, 0, FLIP), draws=1)[:, 0] < 0.5) ^ (epoch % 2 == 1)
    return torch.where(mirrored, -1.0, 1.0)
