"""How the core reports progress without printing: the caller hands in a `Progress`, the command line draws it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Draws the progress of one task at a time."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Open a task of `total` units; what the context gives is called with the number of units just done."""


@contextmanager
def silent(description: str, total: int) -> Iterator[Advance]:
    """The `Progress` that draws nothing."""
    yield lambda units: None
