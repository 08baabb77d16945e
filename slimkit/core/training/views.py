"""The training images as the networks see them: augmented, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from slimkit.core.data import ImageSet, augment
from slimkit.core.sizes import Size
from slimkit.core.training.plan import FitOptions


@dataclass(frozen=True)
class Batch:
    """What a step learns from, on the device."""

    inputs: Tensor  # [n, channels, h, w]
    seen_by_loss: Tensor  # the same images as the loss's own network sees them
    labels: Tensor  # int64 [n]: the module's index of each image's class


@dataclass(frozen=True)
class Views:
    """The training images of `data`, and how they are seen."""

    data: ImageSet
    loss_data: ImageSet | None  # in the preprocessing of the loss's own network, where that is another
    classes: Tensor  # int64 [classes of the data]: the module's index of each
    options: FitOptions

    def batches(self, epoch: int, order: Tensor, size: Callable[[], Size]) -> Iterator[Batch]:
        """The images at `order` as epoch `epoch` sees them; `size` tells how large the next batch is to be."""
        others = self._augmented(self.loss_data, epoch, order, lambda: None) if self.loss_data else None
        for inputs, labels in self._augmented(self.data, epoch, order, size):
            seen_by_loss = next(others)[0] if others else inputs
            yield Batch(inputs, seen_by_loss, self.classes[labels].to(self.options.device))

    def _augmented(
        self, data: ImageSet, epoch: int, order: Tensor, size: Callable[[], Size | None]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs [n, channels, *size] on the device, with the labels [n] in the data."""
        seed, wanted = self.options.seed, data.preprocessing
        for pixels, labels, indices in data.train.batches(order, self.options.batch_size):
            inputs = augment(pixels, indices, wanted, epoch=epoch, seed=seed, flip=data.flip, size=size())
            yield inputs.to(self.options.device), labels
