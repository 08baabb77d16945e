"""The training images as the networks see them: augmented, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slimkit.core.data import ImageSet, augment
from slimkit.core.sizes import Size
from slimkit.core.training.plan import FitOptions


@dataclass(frozen=True)
class Batch:
    """What a step learns from in this process, on the device."""

    inputs: Tensor  # [n, channels, h, w]
    seen_by_loss: Tensor  # the same images as the loss's own network sees them
    labels: Tensor  # int64 [n]: the module's index of each image's class
    others: int = 0  # images of the same batch that other ranks have
    counts: bool = True  # whether these are of the batch; False for what a rank has that gets none of a small one

    @property
    def images(self) -> int:
        """Those of the whole batch."""
        return self.others + len(self.labels) * self.counts

    @property
    def share(self) -> float:
        """The part of the whole batch that is here."""
        return 1 - self.others / self.images


@dataclass(frozen=True)
class Views:
    """The training images of `data`, and how they are seen."""

    data: ImageSet
    loss_data: ImageSet | None  # in the preprocessing of the loss's own network, where that is another
    classes: Tensor  # int64 [classes of the data]: the module's index of each
    options: FitOptions

    def batches(self, epoch: int, order: Tensor, size: Callable[[], Size]) -> Iterator[Batch]:
        """The images at `order` as epoch `epoch` sees them; `size` tells how large the next batch is to be."""
        ranks, batch_size = self.options.ranks, self.options.batch_size
        own = self._own(order)
        others = self._augmented(self.loss_data, epoch, own, lambda: None) if self.loss_data else None
        parts = self._augmented(self.data, epoch, own, size)
        for whole, (inputs, labels) in zip(torch.split(order, batch_size), parts, strict=True):
            seen_by_loss = next(others)[0] if others else inputs
            mine = len(ranks.share(whole))
            known = self.classes[labels].to(self.options.device)
            yield Batch(inputs, seen_by_loss, known, len(whole) - mine, counts=mine > 0)

    def _own(self, order: Tensor) -> Tensor:
        """This rank's part of each batch of `order`; where a last small one has none for it, an image all the same."""
        own = self.options.ranks.share(order)
        has_none = 0 < len(order) % self.options.batch_size <= self.options.ranks.rank
        return torch.cat([own, order[-1:]]) if has_none else own

    def _augmented(
        self, data: ImageSet, epoch: int, order: Tensor, size: Callable[[], Size | None]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs [n, channels, *size] on the device, with the labels [n] in the data."""
        seed, wanted = self.options.seed, data.preprocessing
        own_size = self.options.batch_size // self.options.ranks.count
        for pixels, labels, indices in data.train.batches(order, own_size):
            inputs = augment(pixels, indices, wanted, epoch=epoch, seed=seed, flip=data.flip, size=size())
            yield inputs.to(self.options.device), labels
