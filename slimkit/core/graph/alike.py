"""Computing for one image what is alike for each: tables of positions, say, that code makes as large as the batch.

What is left of it depends on nothing (`fold.py` computes it), but for one node that expands it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slimkit.core.graph.node import Argument, Input, Node, Size
from slimkit.core.graph.run import arguments_of
from slimkit.standalone.model import call, evaluate_size

Pair = tuple[Tensor, Tensor]  # the values for one image and for two


def compute_for_one_image(nodes: Sequence[Node], tensors: Mapping[str, Tensor]) -> tuple[Node, ...]:
    """The nodes, of which those that follow the number of images alone, and are alike for each, are for one image."""
    alike: dict[str, Pair] = {}
    for node in nodes:
        if alike.keys() >= set(node.inputs) and _dimensions(node) <= {0} and not _is_token(node):
            pair = _pair(node, alike, tensors)
            if torch.equal(*pair) or _is_each(pair):
                alike[node.name] = pair
    read = {source for node in nodes if node.name not in alike for source in node.inputs}
    expanded = {name: f"{name}_of_each" for name in read & alike.keys() if _is_each(alike[name])}
    result: list[Node] = []
    for node in nodes:
        result.append(node.map(_for_one) if node.name in alike else node.replaced(expanded))
        if node.name in expanded:
            size = (Size("image", (0,)), *alike[node.name][0].shape[1:])
            result.append(Node(expanded[node.name], "expand", (node.name,), {"self": Input(0), "size": size}))
    return tuple(result)


def _dimensions(node: Node) -> frozenset[int]:
    """The dimensions of the images that its arguments follow."""
    return frozenset[int]().union(*(leaf.dimensions for leaf in node.leaves() if isinstance(leaf, Size)))


def _is_token(node: Node) -> bool:
    """Whether it is what would be put in its place: a tensor of the network, expanded."""
    return node.operation == "expand" and not node.inputs


def _is_each(pair: Pair) -> bool:
    one, two = pair
    return one.shape[:1] == (1,) and two.shape == (2, *one.shape[1:]) and torch.equal(one.expand(two.shape), two)


def _pair(node: Node, alike: Mapping[str, Pair], tensors: Mapping[str, Tensor]) -> Pair:
    def compute(images: int) -> Tensor:
        values = {name: alike[name][images - 1] for name in node.inputs}
        result: Tensor = call(node.operation, arguments_of(node, values, tensors, (images,)))
        return result

    with torch.no_grad():
        return compute(1), compute(2)


def _for_one(value: Argument) -> Argument:
    return evaluate_size(value.to_json(), (1,)) if isinstance(value, Size) else value
