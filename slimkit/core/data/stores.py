"""Where decoded images are: held in memory once they were asked for, or streamed, that is decoded anew each time.

Both give the same pixels, of the preprocessing's `resize`: uint8 of images, float32 where there are arrays.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from slimkit.core.architecture import Preprocessing
from slimkit.core.data.decoder import Decoder, Decoding, Flawed, pixel_shape, workers
from slimkit.core.data.sources import Source
from slimkit.core.progress import Progress
from slimkit.core.torchrun import launch

MEMORY_LIMIT = 4 * 2**30  # bytes of pixels held
MEMORY_SHARE = 0.25  # of what is available, at most
AHEAD = 2  # batches that are decoded while one is used


class Store(Protocol):
    """The decoded images of a source."""

    labels: Tensor  # int64 [n]
    source: Source
    is_held: bool  # whether an image is decoded once

    def read(self, positions: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Flawed]]:
        """The images at `positions`, in batches [b, channels, *resize] of 0 … 255, flawed ones among them."""

    def check(self, positions: Tensor, progress: Progress) -> Flawed:
        """Decode all of `positions`."""


class MemoryStore:
    """Holds every image that was asked for."""

    is_held = True

    def __init__(self, source: Source, preprocessing: Preprocessing) -> None:
        self.labels = source.labels
        self.source = source
        self._decoder = Decoder(source, preprocessing)
        shape = (len(self.labels), *pixel_shape(preprocessing))
        self._pixels = torch.empty(shape, dtype=source.pixel_type)  # takes memory as it is filled
        self._decoded = torch.zeros(len(self.labels), dtype=torch.bool)

    def read(self, positions: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Flawed]]:
        """As `Store.read`."""
        for chunk in torch.split(positions, batch_size):
            flawed = self._decode(chunk)
            yield self._pixels[chunk], flawed

    def check(self, positions: Tensor, progress: Progress) -> Flawed:
        """As `Store.check`."""
        flawed: Flawed = {}
        with progress("decode images", len(positions)) as advance:
            for chunk in torch.split(positions, 512):
                flawed |= self._decode(chunk)
                advance(len(chunk))
        return flawed

    def _decode(self, positions: Tensor) -> Flawed:
        """Decode what is not decoded yet of `positions`."""
        missing = torch.unique(positions[~self._decoded[positions]])
        if not len(missing):
            return {}
        with workers() as pool:
            _, flawed = self._decoder.start(pool, missing, self._pixels, missing).result()
        self._decoded[missing] = True
        self._decoded[list(flawed)] = False
        return flawed


class StreamStore:
    """Decodes every image each time, `AHEAD` batches before they are asked for."""

    is_held = False

    def __init__(self, source: Source, preprocessing: Preprocessing) -> None:
        self.labels = source.labels
        self.source = source
        self._decoder = Decoder(source, preprocessing)
        self._shape = pixel_shape(preprocessing)

    def read(self, positions: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Flawed]]:
        """As `Store.read`. Workers are gone when the iterator is, whatever ends it."""
        pool, ahead = workers(), deque[Decoding]()
        try:
            for chunk in torch.split(positions, batch_size):
                pixels = torch.empty(len(chunk), *self._shape, dtype=self.source.pixel_type)
                ahead.append(self._decoder.start(pool, chunk, pixels, torch.arange(len(chunk))))
                if len(ahead) > AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def check(self, positions: Tensor, progress: Progress) -> Flawed:
        """As `Store.check`; nothing is kept."""
        flawed: Flawed = {}
        with progress("decode images", len(positions)) as advance:
            for pixels, found in self.read(positions, 64):
                flawed |= found
                advance(len(pixels))
        return flawed


def fits_in_memory(sources: Iterable[Source], preprocessing: Preprocessing) -> bool:
    """Whether the pixels of all images should be held, by each process that torchrun started on this machine."""
    image = math.prod(pixel_shape(preprocessing))
    taken = sum(len(source.labels) * image * source.pixel_type.itemsize for source in sources)
    return taken <= min(MEMORY_LIMIT, MEMORY_SHARE * _available_memory() / launch().local_count)


def _available_memory() -> float:
    """Bytes; infinite where the system does not say."""
    limits = [float("inf")]
    meminfo, cgroup = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        limits.append(1024 * float(fields["MemAvailable"].split()[0]))
    if cgroup.is_file() and (limit := cgroup.read_text().strip()) != "max":
        limits.append(float(limit))
    return min(limits)
