"""How the core reports progress without printing: the caller hands in a `Progress`, the command line draws it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Tells of work just done."""

    def __call__(self, units: int, note: str = "") -> None:
        """So many units are done; a note says how things stand."""


class Progress(Protocol):
    """Draws the progress of one task at a time."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Open a task of `total` units; what the context gives is told of the units just done."""


@contextmanager
def silent(description: str, total: int) -> Iterator[Advance]:
    """The `Progress` that draws nothing."""
    yield lambda units, note="": None
