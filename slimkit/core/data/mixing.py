"""Training images mixed with one another, blended (mixup) or pasted (cutmix), and their labels alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from slimkit.core.data.augment import Augmentation
from slimkit.core.data.randomness import MIXING, uniform
from slimkit.core.data.rectangles import Rectangles


@dataclass(frozen=True)
class Mixing:
    """How each image of a batch is mixed with the next of the batch, and the last with the first.

    A batch is in random order, so that any image may be the next.
    """

    own: Tensor  # float32 [n]: the share of its own image in the result
    is_pasted: Tensor  # bool [n]: the rest is in `patches`; else it is blended
    patches: Rectangles

    def images(self, inputs: Tensor) -> Tensor:
        """Inputs [n, channels, h, w] of any size, mixed."""
        device, (height, width) = inputs.device, inputs.shape[2:]
        others = inputs.roll(-1, 0)
        pasted = torch.where(self.patches.mask(height, width).to(device), others, inputs)
        blended = torch.lerp(others, inputs, self.own.view(-1, 1, 1, 1).to(device))
        return torch.where(self.is_pasted.view(-1, 1, 1, 1).to(device), pasted, blended)

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Labels int64 [n] as the shares of each class in the mixed images: float32 [n, classes]."""
        own, sharp = self.own[:, None].to(labels.device), one_hot(labels, classes).float()
        return own * sharp + (1 - own) * sharp.roll(-1, 0)


def draw_mixing(indices: Tensor, augmentation: Augmentation, *, epoch: int, seed: int) -> Mixing:
    """The mixing of the images at `indices` [n]: for each a function of (seed, epoch, index).

    Mixup: Zhang et al. 2018, arXiv:1710.09412; cutmix: Yun et al. 2019, arXiv:1905.04899. Where both are asked for,
    each image is mixed in either way, half of the time.
    """
    chooser, share, *centre = uniform(indices, (seed, epoch, MIXING), draws=4).unbind(1)
    often = 0.5 if augmentation.mixup and augmentation.cutmix else float(augmentation.cutmix > 0)
    is_pasted = chooser < often
    blended, pasted = (_beta(share, alpha) for alpha in (augmentation.mixup, augmentation.cutmix))
    patches = Rectangles.around(torch.stack(centre, 1), (1 - pasted).sqrt())
    return Mixing(torch.where(is_pasted, 1 - patches.area, blended), is_pasted, patches)


def _beta(draw: Tensor, alpha: float) -> Tensor:
    """Numbers from Beta(alpha, alpha) by uniform ones [n]; all 1 where alpha is 0."""
    if alpha == 0:
        return torch.ones_like(draw)
    from scipy.special import betaincinv  # a third of a second, for the trainings that mix images alone

    return torch.from_numpy(betaincinv(alpha, alpha, draw.double().numpy())).float()
