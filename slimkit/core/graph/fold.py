"""Computing once what depends on weights alone: standardized weights, weight norm, tables of positions, constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor, nn

from slimkit.core.graph.node import Input, Node, Size, Weight
from slimkit.core.graph.run import arguments_of
from slimkit.standalone.model import call

COMPUTED = "computed"  # the path of tensors that have no name in the user's network


def fold_constants(nodes: Sequence[Node], tensors: Mapping[str, Tensor]) -> tuple[tuple[Node, ...], dict[str, Tensor]]:
    """The nodes that depend on the images, and all tensors that these read.

    What was computed from parameters is a parameter. It takes the name of the one that it was computed from, or that of
    the layer whose weight it is, where nothing else has that name and it has the shape; else it is called after its
    node.
    """
    values: dict[str, Tensor] = {}  # of each node that depends on weights alone
    roots: dict[str, frozenset[str]] = {}  # and the parameters that it was computed from
    kept: list[Node] = []
    for node in nodes:
        if all(source in values for source in node.inputs) and not any(isinstance(v, Size) for v in node.leaves()):
            values[node.name] = _compute(node, values, tensors)
            trained = frozenset(name for name in node.weights if isinstance(tensors[name], nn.Parameter))
            roots[node.name] = trained.union(*(roots[source] for source in node.inputs))
        else:
            kept.append(node)
    read = {source for node in kept for source in node.inputs if source in values}
    uses = Counter(name for node in kept for name in set(node.weights))
    uses.update(root for name in read for root in roots[name])
    weights: dict[str, str | Weight] = {}
    found = dict(tensors)
    for name in read:
        value, own = values[name], roots[name]
        free = {root for root in own if uses[root] == 1 and tensors[root].shape == value.shape}
        weight = Weight(*free) if len(own) == len(free) == 1 else Weight(_layers_own(name, kept, found.keys() - free))
        weights[name] = weight
        found[weight.name] = nn.Parameter(value) if own and value.is_floating_point() else value
    return tuple(node.replaced(weights) for node in kept), found


def _layers_own(value: str, kept: Sequence[Node], taken: Container[str]) -> str:
    """A name for what was computed: that of the layer's weight that it is, or one after its node."""
    readers = [node for node in kept if value in node.inputs]
    for argument in ("weight", "bias"):
        given = readers[0].arguments.get(argument)
        name = f"{readers[0].module}.{argument}"
        if len(readers) == 1 and isinstance(given, Input) and readers[0].inputs[given.index] == value:
            return f"{COMPUTED}.{value}" if name in taken or not readers[0].module else name
    return f"{COMPUTED}.{value}"


def _compute(node: Node, values: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    arguments = arguments_of(node, values, tensors, ())
    with torch.no_grad():
        result: Tensor = call(node.operation, arguments)
        return result.detach().clone()
