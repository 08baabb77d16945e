"""A network that is asked from here, image by image, with the clock on this side, as the schedule of a benchmark wants.

It sleeps but for its turns, so that none of its threads can slow the turns of the others. Each image that it is shown
under the clock differs from all before by noise that nobody sees: an answer kept is of no use.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from slimkit.core.errors import ModelError
from slimkit.core.measure.worker import Bench
from slimkit.core.strangers.convention import printable
from slimkit.core.strangers.host import HINT, Stranger
from slimkit.core.strangers.watch import peak_memory_mb

SHADE = 1 / 255 / 0.225  # one of 255 shades, in the units of normalized images
BATCH = 50  # images at once, where no clock runs
SAME_WHEN_TIMED = 0.9  # of the images, at least, are answered alike with noise under the clock
ENOUGH = 50  # images to judge that by


class RoundTrips(Bench):
    """A `Bench` whose runs go to another process and back."""

    def __init__(self, stranger: Stranger, images: Tensor, batch_size: int, expected: Tensor | None) -> None:
        """images: float32 [n, c, h, w]. expected: int64 [n], what has to be answered to each; None: that is trusted."""
        self._batches = torch.split(images, batch_size)
        super().__init__([partial(self._logits_of, batch) for batch in self._batches])
        self._stranger = stranger
        self._expected = None if expected is None else torch.split(expected, batch_size)
        self._places = itertools.cycle(range(len(self._batches)))
        self._noise = torch.Generator().manual_seed(secrets.randbits(62))
        self._shown = self._same = 0

    def time_run(self) -> float:
        """The ms from the sending of a batch to the last of its logits."""
        place = next(self._places)
        batch = self._batches[place]
        logits, took = self._stranger.ask(batch + SHADE * (2 * torch.rand(batch.shape, generator=self._noise) - 1))
        if self._expected:
            self._shown += len(batch)
            self._same += int((logits.argmax(1) == self._expected[place]).sum())
        return took

    def peak_memory(self) -> dict[str, Any]:
        """The most memory that its process has had, in MB."""
        return {"peak_memory": peak_memory_mb(self._stranger.process.pid)}

    def require_same(self) -> None:
        """Raise ModelError where it answers otherwise under the clock than when none runs."""
        if self._shown >= ENOUGH and self._same < SAME_WHEN_TIMED * self._shown:
            raise ModelError(
                f"{printable(self._stranger.submission.folder.name)} failed: it answers "
                f"{100 * (1 - self._same / self._shown):.0f} % of the images otherwise when it is timed.",
                HINT,
            )

    def _logits_of(self, batch: Tensor) -> Tensor:
        return self._stranger.ask(batch)[0]


class AskedInTurn:
    """As a `TimedProcess` is spoken to."""

    def __init__(self, stranger: Stranger, bench: RoundTrips) -> None:
        self._stranger, self._bench = stranger, bench

    def answer(self) -> dict[str, Any]:
        """How long it took to load it, its runtime included."""
        self._stranger.rest()
        return {"load_ms": self._stranger.load_ms}

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a request of `worker.REQUESTS`. Raises ModelError for whatever it does wrong."""
        self._stranger.wake()
        found: dict[str, Any] = getattr(self._bench, do)(**arguments)
        self._stranger.rest()
        self._bench.require_same()
        return found


@contextmanager
def start_round_trips(
    started: AbstractContextManager[Stranger], images: Tensor, batch_size: int, expected: Tensor | None = None
) -> Iterator[AskedInTurn]:
    """Ask the process that `started` starts; see `RoundTrips`. It is ended with the context."""
    with started as stranger:
        yield AskedInTurn(stranger, RoundTrips(stranger, images, batch_size, expected))


def answers_unwatched(stranger: Stranger, images: Tensor) -> Tensor:
    """Its logits float32 [n, classes] to images [n, c, h, w], shown in an order that nobody can foretell."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(secrets.randbits(62)))
    logits = torch.cat([stranger.ask(images[part])[0] for part in torch.split(order, BATCH)])
    return logits[order.argsort()]
