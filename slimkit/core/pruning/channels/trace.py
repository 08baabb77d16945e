"""Following every channel through a graph: which layers make it, which read it, what it is tied to.

Each value of the graph is a tensor of channel atoms (`atoms.py`) in place of numbers. An operation's rule (`rules.py`)
says what becomes of them: layers read atoms and make new ones, sums and products tie atoms together, and concatenation,
permutation and the like move them as they would move numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slimkit.core.errors import ModelError
from slimkit.core.graph import Graph, Input, Node, Weight
from slimkit.core.graph.node import IMAGE
from slimkit.core.graph.shapes import Shapes, value_shapes
from slimkit.core.pruning.channels.atoms import Atoms, varies

SMALL = 64  # pixels
Place = tuple[str, int]  # a dimension of the tensor of that name
Kind = Literal["weighted", "scaling"]  # whether it makes new channels of those that it reads, or keeps them


@dataclass(frozen=True)
class ChannelLayer:
    """A tensor that meets channels: the weight of a convolution or matrix product, or what scales each channel."""

    name: str  # the path of the layer: the tensor's name without ".weight"
    kind: Kind
    operation: str
    weight: str  # the tensor's name
    inputs: Tensor  # the atoms that it reads, int64 [channels]
    outputs: Tensor  # the atoms that it makes, int64 [channels]; of a scaling one, the very same
    groups: int = 1


@dataclass(frozen=True)
class Trace:
    """Where the channels of a graph are."""

    graph: Graph
    atoms: Atoms
    layers: Mapping[str, ChannelLayer]  # by their names, in the order that they run
    values: Mapping[str, Tensor]  # the atoms of each node's value, int64 of its shape for one image
    tensors: Mapping[Place, Tensor]  # the atoms along a dimension of a tensor: int64 [size]
    mixed: Mapping[str, frozenset[str]]  # the nodes that add up over channels, each with those inputs of it

    def random_images(self) -> Tensor:
        """Two, of the shape that the channels were followed with: [2, channels, height, width]."""
        shape = self.values[IMAGE].shape[1:]
        return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def small_shape(graph: Graph) -> tuple[int, ...]:
    """The shape of the smallest image worth trying: the channels are the same, and found sooner."""
    channels, *space = graph.input_shape
    return channels, *(min(n, SMALL) if dim in graph.free else n for dim, n in enumerate(space, 2))


def smallest_shapes(graph: Graph) -> Shapes:
    """The shapes of all values for one small image, or for one of the size that the graph was captured with."""
    with contextlib.suppress(ModelError):
        return value_shapes(graph, (1, *small_shape(graph)))
    return value_shapes(graph, (1, *graph.input_shape))


class Tracer:
    """What the rules read and write, while the nodes are followed in their order."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.atoms = graph, Atoms()
        self.shapes = smallest_shapes(graph)
        self.layers: dict[str, ChannelLayer] = {}
        self.values: dict[str, Tensor] = {}
        self.tensors: dict[Place, Tensor] = {}
        self.mixed: dict[str, frozenset[str]] = {}
        self._node: Node  # the one that is followed
        self._marked: set[tuple[str, Place]] = set()  # by which node
        self._still = self.atoms.fresh(1)[0]  # the atom of values that have no channels
        self.atoms.freeze(self._still, "it is combined with values that have no channels")
        image = self.shapes[IMAGE]
        channels = self.atoms.fresh(image[1])
        self.atoms.freeze(channels, "the image comes in through it")
        self.values[IMAGE] = channels.view(1, -1, *[1] * (len(image) - 2)).expand(image)

    def follow(self, node: Node, rule: Callable[[Tracer, Node], Tensor]) -> None:
        """Let a rule say what becomes of the channels at a node."""
        self._node = node
        self.values[node.name] = self._boxed(rule(self, node).expand(self.shape(node)))

    def _boxed(self, atoms: Tensor) -> Tensor:
        """What is left of a value must be a box: it is cut along one dimension alone, alike at all places of others."""
        shape, channels = atoms.shape, spans(atoms)
        for dim in channels:
            if dim != max(channels, key=lambda d: shape[d]):
                first = atoms.narrow(dim, 0, 1)
                self.atoms.unite(atoms, first)
                atoms = first  # what is picked along this dimension later (q, k and v, say) are no channels any more
        return atoms.expand(shape)

    def done(self) -> Trace:
        """What was found, once all nodes are followed."""
        for node in self.graph.nodes:
            for name in node.weights:
                for dim in range(self.graph.tensors[name].dim()):
                    if (name, dim) in self.tensors and (node.name, (name, dim)) not in self._marked:
                        self.atoms.freeze(self.tensors[name, dim], f"{node.operation} reads {name} too")
        self.atoms.freeze(self.values[self.graph.nodes[-1].name], "it gives the network's answer")
        return Trace(self.graph, self.atoms, self.layers, self.values, self.tensors, self.mixed)

    # What a node has

    def value(self, node: Node, argument: str) -> Tensor | None:
        """The atoms of the argument of that name, if it is the value of another node."""
        given = node.arguments.get(argument)
        return self.values[node.inputs[given.index]] if isinstance(given, Input) else None

    def weight(self, node: Node, argument: str) -> Tensor | None:
        """The tensor that is the argument of that name, if it is one."""
        given = node.arguments.get(argument)
        return self.graph.tensors[given.name] if isinstance(given, Weight) else None

    def shape(self, node: Node) -> torch.Size:
        """Of the node's value."""
        return self.shapes[node.name]

    def inputs(self, node: Node) -> list[Tensor]:
        """The atoms of all values that it reads."""
        return [self.values[name] for name in node.inputs]

    # What a rule finds

    def still(self, node: Node) -> Tensor:
        """The value of a node that has no channels."""
        return self._still.expand(self.shape(node))

    def opaque(self, node: Node, reason: str | None = None) -> Tensor:
        """Channels meet in a way that isn't known: what goes in stays, and what comes out."""
        for atoms in self.inputs(node):
            self.atoms.freeze(atoms, reason or f"{node.operation} mixes channels")
        return self.still(node)

    def mark(self, place: Place, atoms: Tensor) -> None:
        """Note the atoms along a dimension of a tensor; where it is used again, they are cut together."""
        self._marked.add((self._node.name, place))
        if place in self.tensors:
            self.atoms.unite(self.tensors[place], atoms)
        else:
            self.tensors[place] = atoms

    def along(self, atoms: Tensor, dim: int) -> Tensor:
        """The atoms along one dimension, int64 [size]; one tensor serves all other positions, so these are tied."""
        rows = atoms.movedim(dim, -1)
        first = rows[(0,) * (rows.dim() - 1)]
        self.atoms.unite(rows, first)
        return first

    def fresh(self, count: int) -> Tensor:
        """New channels: int64 [count]."""
        return self.atoms.fresh(count)

    def record(self, node: Node, weight: str, inputs: Tensor, outputs: int, groups: int = 1) -> Tensor:
        """Note a layer that reads `inputs`; the atoms of its `outputs`. Called again, it has the same channels."""
        name = layer_name(weight)
        if name in self.layers:
            self.atoms.unite(self.layers[name].inputs, inputs)
        else:
            made = self.fresh(outputs)
            self.layers[name] = ChannelLayer(name, "weighted", node.operation, weight, inputs, made, groups)
        return self.layers[name].outputs

    def scale(self, node: Node, weights: Sequence[str], atoms: Tensor) -> None:
        """Note tensors that have a number for each of these atoms, int64 [channels]."""
        for weight in weights:
            self.mark((weight, 0), atoms)
        name = layer_name(weights[0])
        self.layers.setdefault(name, ChannelLayer(name, "scaling", node.operation, weights[0], atoms, atoms))

    def mixes(self, node: Node, *inputs: str) -> None:
        """Note that the node adds up over channels of these inputs."""
        self.mixed[node.name] = self.mixed.get(node.name, frozenset()) | set(inputs)


def layer_name(weight: str) -> str:
    """What a layer is called: its module's path, or the tensor's own name."""
    return weight.removesuffix(".weight").removesuffix(".running_mean")


def spans(atoms: Tensor) -> list[int]:
    """The dimensions along which different channels lie."""
    return [dim for dim in range(atoms.dim()) if atoms.shape[dim] > 1 and varies(atoms, dim)]
