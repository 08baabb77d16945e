"""The shapes that a graph's values have, without computing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slimkit.core.errors import ModelError, first_line
from slimkit.core.graph.node import IMAGE, Graph
from slimkit.core.measure.modes import skipping_norms
from slimkit.standalone.model import GraphNetwork

Shapes = Mapping[str, torch.Size]  # of each node's value, and of IMAGE


def value_shapes(graph: Graph, image_shape: Sequence[int]) -> Shapes:
    """The shape of each value for images of `image_shape` (n, channels, height, width).

    Raises ModelError where the network does not take such images.
    """
    try:
        return _run(
            graph, {name: t.to("meta") for name, t in graph.tensors.items()}, torch.zeros(*image_shape, device="meta")
        )
    except Exception:  # an operation without shape arithmetic, or one that looks at numbers
        try:
            return _run(graph, graph.tensors, torch.zeros(*image_shape))
        except Exception as error:
            raise ModelError(
                f"The network does not take an image of shape {tuple(image_shape[1:])}: {first_line(error)}",
                "Give the size that it takes, such as --image-size 224.",
            ) from error


def _run(graph: Graph, tensors: Mapping[str, Tensor], images: Tensor) -> Shapes:
    values, shapes = {IMAGE: images}, {IMAGE: images.shape}
    network = GraphNetwork([node.to_json() for node in graph.nodes], tensors).eval()
    with torch.no_grad(), skipping_norms(network):
        for step in network.steps:
            step.run(values, images.shape)
            shapes[step.name] = values[step.name].shape
    return shapes
