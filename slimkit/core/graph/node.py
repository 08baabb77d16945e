"""The normal form of a network: frozen nodes, each an operation of `standalone/model.py`, and their tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn

from slimkit.standalone.model import GraphNetwork

IMAGE = "input"  # the name under which nodes read the images


@dataclass(frozen=True)
class Input:
    """The result of another node: the one that `Node.inputs[index]` names."""

    index: int


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer, by the name that it has in the user's network."""

    name: str


@dataclass(frozen=True)
class Size:
    """An integer that depends on the shape of the images: its dimension `operands[0]`, or a function of two others."""

    function: Literal["image", "add", "mul", "floordiv", "mod", "max", "min"]
    operands: tuple[Size | int, ...]

    @property
    def dimensions(self) -> frozenset[int]:
        """The dimensions of the images that it changes with."""
        if self.function == "image":
            return frozenset(operand for operand in self.operands if isinstance(operand, int))
        return frozenset[int]().union(*(o.dimensions for o in self.operands if isinstance(o, Size)))

    @property
    def follows_batch(self) -> bool:
        """Whether it changes with the number of images."""
        return 0 in self.dimensions

    def to_json(self) -> list[Any]:
        """As `standalone.model.evaluate_size` reads it."""
        return [self.function, *(o.to_json() if isinstance(o, Size) else o for o in self.operands)]


Argument = Input | Weight | Size | bool | int | float | str | None | tuple["Argument", ...]


@dataclass(frozen=True)
class Node:
    """One operation."""

    name: str  # unique; where a module is one operation, its path
    operation: str  # a key of `standalone.model.OPERATIONS`
    inputs: tuple[str, ...]  # the nodes that it reads; IMAGE is the images
    arguments: Mapping[str, Argument]  # all of them, by the names of torch's schema; those that have no value left out
    module: str = ""  # the path of the user's module that calls it
    source: str = ""  # the user's line: "file.py:12: x = self.conv(x)"

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of the tensors that it reads, in the order of its arguments."""
        return tuple(leaf.name for leaf in self.leaves() if isinstance(leaf, Weight))

    def weight(self, argument: str) -> str | None:
        """The name of the tensor that is the argument of that name, if it is one."""
        value = self.arguments.get(argument)
        return value.name if isinstance(value, Weight) else None

    def leaves(self) -> Iterator[Argument]:
        """The arguments, out of their tuples."""
        for value in self.arguments.values():
            yield from _leaves(value)

    def map(self, change: Callable[[Argument], Argument]) -> Node:
        """The node with each leaf of its arguments changed."""
        return dataclasses.replace(self, arguments={k: _map(v, change) for k, v in self.arguments.items()})

    def replaced(self, by: Mapping[str, str | Weight]) -> Node:
        """The node with other inputs: for each that is in `by`, the node of that name, or a tensor."""
        inputs: list[str] = []

        def change(value: Argument) -> Argument:
            if not isinstance(value, Input):
                return value
            source = by.get(self.inputs[value.index], self.inputs[value.index])
            if isinstance(source, Weight):
                return source
            if source not in inputs:
                inputs.append(source)
            return Input(inputs.index(source))

        changed = self.map(change)
        return dataclasses.replace(changed, inputs=tuple(inputs))

    def to_json(self) -> dict[str, Any]:
        """As `standalone.model.GraphNetwork` reads it."""
        arguments = {name: _encode(value) for name, value in self.arguments.items()}
        return {"name": self.name, "operation": self.operation, "inputs": list(self.inputs), "arguments": arguments}


@dataclass(frozen=True)
class Graph:
    """A network in its normal form. The last node gives the logits."""

    nodes: tuple[Node, ...]  # in the order that they run
    tensors: Mapping[str, Tensor]  # by the user's names, those that nodes read; nn.Parameter where they are trained
    input_shape: tuple[int, ...]  # (channels, height, width) of the images that it was captured with
    free: frozenset[int] = frozenset()  # the dimensions of the images [n, c, h, w] that may differ from that
    unused: tuple[str, ...] = field(default=(), compare=False)  # the network's parameters that inference does not reach

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """Each node by its name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def consumers(self) -> dict[str, tuple[Node, ...]]:
        """For each node, and for IMAGE: the nodes that read it, in the order that they run."""
        found: dict[str, list[Node]] = {IMAGE: [], **{node.name: [] for node in self.nodes}}
        for node in self.nodes:
            for source in dict.fromkeys(node.inputs):
                found[source].append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    def network(self, *, copy: bool = True) -> GraphNetwork:
        """The network in eval mode, around copies of the tensors, or around these very ones."""
        tensors = {name: _copy(tensor) if copy else tensor for name, tensor in self.tensors.items()}
        return GraphNetwork([node.to_json() for node in self.nodes], tensors).eval()


def _copy(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def _leaves(value: Argument) -> Iterator[Argument]:
    if isinstance(value, tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _map(value: Argument, change: Callable[[Argument], Argument]) -> Argument:
    return tuple(_map(part, change) for part in value) if isinstance(value, tuple) else change(value)


def _encode(value: Argument) -> Any:
    if isinstance(value, Input):
        return {"input": value.index}
    if isinstance(value, Weight):
        return {"weight": value.name}
    if isinstance(value, Size):
        return {"size": value.to_json()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    return [_encode(part) for part in value] if isinstance(value, tuple) else value
