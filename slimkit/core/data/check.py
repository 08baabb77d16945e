"""The check of a data set: is every image readable?"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from slimkit.core.data.dataset import find_collection
from slimkit.core.data.sources import Source
from slimkit.core.errors import DataError
from slimkit.core.load import allowed_processors
from slimkit.core.progress import Progress, silent

CHUNK = 256  # images between two signs of progress


@dataclass(frozen=True)
class DatasetCheck:
    """What a data set holds, and what is wrong with it."""

    name: str
    class_names: tuple[str, ...]
    images: dict[str, int]  # of each split
    problems: tuple[str, ...]  # one sentence for each image that can't be read


def check_dataset(spec: str, progress: Progress = silent) -> DatasetCheck:
    """Decode every image once. Raises as `open_dataset` where the folders themselves are wrong."""
    collection = find_collection(spec, progress)
    counts = {split: len(source.labels) for split, source in collection.sources.items()}
    problems: list[str] = []
    with (
        progress("check images", sum(counts.values())) as advance,
        ThreadPoolExecutor(len(allowed_processors())) as pool,
    ):
        for source in collection.sources.values():
            for start in range(0, len(source.labels), CHUNK):
                chunk = range(start, min(start + CHUNK, len(source.labels)))
                found = pool.map(lambda index, source=source: _problem(source, index), chunk)
                problems += [problem for problem in found if problem]
                advance(len(chunk))
    return DatasetCheck(collection.name, collection.class_names, counts, tuple(problems))


def _problem(source: Source, index: int) -> str | None:
    try:
        source.image(index)
    except DataError as error:
        return str(error)
    return None
