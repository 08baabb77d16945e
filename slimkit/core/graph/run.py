"""The arguments of a node, once the values that it reads are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from slimkit.core.graph.node import Argument, Input, Node, Size, Weight
from slimkit.standalone.model import evaluate_size


def arguments_of(
    node: Node, values: Mapping[str, Tensor], tensors: Mapping[str, Tensor], image_shape: Sequence[int]
) -> dict[str, object]:
    """The arguments of a node by their names. image_shape: (n, channels, height, width) of the images."""

    def fill(value: Argument) -> object:
        if isinstance(value, Input):
            return values[node.inputs[value.index]]
        if isinstance(value, Weight):
            return tensors[value.name]
        if isinstance(value, Size):
            return evaluate_size(value.to_json(), image_shape)
        return [fill(part) for part in value] if isinstance(value, tuple) else value

    return {name: fill(value) for name, value in node.arguments.items()}
