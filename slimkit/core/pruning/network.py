"""A network as a graph, and copies of it."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from slimkit.core.errors import ModelError, first_line

SMALL = 64  # pixels


def small_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a small image that most networks take which take images of `input_shape` (channels, ...)."""
    return input_shape[0], *(min(size, SMALL) for size in input_shape[1:])


def share_tensors(module: nn.Module) -> nn.Module:
    """A copy of the network in which every parameter and buffer is the very tensor of the original."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def computes_weight(layer: nn.Module) -> bool:
    """Whether a layer's weight is computed from other parameters: it can't be cut then, nor be solved anew."""
    return isinstance(getattr(layer, "weight", None), torch.Tensor) and "weight" not in layer._parameters


def trace_graph(module: nn.Module) -> GraphModule:
    """The network as torch.fx traces it, with the layers shared. Raises ModelError where it can't be traced."""
    try:
        return torch.fx.symbolic_trace(module)
    except Exception as error:  # the network's own code runs here, and may raise anything
        raise ModelError(
            f"{type(module).__name__} can't be traced: {first_line(error)}",
            "Let its forward() not depend on the values of tensors.",
        ) from error
