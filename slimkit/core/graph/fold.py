"""Computing once what depends on weights alone: standardized weights, weight norm, tables of positions, constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from slimkit.core.graph.node import Argument, Input, Node, Size, Weight
from slimkit.standalone.operations import call

COMPUTED = "computed"  # the path of tensors that have no name in the user's network


def fold_constants(nodes: Sequence[Node], tensors: Mapping[str, Tensor]) -> tuple[tuple[Node, ...], dict[str, Tensor]]:
    """The nodes that depend on the images, and all tensors that these read.

    What was computed from parameters is a parameter. It takes the name of the one that it was computed from, where it
    has its shape and nothing else comes of that; everything else is called after its node.
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
        root = next(iter(own)) if len(own) == 1 else None
        takes_name = root is not None and uses[root] == 1 and tensors[root].shape == value.shape
        weight = Weight(root if root is not None and takes_name else f"{COMPUTED}.{name}")
        weights[name] = weight
        found[weight.name] = nn.Parameter(value) if own and value.is_floating_point() else value
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
