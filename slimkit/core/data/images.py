"""Labelled images in batches: held in memory, each decoded when it is first asked for, or streamed by worker processes.

Both give the same pixels, of the preprocessing's `resize`: uint8 of images, float32 where there are arrays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slimkit.core.architecture import Preprocessing
from slimkit.core.data.sources import Source
from slimkit.core.errors import DataError
from slimkit.core.load import own_processors
from slimkit.core.progress import Progress, silent
from slimkit.core.torchrun import launch
from slimkit.standalone import model_loader

MEMORY_LIMIT = 4 * 2**30  # bytes of pixels held
MEMORY_SHARE = 0.25  # of what is available, at most


class Store(Protocol):
    """The decoded images of a source."""

    labels: Tensor  # int64 [n]
    source: Source

    def read(self, positions: Tensor, batch_size: int) -> Iterator[Tensor]:
        """The images at `positions`, in batches [b, channels, *resize] of 0 … 255. Raises DataError, naming a file."""

    def load(self, positions: Tensor, progress: Progress) -> dict[int, DataError]:
        """Decode now what reading `positions` would decode on the way; gives what is wrong with which of them."""


@dataclass(frozen=True, eq=False)
class Images:
    """Some images of a store."""

    store: Store
    positions: Tensor  # int64 [n]: their places in the store

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def labels(self) -> Tensor:
        """The class of each image: int64 [n]."""
        return self.store.labels[self.positions]

    def subset(self, indices: Tensor) -> Images:
        """The images at `indices`, which become 0, 1, …; what was decoded stays shared."""
        return Images(self.store, self.positions[indices])

    def digest(self) -> str:
        """The sha256 of the list of these images: the name and the label of each, in their order."""
        labels = self.labels.tolist()
        names = [self.store.source.name(place) for place in self.positions.tolist()]
        lines = (f"{name}\t{label}\n" for name, label in zip(names, labels, strict=True))
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The images at `order` (indices, int64 [n]), in that order; the last batch may be smaller.

        Gives (pixels [b, channels, *resize] of 0 … 255, labels int64 [b], indices int64 [b]). Raises DataError that
        names the file of an image that can't be decoded.
        """
        if len(order) == 0:
            return
        labels = self.labels
        batches = self.store.read(self.positions[order], batch_size)
        for indices, pixels in zip(torch.split(order, batch_size), batches, strict=True):
            yield pixels, labels[indices], indices

    def readable(self, progress: Progress = silent) -> tuple[Images, tuple[str, ...]]:
        """Those of the images that can be read, and what is wrong with the others.

        Images that are to be held in memory are decoded for that; those that are streamed count as readable.
        """
        wrong = self.store.load(self.positions, progress)
        keep = torch.tensor([place not in wrong for place in self.positions.tolist()], dtype=torch.bool)
        return Images(self.store, self.positions[keep]), tuple(map(str, wrong.values()))


class MemoryStore:
    """Holds every image that was asked for."""

    def __init__(self, source: Source, preprocessing: Preprocessing) -> None:
        self.labels = source.labels
        self.source = source
        self._preprocessing = dataclasses.asdict(preprocessing)
        shape = (len(self.labels), *pixel_shape(preprocessing))
        self._pixels = torch.empty(shape, dtype=source.pixel_type)  # takes memory as it is filled
        self._decoded = torch.zeros(len(self.labels), dtype=torch.bool)

    def read(self, positions: Tensor, batch_size: int) -> Iterator[Tensor]:
        """As `Store.read`."""
        for chunk in torch.split(positions, batch_size):
            for error in self._decode(chunk).values():
                raise error
            yield self._pixels[chunk]

    def load(self, positions: Tensor, progress: Progress) -> dict[int, DataError]:
        """As `Store.load`."""
        wrong: dict[int, DataError] = {}
        with progress("decode images", len(positions)) as advance:
            for chunk in torch.split(positions, 512):
                wrong |= self._decode(chunk)
                advance(len(chunk))
        return wrong

    def _decode(self, positions: Tensor) -> dict[int, DataError]:
        """Decode what is not decoded yet of `positions`; gives what is wrong with which of them."""
        missing = torch.unique(positions[~self._decoded[positions]])
        wrong: dict[int, DataError] = {}
        if len(missing):
            cores = own_processors()
            with ThreadPoolExecutor(cores) as pool:  # Pillow works outside the interpreter's lock
                for found in pool.map(self._decode_each, (missing[core::cores].tolist() for core in range(cores))):
                    wrong |= found
            self._decoded[missing] = True
            self._decoded[list(wrong)] = False
        return wrong

    def _decode_each(self, positions: list[int]) -> dict[int, DataError]:
        wrong = {}
        for position in positions:
            try:
                self._pixels[position] = _pixels(self.source, position, self._preprocessing)
            except DataError as error:
                wrong[position] = error
        return wrong


class StreamStore:
    """Decodes every image each time, in worker processes that work ahead."""

    def __init__(self, source: Source, preprocessing: Preprocessing) -> None:
        self.labels = source.labels
        self.source = source
        self._pixels = _Pixels(source, dataclasses.asdict(preprocessing))

    def read(self, positions: Tensor, batch_size: int) -> Iterator[Tensor]:
        """As `Store.read`."""
        loader: DataLoader[Any] = DataLoader(
            self._pixels,
            batch_sampler=[chunk.tolist() for chunk in torch.split(positions, batch_size)],
            num_workers=min(own_processors(), 16),
            collate_fn=_stack,
            worker_init_fn=_leave_signals,
        )
        for batch in loader:
            if isinstance(batch, tuple):
                raise DataError(*batch)
            yield torch.from_numpy(batch)

    def load(self, positions: Tensor, progress: Progress) -> dict[int, DataError]:
        """As `Store.load`: nothing is held, so nothing is decoded."""
        return {}


class _Pixels(Dataset[Any]):
    """The pixels of a source, as a DataLoader's workers see them."""

    def __init__(self, source: Source, preprocessing: dict[str, Any]) -> None:
        self._source = source
        self._preprocessing = preprocessing

    def __getitem__(self, position: int) -> Any:
        """[channels, *resize], or what a DataError says: raised in a worker, it would come back as another."""
        try:
            return _pixels(self._source, position, self._preprocessing).numpy()
        except DataError as error:
            return str(error), error.hint


def _leave_signals(worker: int) -> None:
    """Let the main process alone obey signals: torchrun sends them to a whole group, and it may take a last step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _pixels(source: Source, position: int, preprocessing: dict[str, Any]) -> Tensor:
    image = source.image(position, channels=len(preprocessing["mean"]))
    return model_loader.resize_to_cover(image, preprocessing).to(source.pixel_type)


def pixel_shape(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """(channels, height, width) of an image as it is held."""
    return len(preprocessing.mean), *model_loader.sides(preprocessing.resize)


def _stack(pixels: list[Any]) -> Any:
    """A batch, or what the first error in it says.

    NumPy arrays come through a pipe; tensors would take shared memory, which containers have little of.
    """
    errors = [each for each in pixels if isinstance(each, tuple)]
    return errors[0] if errors else np.stack(pixels)


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
