"""The check of a data set: every image is decoded once; what is wrong with the set, and what is in it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slimkit.core.data.dataset import find_collection, require_channels
from slimkit.core.data.sources import Collection, Source
from slimkit.core.errors import DataError
from slimkit.core.load import allowed_processors
from slimkit.core.progress import Progress, silent

CHUNK = 256  # images between two signs of progress
Sums = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """What a split holds."""

    images: int
    classes: dict[str, int]  # the images of each class; none of photos without classes

    @property
    def missing(self) -> tuple[str, ...]:
        """The classes without any image."""
        return tuple(name for name, count in self.classes.items() if count == 0)


@dataclass(frozen=True)
class DatasetCheck:
    """What a data set holds, and what is wrong with it."""

    name: str
    splits: dict[str, Split]
    broken: tuple[str, ...]  # one sentence for each image that can't be read, or is empty
    duplicates: tuple[tuple[str, ...], ...]  # images of the same size and pixels, as split/name
    left_out: tuple[str, ...]  # one sentence for each kind of file that is no image of a class
    sizes: tuple[tuple[int, int], ...]  # least, median and greatest (height, width), each side for itself
    mean: tuple[float, ...]  # of each channel over all pixels, of values from 0 to 1
    std: tuple[float, ...]

    @property
    def flaws(self) -> tuple[str, ...]:
        """All that is wrong, a sentence each."""
        twice = (f"{' and '.join(names)} are the same image." for names in self.duplicates)
        missing = (f"{name} has no images of: {', '.join(s.missing)}." for name, s in self.splits.items() if s.missing)
        return (*self.broken, *twice, *missing, *self.left_out)


@dataclass(frozen=True)
class _Seen:
    """What is kept of an image that was decoded."""

    digest: bytes  # of size and pixels
    size: tuple[int, int]  # height, width
    sums: Sums  # [2, channels]: of the values from 0 to 1, and of their squares


def check_dataset(spec: str, channels: int = 3, progress: Progress = silent) -> DatasetCheck:
    """Decode every image once, in as many channels. Raises as `open_dataset` where the folders themselves are wrong."""
    collection = find_collection(spec, progress)
    require_channels(collection, channels)
    seen: dict[str, _Seen] = {}
    broken: list[str] = []
    total = sum(len(source.labels) for source in collection.sources.values())
    with progress("check images", total) as advance, ThreadPoolExecutor(len(allowed_processors())) as pool:
        for split, source in collection.sources.items():
            for start in range(0, len(source.labels), CHUNK):
                chunk = range(start, min(start + CHUNK, len(source.labels)))
                looks = pool.map(lambda index, source=source: _look_at(source, index, channels), chunk)
                for index, look in zip(chunk, looks, strict=True):
                    if isinstance(look, str):
                        broken.append(look)
                    else:
                        seen[f"{split}/{source.name(index)}"] = look
                advance(len(chunk))
    sizes = np.array([each.size for each in seen.values()]).reshape(-1, 2)
    mean, std = _moments(seen.values())
    return DatasetCheck(
        name=collection.name,
        splits={split: _count(collection, source) for split, source in collection.sources.items()},
        broken=tuple(broken),
        duplicates=_duplicates(seen),
        left_out=collection.left_out,
        sizes=tuple((int(h), int(w)) for h, w in np.quantile(sizes, (0, 0.5, 1), axis=0)) if seen else (),
        mean=mean,
        std=std,
    )


def _look_at(source: Source, index: int, channels: int) -> _Seen | str:
    """What is to be known of an image, or the sentence that says why it can't be read."""
    try:
        image = source.image(index, channels)
    except DataError as error:
        return str(error)
    pixels = np.asarray(image)  # [h, w, channels] or [h, w] of a picture, [channels, h, w] of an array
    if pixels.dtype == np.float32:
        pixels = pixels.transpose(1, 2, 0)
    values = pixels.reshape(-1, channels).astype(np.float64) / 255
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes()).digest()
    height, width = pixels.shape[:2]
    return _Seen(digest, (height, width), np.stack([values.sum(0), (values**2).sum(0)]))


def _count(collection: Collection, source: Source) -> Split:
    counts = source.labels.bincount(minlength=len(collection.class_names)).tolist()
    return Split(len(source.labels), dict(zip(collection.class_names, counts, strict=False)))


def _duplicates(seen: dict[str, _Seen]) -> tuple[tuple[str, ...], ...]:
    by_digest: dict[bytes, list[str]] = defaultdict(list)
    for name, each in seen.items():
        by_digest[each.digest].append(name)
    return tuple(tuple(names) for names in by_digest.values() if len(names) > 1)


def _moments(seen: Iterable[_Seen]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, over the pixels of all images."""
    all_seen = list(seen)
    pixels = sum(height * width for height, width in (each.size for each in all_seen))
    if not pixels:
        return (), ()
    mean, square = np.sum([each.sums for each in all_seen], axis=0) / pixels
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(square - mean**2, 0)).tolist())
