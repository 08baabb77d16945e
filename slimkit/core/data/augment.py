"""From pixels to a network's input: as it is evaluated, and augmented as it is trained."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from slimkit.core.architecture import Preprocessing
from slimkit.core.data.randomness import uniform
from slimkit.core.sizes import Size
from slimkit.standalone import model_loader
from slimkit.standalone.model_loader import sides

SCALE = (0.85, 1.15)  # sides of what is cut, as a share of what evaluation sees
SHIFT = 0.125  # of its centre, at most, as a share of what evaluation sees


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
) -> Tensor:
    """Cut a random part out of each image, mirror half of them if `flip`, and normalize.

    pixels: values 0 … 255 [n, channels, *resize]; indices [n]: the images' places in the training set; size: of the
    result, `preprocessing.crop` unless given. Gives float32 [n, channels, *size]. What happens to an image is a
    function of (seed, epoch, index): neither the rest of the batch nor any global state has a part in it.
    """
    crop, resize = sides(preprocessing.crop), sides(preprocessing.resize)
    height, width = crop if size is None else sides(size)
    images = pixels.float()
    factors = (crop[0] // height, crop[1] // width)
    if max(factors) > 1:  # bilinear sampling alone would skip pixels
        images = avg_pool2d(images, factors)
    parts = _random_parts(indices, (crop[0] / resize[0], crop[1] / resize[1]), (seed, epoch), flip)
    grid = affine_grid(parts.to(images.device), [*images.shape[:2], height, width], align_corners=False)
    images = grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return model_loader.normalize(images, dataclasses.asdict(preprocessing))


def _random_parts(indices: Tensor, seen: tuple[float, float], keys: Sequence[int], flip: bool) -> Tensor:
    """The affine map from output to input coordinates (both -1 … 1) for each image: float32 [n, 2, 3].

    `seen` are the shares of the image's height and width that evaluation sees.
    """
    scale_draw, x_draw, y_draw, flip_draw = uniform(indices, keys, draws=4).unbind(1)
    scale = SCALE[0] + (SCALE[1] - SCALE[0]) * scale_draw
    # a centre crop leaves room at its sides: use it
    reach_y, reach_x = (2 * (SHIFT * share + (1 - share) / 2) for share in seen)
    maps = torch.zeros(len(indices), 2, 3)
    maps[:, 0, 0] = seen[1] * (torch.where(flip_draw < 0.5, -scale, scale) if flip else scale)
    maps[:, 1, 1] = seen[0] * scale
    maps[:, 0, 2] = reach_x * (2 * x_draw - 1)
    maps[:, 1, 2] = reach_y * (2 * y_draw - 1)
    return maps
