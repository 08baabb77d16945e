"""The training images as the networks see them: augmented, batch by batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slimkit.core.data import ImageSet, augment, draw_mixing
from slimkit.core.sizes import Size
from slimkit.core.training.plan import FitOptions


@dataclass(frozen=True)
class Batch:
    """What a step learns from in this process, on the device."""

    inputs: Tensor  # [n, channels, h, w]
    seen_by_loss: Tensor  # the same images as the loss's own network sees them
    labels: Tensor  # int64 [n]: the module's index of each image's class; of mixed images the shares [n, outputs]
    indices: Tensor  # int64 [n]: their places among the training images
    view: int  # how they are augmented: the epoch, unless views are seen again
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
    outputs: int  # of the module
    options: FitOptions

    def batches(self, epoch: int, order: Tensor, size: Callable[[], Size]) -> Iterator[Batch]:
        """The images at `order` as epoch `epoch` sees them; `size` tells how large the next batch is to be."""
        ranks, batch_size = self.options.ranks, self.options.batch_size
        own, view = self._own(order), epoch % (self.options.views or epoch + 1)
        second = self._augmented(self.loss_data, view, own, lambda: None) if self.loss_data else None
        parts = self._augmented(self.data, view, own, size)
        for whole, (inputs, labels, indices) in zip(torch.split(order, batch_size), parts, strict=True):
            seen_by_loss = next(second)[0] if second else inputs
            counts = len(ranks.share(whole)) > 0
            others = self._of_others(len(indices) * counts)
            known = self.classes[labels].to(self.options.device)
            yield self._mixed(Batch(inputs, seen_by_loss, known, indices, view, others, counts))

    def _own(self, order: Tensor) -> Tensor:
        """This rank's part of each batch of `order`; where a last small one has none for it, an image all the same."""
        own = self.options.ranks.share(order)
        has_none = 0 < len(order) % self.options.batch_size <= self.options.ranks.rank
        return torch.cat([own, order[-1:]]) if has_none else own

    def _of_others(self, own: int) -> int:
        """The images of a batch that other ranks have, where `own` are here: those that can't be read don't count."""
        return int(self.options.ranks.total(own)) - own

    def _mixed(self, batch: Batch) -> Batch:
        """The batch with its images and labels mixed, where that is asked for: the same for both networks."""
        wanted, same = self.options.augmentation, batch.seen_by_loss is batch.inputs
        if not wanted.mixup and not wanted.cutmix:
            return batch
        mixing = draw_mixing(batch.indices, wanted, epoch=batch.view, seed=self.options.seed)
        inputs = mixing.images(batch.inputs)
        seen_by_loss = inputs if same else mixing.images(batch.seen_by_loss)
        labels = mixing.labels(batch.labels, self.outputs)
        return dataclasses.replace(batch, inputs=inputs, seen_by_loss=seen_by_loss, labels=labels)

    def _augmented(
        self, data: ImageSet, view: int, order: Tensor, size: Callable[[], Size | None]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs [n, channels, *size] on the device, with the labels [n] in the data, and the indices [n]."""
        options, wanted = self.options, data.preprocessing
        keys, how = {"epoch": view, "seed": options.seed}, options.augmentation
        for pixels, labels, indices in data.train.batches(order, options.batch_size // options.ranks.count):
            if len(indices) == options.ranks.count == 1:  # no other could be read, and BatchNorm wants two
                pixels, labels, indices = (torch.cat([each, each]) for each in (pixels, labels, indices))
            if options.device.type == "cuda":  # a quarter of what the inputs would be, and augmented faster there
                pixels = pixels.to(options.device)
            inputs = augment(pixels, indices, wanted, **keys, flip=data.flip, size=size(), augmentation=how)
            yield inputs.to(options.device), labels, indices
