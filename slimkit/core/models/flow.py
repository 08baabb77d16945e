"""Running a network and a changed copy of it side by side, node by node, over many images in bounded memory."""

import itertools
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from slimkit.core.data import Batches

MEMORY_LIMIT = 3 * 2**30  # bytes of values held, of both networks together
WORTH_A_RESTART = 1.5  # times the batches held

Values = dict[Node, Any]  # as far as later nodes need them


class Runner:
    """Runs the nodes of a traced network that is in eval mode."""

    def __init__(self, traced: GraphModule) -> None:
        self._interpreter = Interpreter(traced)
        self.nodes: tuple[Node, ...] = tuple(self._interpreter.graph.nodes)

    def step(self, position: int, values: Values) -> None:
        """Compute the node at `position` and drop what no later node needs. The image, node 0, is there already."""
        node = self.nodes[position]
        if node.op == "placeholder":
            return
        self._interpreter.env = values
        values[node] = self._interpreter.run_node(node)
        for used in self._interpreter.user_to_last_uses.get(node, ()):
            values.pop(used, None)


@dataclass(frozen=True)
class Held:
    """One batch on its way through both networks."""

    images: int
    original: Values
    changed: Values


class Flow:
    """The values of the original and the changed network for the same images, at a node that moves forward.

    A layer of the changed network is to be solved on what the layers before it give once they are solved, so what is
    still needed is held, for as many batches as MEMORY_LIMIT allows (at least one). Early values are the largest: where
    more batches fit later, they are run again from the start, through the layers that are solved by then.
    """

    def __init__(self, original: GraphModule, changed: GraphModule, batches: Batches, stops: Container[str]) -> None:
        """`stops` names the layers before which the number of batches may change; both have the same nodes."""
        self.original, self.changed = Runner(original), Runner(changed)
        self.held: list[Held] = []
        self._batches = batches
        self._like = next(original.parameters())
        self._rooms = self._measure_rooms(stops)

    @property
    def images(self) -> int:
        """How many images are held."""
        return sum(batch.images for batch in self.held)

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
            self.original.step(position, batch.original)

    def step_changed(self, position: int) -> None:
        """Compute node `position` of the changed network."""
        for batch in self.held:
            self.changed.step(position, batch.changed)

    def _run_to(self, position: int, images: Tensor) -> Held:
        held = Held(len(images), self._start(self.original, images), self._start(self.changed, images))
        for before in range(position):
            self.original.step(before, held.original)
            self.changed.step(before, held.changed)
        return held

    def _start(self, runner: Runner, images: Tensor) -> Values:
        # a copy, because the first operation may work in place
        return {runner.nodes[0]: images.to(self._like.device, self._like.dtype, copy=True)}

    def _measure_rooms(self, stops: Container[str]) -> dict[int, int]:
        """For the position of each stop, and the first: how many batches can be held until the next one."""
        values = self._start(self.original, next(iter(self._batches)))
        stop, rooms = 0, {0: len(self._batches)}
        for position, node in enumerate(self.original.nodes):
            if node.target in stops:
                stop = position
            before = _size(values)
            self.original.step(position, values)
            room = MEMORY_LIMIT // (2 * max(before, _size(values), 1))
            rooms[stop] = max(1, min(rooms.get(stop, len(self._batches)), room))
        return rooms


def _size(values: Values) -> int:
    """Bytes; what two tensors share is counted twice."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
