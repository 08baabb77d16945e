"""From uint8 squares to a network's input: as it is evaluated, and augmented as it is trained."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from slimkit.core.architecture import Preprocessing
from slimkit.core.data.randomness import uniform
from slimkit.standalone import model_loader

SCALE = (0.85, 1.15)  # side of the square that is cut, as a share of what evaluation sees
SHIFT = 0.125  # of its centre, at most, as a share of what evaluation sees


def evaluation_input(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Cut the centre of uint8 squares [n, 3, resize, resize] and normalize: float32 [n, 3, crop, crop]."""
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
    size: int | None = None,
) -> Tensor:
    """Cut a random square out of each image, mirror half of them if `flip`, and normalize.

    pixels: uint8 [n, 3, resize, resize]; indices [n]: the images' places in the training set; size: pixels of the
    result's side, `preprocessing.crop` unless given. Gives float32 [n, 3, size, size]. What happens to an image is a
    function of (seed, epoch, index): neither the rest of the batch nor any global state has a part in it.
    """
    size = preprocessing.crop if size is None else size
    images = pixels.float()
    factor = preprocessing.crop // size
    if factor > 1:  # bilinear sampling alone would skip pixels
        images = avg_pool2d(images, factor)
    squares = _random_squares(indices, preprocessing.crop / preprocessing.resize, (seed, epoch), flip)
    grid = affine_grid(squares.to(images.device), [len(images), 3, size, size], align_corners=False)
    images = grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return model_loader.normalize(images, dataclasses.asdict(preprocessing))


def _random_squares(indices: Tensor, seen: float, keys: Sequence[int], flip: bool) -> Tensor:
    """The affine map from output to input coordinates (both -1 … 1) for each image: float32 [n, 2, 3].

    `seen` is the share of the image's side that evaluation sees.
    """
    scale_draw, x_draw, y_draw, flip_draw = uniform(indices, keys, draws=4).unbind(1)
    scale = seen * (SCALE[0] + (SCALE[1] - SCALE[0]) * scale_draw)
    reach = 2 * (SHIFT * seen + (1 - seen) / 2)  # a centre crop leaves room at its sides: use it
    maps = torch.zeros(len(indices), 2, 3)
    maps[:, 0, 0] = torch.where(flip_draw < 0.5, -scale, scale) if flip else scale
    maps[:, 1, 1] = scale
    maps[:, 0, 2] = reach * (2 * x_draw - 1)
    maps[:, 1, 2] = reach * (2 * y_draw - 1)
    return maps
