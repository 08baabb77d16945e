"""What a network costs at given widths of its groups, told without cutting it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from slimkit.core.graph import Graph
from slimkit.core.graph.shapes import value_shapes
from slimkit.core.measure.macs import count_network
from slimkit.core.pruning.channels.groups import Grouping, Side
from slimkit.core.pruning.channels.trace import ChannelLayer, Place

Widths = tuple[int, ...]  # of each group


@dataclass(frozen=True)
class LayerShape:
    """The channels of a layer."""

    inputs: int
    outputs: int
    groups: int = 1

    @property
    def connections(self) -> int:
        """How many pairs of an input and an output channel there are."""
        return self.inputs // self.groups * self.outputs


@dataclass(frozen=True)
class Cost:
    """How large a network is."""

    macs: int  # multiply-adds for one image
    parameters: int
    bytes: int  # of its state dict


class Shapes:
    """The layers of a network as functions of the widths of its groups."""

    def __init__(self, grouping: Grouping, input_shape: Sequence[int]) -> None:
        self.full: Widths = tuple(group.width for group in grouping.groups)
        weighted = [layer for layer in grouping.trace.layers.values() if layer.kind == "weighted"]
        self.layers = {layer.name: _shape_of(layer) for layer in weighted}  # uncut, in execution order
        self.macs = layer_macs(grouping.graph, weighted, input_shape)  # of each layer, uncut
        self.graph = grouping.graph
        self._sides: dict[tuple[str, Side], list[tuple[int, int]]] = defaultdict(
            list
        )  # (group, channels for one of it)
        self._places: dict[Place, list[tuple[int, int]]] = defaultdict(list)  # the same for dimensions of tensors
        for index, group in enumerate(grouping.groups):
            for member in group.members:
                self._sides[member.layer.name, member.side].append((index, member.positions.shape[1]))
            for place, each in group.tensors.items():
                self._places[place].append((index, each))
        self._whole = graph_cost(grouping.graph, input_shape)

    def groups_of(self, layer: str, *sides: Side) -> set[int]:
        """The groups whose channels are on these sides of a layer."""
        return {index for side in sides for index, _ in self._sides.get((layer, side), ())}

    def at(self, layer: str, widths: Widths) -> LayerShape:
        """The shape of a layer at these widths: of a grouped one either groups go, or the same channels of each."""
        full = self.layers[layer]
        inputs = full.inputs - self._lost(self._sides.get((layer, "inputs"), ()), widths)
        outputs = full.outputs - self._lost(self._sides.get((layer, "outputs"), ()), widths)
        size = full.inputs // full.groups
        return LayerShape(inputs, outputs, inputs // size if full.groups >= size else full.groups)

    def cost(self, widths: Widths) -> Cost:
        """MACs, parameters and bytes at these widths; products of activations are taken as they were."""
        macs, parameters, size = self._whole.macs, self._whole.parameters, self._whole.bytes
        for name, count in self.macs.items():
            full = self.layers[name].connections
            macs -= count // full * (full - self.at(name, widths).connections)
        for name in dict.fromkeys(name for name, _ in self._places):
            tensor = self.graph.tensors[name]
            left = [n - self._lost(self._places.get((name, dim), ()), widths) for dim, n in enumerate(tensor.shape)]
            lost = tensor.numel() - math.prod(left)
            parameters -= lost if isinstance(tensor, nn.Parameter) else 0
            size -= lost * tensor.element_size()
        return Cost(macs, parameters, size)

    def channel_macs(self) -> tuple[float, ...]:
        """The MACs that go with one channel of each group, in all layers that have it."""
        found = [0.0] * len(self.full)
        for (name, side), groups in self._sides.items():
            for index, each in groups if name in self.macs else ():
                found[index] += self.macs[name] * each / getattr(self.layers[name], side)
        return tuple(found)

    def _lost(self, groups: Sequence[tuple[int, int]], widths: Widths) -> int:
        return sum((self.full[g] - widths[g]) * each for g, each in groups)


def graph_cost(graph: Graph, input_shape: Sequence[int]) -> Cost:
    """The size of a network, and its work for one image of `input_shape` (channels, height, width)."""
    count = count_network(graph.network(copy=False), input_shape)
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.tensors.values())
    return Cost(count.macs, count.parameters, size)


def layer_macs(graph: Graph, layers: Sequence[ChannelLayer], input_shape: Sequence[int]) -> dict[str, int]:
    """MACs of each of these layers for one image of `input_shape` (channels, height, width), over all its calls."""
    shapes = value_shapes(graph, (1, *input_shape))
    macs = dict.fromkeys((layer.name for layer in layers), 0)
    for layer in layers:
        for node in graph.nodes:
            if node.operation == layer.operation and layer.weight in node.weights:
                transposed = "transpose" in node.operation
                places = math.prod(shapes[node.inputs[0] if transposed else node.name])
                made = len(layer.inputs if transposed else layer.outputs)
                macs[layer.name] += places // made * _shape_of(layer).connections * _kernel(graph, layer)
    return macs


def _kernel(graph: Graph, layer: ChannelLayer) -> int:
    """Weights for each pair of an input and an output channel."""
    return math.prod(graph.tensors[layer.weight].shape[2:])


def _shape_of(layer: ChannelLayer) -> LayerShape:
    return LayerShape(len(layer.inputs), len(layer.outputs), layer.groups)
