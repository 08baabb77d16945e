"""Which images each step of a training sees, how large they are, and at what learning rate it learns from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slimkit.core.data import USUAL_AUGMENTATION, Augmentation, epoch_order
from slimkit.core.options import Optimizer
from slimkit.core.sizes import Size
from slimkit.core.training.ranks import ALONE, Ranks
from slimkit.core.training.schedule import learning_rate, training_size


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How long and how to train."""

    epochs: int  # where there are no minutes
    minutes: float | None = None  # in place of epochs
    batch_size: int  # of all ranks together
    optimizer: Optimizer
    lr: float
    weight_decay: float
    seed: int
    device: torch.device
    progressive: bool  # small images first
    augmentation: Augmentation = USUAL_AUGMENTATION
    views: int | None = None  # ways in which each image is augmented, epoch by epoch in turn; None: anew each time
    ema: float | None = None  # decay of the average that is evaluated and kept; None: the weights themselves are
    ranks: Ranks = ALONE  # that share it


@dataclass(frozen=True)
class Plan:
    """The steps of a training, counted from 0 through all its epochs."""

    images: int  # of the training split
    crop: Size
    options: FitOptions

    @property
    def batches(self) -> int:
        """The steps of an epoch."""
        batch = self.options.batch_size
        return math.ceil((self.images + (self.images % batch == 1)) / batch)

    @property
    def steps(self) -> int:
        """The steps of all epochs that are asked for."""
        return self.options.epochs * self.batches

    def order(self, epoch: int, done: int) -> Tensor:
        """The images that an epoch is still to see after so many steps of it, in their order: int64 [n].

        A last batch of one, which BatchNorm can't be trained on, gets a second image.
        """
        order = epoch_order(self.images, self.options.seed, epoch)
        if len(order) % self.options.batch_size == 1:
            order = torch.cat([order, order[:1]])
        return order[done * self.options.batch_size :]

    def size(self, step: int, steps: int) -> Size:
        """The pixels of the images of `step`, of so many steps in all."""
        if not self.options.progressive:
            return self.crop
        first = step - step % self.batches  # an epoch has one size, unless there may be less than one epoch
        return training_size(step if self.options.minutes else first, steps, self.crop)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of `step`, of so many steps in all."""
        return learning_rate(step, steps, self.options.lr)
