"""Labelled images in batches."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slimkit.core.data.decoder import Flawed
from slimkit.core.data.stores import Store
from slimkit.core.errors import DataError
from slimkit.core.progress import Progress, silent

log = logging.getLogger("slimkit")


@dataclass(frozen=True, eq=False)
class Images:
    """Some images of a store."""

    store: Store
    positions: Tensor  # int64 [n]: their places in the store
    left_out: set[int] | None = None  # positions that could not be read and were named; None: they are errors

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def labels(self) -> Tensor:
        """The class of each image: int64 [n]."""
        return self.store.labels[self.positions]

    def subset(self, indices: Tensor) -> Images:
        """The images at `indices`, which become 0, 1, …; what was decoded stays shared."""
        return dataclasses.replace(self, positions=self.positions[indices])

    def digest(self) -> str:
        """The sha256 of the list of these images: the name and the label of each, in their order."""
        labels = self.labels.tolist()
        names = [self.store.source.name(place) for place in self.positions.tolist()]
        lines = (f"{name}\t{label}\n" for name, label in zip(names, labels, strict=True))
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The images at `order` (indices, int64 [n]), in that order; the last batch may be smaller.

        Gives (pixels [b, channels, *resize] of 0 … 255, labels int64 [b], indices int64 [b]). An image that can't be
        decoded is left out of its batch where there is `left_out`; else it raises DataError that names its file.
        """
        if len(order) == 0:
            return
        labels = self.labels
        batches = self.store.read(self.positions[order], batch_size)
        for indices, (pixels, flawed) in zip(torch.split(order, batch_size), batches, strict=True):
            keep = self._without(flawed, indices) if flawed else slice(None)
            yield pixels[keep], labels[indices[keep]], indices[keep]

    def _without(self, flawed: Flawed, indices: Tensor) -> Tensor:
        """Which of a batch to keep: bool [b]. What is left out is named in the log, once."""
        first = next(iter(flawed.values()))
        if self.left_out is None:
            raise first
        keep = _is_not_among(flawed, self.positions[indices])
        if not keep.any():
            raise DataError(f"None of {len(indices)} images that are seen together can be read: {first}", first.hint)
        for position in flawed.keys() - self.left_out:
            log.warning("Left out: %s", flawed[position])
        self.left_out.update(flawed)
        return keep

    def readable(self, progress: Progress = silent) -> Images:
        """Those of the images that can be read; each of the others is named in the log. All are decoded for that."""
        flawed = self.store.check(self.positions, progress)
        for error in flawed.values():
            log.warning("Left out: %s", error)
        return Images(self.store, self.positions[_is_not_among(flawed, self.positions)])

    def leaving_out(self) -> Images:
        """The same images, but those that can't be read are left out of their batches as they come."""
        return dataclasses.replace(self, left_out=set())


def _is_not_among(flawed: Flawed, positions: Tensor) -> Tensor:
    return torch.tensor([position not in flawed for position in positions.tolist()], dtype=torch.bool)
