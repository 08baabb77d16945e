"""The weights of a layer by its channels, whatever the kind of the layer."""

from __future__ import annotations

from torch import Tensor

from slimkit.core.pruning.channels.trace import ChannelLayer

MATRICES = ("matmul", "mm", "bmm", "addmm")  # products with a bare matrix, which has its inputs first


def filters(layer: ChannelLayer, weight: Tensor) -> Tensor:
    """The weights that make each output channel: [outputs, weights of one]."""
    if "transpose" in layer.operation:  # [in, out / groups, *kernel]
        by_group = weight.reshape(layer.groups, -1, *weight.shape[1:])
        return by_group.transpose(1, 2).flatten(0, 1).flatten(1)
    return weight.mT if layer.operation in MATRICES else weight.flatten(1)


def input_weights(layer: ChannelLayer, weight: Tensor) -> Tensor:
    """The weights that read each input channel: [inputs, weights of one]."""
    if "transpose" in layer.operation or layer.operation in MATRICES:
        return weight.flatten(1)
    by_group = weight.reshape(layer.groups, -1, *weight.shape[1:])  # [groups, out / groups, in / groups, *kernel]
    return by_group.transpose(1, 2).flatten(0, 1).flatten(1)
