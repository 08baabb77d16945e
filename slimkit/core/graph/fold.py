"""Computing once what depends on weights alone: standardized weights, weight norm, tables of positions, constants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from slimkit.core.graph.node import Argument, Input, Node, Size, Weight
from slimkit.standalone.operations import call

COMPUTED = "computed"  # the path of tensors that have no name in the user's network


def fold_constants(nodes: Sequence[Node], tensors: Mapping[str, Tensor]) -> tuple[tuple[Node, ...], dict[str, Tensor]]:
    """The nodes that depend on the images, and all tensors that these read.

    What was computed takes the name of the one parameter that it was computed from, where nothing else reads that, and
    is trained in its place; else it is called after its node, and is a constant.
    """
    values: dict[str, Tensor] = {}  # of each node that depends on weights alone
    roots: dict[str, frozenset[str]] = {}  # and the tensors that it was computed from
    kept: list[Node] = []
    for node in nodes:
        if all(source in values for source in node.inputs) and not any(isinstance(v, Size) for v in node.leaves()):
            values[node.name] = _compute(node, values, tensors)
            roots[node.name] = frozenset(node.weights).union(*(roots[source] for source in node.inputs))
        else:
            kept.append(node)
    readers = _readers(kept, roots)
    weights = {name: Weight(_name(name, roots[name], readers, tensors)) for name in values}
    found = dict(tensors)
    for name, weight in weights.items():
        is_trained = isinstance(tensors.get(weight.name), nn.Parameter)
        if name in readers:
            found[weight.name] = nn.Parameter(values[name]) if is_trained else values[name]
    return tuple(node.replaced(weights) for node in kept), found


def _compute(node: Node, values: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Tensor:

    def fill(value: Argument) -> object:
        if isinstance(value, Input):
            return values[node.inputs[value.index]]
        if isinstance(value, Weight):
            return tensors[value.name]
        return [fill(part) for part in value] if isinstance(value, tuple) else value

    arguments = {name: fill(value) for name, value in node.arguments.items()}
    with torch.no_grad():
        result: Tensor = call(node.operation, arguments)
        return result.detach().clone()


def _readers(kept: Sequence[Node], roots: Mapping[str, frozenset[str]]) -> dict[str, int]:
    """How many of the nodes that stay read each tensor, and each computed value."""
    counts: dict[str, int] = defaultdict(int)
    for node in kept:
        for name in {*node.weights, *(source for source in node.inputs if source in roots)}:
            counts[name] += 1
    return counts


def _name(node: str, own: frozenset[str], readers: Mapping[str, int], tensors: Mapping[str, Tensor]) -> str:
    """The name for what a node computed from the tensors `own`."""
    trained = [name for name in own if isinstance(tensors[name], nn.Parameter)]
    return trained[0] if len(trained) == 1 and trained[0] not in readers else f"{COMPUTED}.{node}"
