"""Running a network and a changed copy of it side by side, node by node, over many images in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from slimkit.core.data import Batches
from slimkit.core.graph.node import IMAGE
from slimkit.standalone.model import GraphNetwork

MEMORY_LIMIT = 3 * 2**30  # bytes of values held, of both networks together
WORTH_A_RESTART = 1.5  # times the batches held

Values = dict[Any, Any]  # by node, as far as later nodes need them


class Runner(Protocol):
    """A network in eval mode, one node at a time."""

    @property
    def nodes(self) -> Sequence[Any]:
        """What the values of a network are called, in the order that they are computed."""

    def start(self, images: Tensor) -> Values:
        """The values before the first node."""

    def step(self, position: int, values: Values, shape: torch.Size) -> None:
        """Compute the node at `position` and drop what no later node needs. shape: of the images."""


class GraphRunner:
    """Runs a graph's network; its nodes are the names of the graph's."""

    def __init__(self, network: GraphNetwork) -> None:
        self._steps = network.steps
        self.nodes: tuple[str, ...] = tuple(step.name for step in self._steps)

    def start(self, images: Tensor) -> Values:
        """The images alone."""
        return {IMAGE: images.float().cpu()}

    def step(self, position: int, values: Values, shape: torch.Size) -> None:
        """Compute one node."""
        self._steps[position].run(values, shape)


@dataclass(frozen=True)
class Held:
    """One batch on its way through both networks."""

    shape: torch.Size  # of the images
    original: Values
    changed: Values


class Lockstep:
    """The values of the original and the changed network for the same images, at a node that moves forward.

    A layer of the changed network is to be solved on what the layers before it give once they are solved, so what is
    still needed is held, for as many batches as MEMORY_LIMIT allows (at least one). Early values are the largest: where
    more batches fit later, they are run again from the start, through the layers that are solved by then.
    """

    def __init__(self, original: Runner, changed: Runner, batches: Batches, stops: Container[int]) -> None:
        """stops: the positions before which the number of batches may change; both have the same nodes."""
        self.original, self.changed = original, changed
        self.held: list[Held] = []
        self._batches = batches
        self._rooms = self._measure_rooms(stops)

    @property
    def images(self) -> int:
        """How many images are held."""
        return sum(batch.shape[0] for batch in self.held)

    def seek(self, position: int) -> None:
        """Before node `position` is computed: hold as many batches as there is room for until the next stop."""
        room = self._rooms.get(position, len(self.held))
        if room >= WORTH_A_RESTART * len(self.held):
            self.held.clear()  # before the new ones take memory
            self.held.extend(self._run_to(position, batch) for batch in itertools.islice(self._batches, room))
        del self.held[room:]

    def step_original(self, position: int) -> None:
        """Compute node `position` of the original network."""
        for batch in self.held:
            self.original.step(position, batch.original, batch.shape)

    def step_changed(self, position: int) -> None:
        """Compute node `position` of the changed network."""
        for batch in self.held:
            self.changed.step(position, batch.changed, batch.shape)

    def _run_to(self, position: int, images: Tensor) -> Held:
        held = Held(images.shape, self.original.start(images), self.changed.start(images))
        for before in range(position):
            self.original.step(before, held.original, held.shape)
            self.changed.step(before, held.changed, held.shape)
        return held

    def _measure_rooms(self, stops: Container[int]) -> dict[int, int]:
        """For each stop, and the first node: how many batches can be held until the next one."""
        images = next(iter(self._batches))
        values = self.original.start(images)
        stop, rooms = 0, {0: len(self._batches)}
        for position in range(len(self.original.nodes)):
            if position in stops:
                stop = position
            before = _size(values)
            self.original.step(position, values, images.shape)
            room = MEMORY_LIMIT // (2 * max(before, _size(values), 1))
            rooms[stop] = max(1, min(rooms.get(stop, len(self._batches)), room))
        return rooms


def _size(values: Values) -> int:
    """Bytes; what two tensors share is counted twice."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
