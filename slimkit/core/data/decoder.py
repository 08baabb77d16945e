"""Decoding images of a source on several threads: Pillow works outside of the interpreter's lock."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from slimkit.core.architecture import Preprocessing
from slimkit.core.data.sources import Source
from slimkit.core.errors import DataError
from slimkit.core.load import own_processors
from slimkit.standalone import model_loader

MOST_WORKERS = 16
Flawed = dict[int, DataError]  # what is wrong with the images at these positions


@dataclass(frozen=True)
class Decoding:
    """A batch that workers are at."""

    pixels: Tensor  # [n, channels, *resize]
    parts: list[Future[Flawed]]

    def result(self) -> tuple[Tensor, Flawed]:
        """The pixels, and what is wrong with any, once all is done."""
        return self.pixels, {position: error for part in self.parts for position, error in part.result().items()}


class Decoder:
    """Decodes images of a source, shared among the threads of a pool."""

    def __init__(self, source: Source, preprocessing: Preprocessing) -> None:
        self._source = source
        self._preprocessing = dataclasses.asdict(preprocessing)

    def start(self, pool: ThreadPoolExecutor, positions: Tensor, pixels: Tensor, places: Tensor) -> Decoding:
        """Decode the images at `positions` [n] into the rows `places` [n] of `pixels`."""
        tasks = list(zip(positions.tolist(), places.tolist(), strict=True))
        parts = [tasks[first :: _worker_count()] for first in range(_worker_count())]
        return Decoding(pixels, [pool.submit(self._decode, part, pixels) for part in parts if part])

    def _decode(self, tasks: list[tuple[int, int]], pixels: Tensor) -> Flawed:
        flawed: Flawed = {}
        rows = pixels.numpy()  # NumPy copies on this thread; torch would start others
        for position, place in tasks:
            try:
                image = self._source.image(position, channels=len(self._preprocessing["mean"]))
                rows[place] = model_loader.resize_to_cover(image, self._preprocessing).numpy()
            except DataError as error:
                flawed[position] = error
        return flawed


def workers() -> ThreadPoolExecutor:
    """A thread for each core that may be used."""
    return ThreadPoolExecutor(_worker_count())


def _worker_count() -> int:
    return min(own_processors(), MOST_WORKERS)


def pixel_shape(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """(channels, height, width) of an image as it is held."""
    return len(preprocessing.mean), *model_loader.sides(preprocessing.resize)
