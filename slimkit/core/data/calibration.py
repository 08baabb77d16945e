"""Images as a network sees them, without labels, that can be gone through as often as needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from slimkit.core.architecture import Preprocessing
from slimkit.core.data.augment import evaluation_input
from slimkit.core.data.images import Images
from slimkit.core.data.randomness import epoch_order
from slimkit.core.errors import UsageError


class Batches(Protocol):
    """Batches of normalized images, float [n, channels, height, width] each; a list of tensors is one."""

    def __len__(self) -> int:
        """How many batches there are."""

    def __iter__(self) -> Iterator[Tensor]:
        """All batches, from the first, each time."""


@dataclass(frozen=True, eq=False)
class CalibrationBatches:
    """`count` of the images (all, where there are fewer), drawn by `seed`, in the preprocessing of evaluation."""

    images: Images
    preprocessing: Preprocessing
    count: int
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"{self.count} is no number of calibration images.", "Give 1 or more.")

    def __len__(self) -> int:
        return -(-min(self.count, len(self.images)) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """Batches [n, channels, *crop], the last of them maybe smaller. Raises DataError that names a broken file."""
        order = epoch_order(len(self.images), self.seed, epoch=0)[: self.count]
        for pixels, _, _ in self.images.batches(order, self.batch_size):
            yield evaluation_input(pixels, self.preprocessing)


def random_images(shape: tuple[int, ...], count: int) -> Tensor:
    """Normalized random images [count, *shape]: coarse blots under fine noise.

    Noise alone looks alike to a network, which then gives one answer to all of it.
    """
    generator = torch.Generator().manual_seed(0)
    blots = functional.interpolate(torch.randn(count, shape[0], 4, 4, generator=generator), shape[1:], mode="bicubic")
    noise: Tensor = torch.randn(count, *shape, generator=generator)
    return blots + 0.2 * noise
