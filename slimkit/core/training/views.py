"""The training images as the networks see them: augmented, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slimkit.core.data import ImageSet, augment, draw_mixing
from slimkit.core.sizes import Size
from slimkit.core.training.plan import FitOptions


@dataclass(frozen=True)
class Batch:
    """What a step learns from, on the device."""

    inputs: Tensor  # [n, channels, h, w]
    seen_by_loss: Tensor  # the same images as the loss's own network sees them
    labels: Tensor  # int64 [n]: the module's index of each image's class; of mixed images the shares [n, outputs]


@dataclass(frozen=True)
class Views:
    """The training images of `data`, and how they are seen."""

    data: ImageSet
    loss_data: ImageSet | None  # in the preprocessing of the loss's own network, where that is another
    classes: Tensor  # int64 [classes of the data]: the module's index of each
    outputs: int  # of the module
    options: FitOptions

    def batches(self, epoch: int, order: Tensor, size: Callable[[], Size]) -> Iterator[Batch]:
        """The images at `order` as epoch `epoch` sees them; `size` tells how large the next batch is to be."""
        others = self._augmented(self.loss_data, epoch, order, lambda: None) if self.loss_data else None
        for inputs, labels, indices in self._augmented(self.data, epoch, order, size):
            seen_by_loss = next(others)[0] if others else inputs
            batch = Batch(inputs, seen_by_loss, self.classes[labels].to(self.options.device))
            yield self._mixed(batch, indices, epoch)

    def _mixed(self, batch: Batch, indices: Tensor, epoch: int) -> Batch:
        """The batch with its images and labels mixed, where that is asked for: the same for both networks."""
        wanted, same = self.options.augmentation, batch.seen_by_loss is batch.inputs
        if not wanted.mixup and not wanted.cutmix:
            return batch
        mixing = draw_mixing(indices, wanted, epoch=epoch, seed=self.options.seed)
        inputs = mixing.images(batch.inputs)
        seen_by_loss = inputs if same else mixing.images(batch.seen_by_loss)
        return Batch(inputs, seen_by_loss, mixing.labels(batch.labels, self.outputs))

    def _augmented(
        self, data: ImageSet, epoch: int, order: Tensor, size: Callable[[], Size | None]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs [n, channels, *size] on the device, with the labels [n] in the data, and the indices [n]."""
        options, wanted = self.options, data.preprocessing
        keys, how = {"epoch": epoch, "seed": options.seed}, options.augmentation
        for pixels, labels, indices in data.train.batches(order, options.batch_size):
            if len(indices) == 1:  # the others of its batch can't be read, and BatchNorm wants two
                pixels, labels, indices = (torch.cat([each, each]) for each in (pixels, labels, indices))
            if options.device.type == "cuda":  # a quarter of what the inputs would be, and augmented faster there
                pixels = pixels.to(options.device)
            inputs = augment(pixels, indices, wanted, **keys, flip=data.flip, size=size(), augmentation=how)
            yield inputs.to(options.device), labels, indices
