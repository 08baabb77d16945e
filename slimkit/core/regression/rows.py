"""Layers as matrix products: the rows that a layer multiplies its weight by, at sampled output positions.

Shapes: g is the number of groups of a convolution (1 for others), n the number of rows, one per output position,
d the number of weights that make one output value, o the number of outputs of a group.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
SolvableLayer = Convolution | nn.Linear


class Sampler:
    """Draws the output positions of a layer, other ones for each batch."""

    def __init__(self, rows_per_batch: float, seed: int = 0) -> None:
        """rows_per_batch: how many positions are wanted of all images of a batch."""
        self._wanted = rows_per_batch
        self._draws = torch.Generator().manual_seed(seed)

    def positions(self, layer: SolvableLayer, outputs: Tensor) -> tuple[Tensor, ...]:
        """For each dimension of space, the coordinates of the positions: int64 [positions]; none for a linear layer."""
        if isinstance(layer, nn.Linear):
            return ()
        space = outputs.shape[2:]
        drawn = torch.randperm(math.prod(space), generator=self._draws)[: math.ceil(self._wanted / len(outputs))]
        return torch.unravel_index(drawn.to(outputs.device), space)


def input_rows(layer: SolvableLayer, inputs: Tensor, positions: Sequence[Tensor]) -> Tensor:
    """What the weight is multiplied by, at the positions: float32 [g, n, d]."""
    if isinstance(layer, nn.Linear):
        return inputs.float().flatten(0, -2)[None]
    windows = F.pad(inputs, layer._reversed_padding_repeated_twice)
    for dim, (size, stride, step) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), 2):
        windows = windows.unfold(dim, step * (size - 1) + 1, stride)[..., ::step]  # a view: nothing is copied yet
    sampled = windows[_at(positions)].float()  # [batch, channels, positions, *kernel]
    by_group = sampled.reshape(len(sampled), layer.groups, layer.in_channels // layer.groups, sampled.shape[2], -1)
    return by_group.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)


def output_rows(layer: SolvableLayer, outputs: Tensor, positions: Sequence[Tensor]) -> Tensor:
    """What the layer gives at the positions, or what is to be added to it: float32 [g, n, o]."""
    if isinstance(layer, nn.Linear):
        return outputs.float().flatten(0, -2)[None]
    sampled = outputs[_at(positions)].float()  # [batch, channels, positions]
    by_group = sampled.reshape(len(sampled), layer.groups, -1, sampled.shape[2])
    return by_group.permute(1, 0, 3, 2).flatten(1, 2)


def weight_matrix(layer: SolvableLayer) -> Tensor:
    """The weight as the rows are multiplied by it: float32 [g, d, o]."""
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    weight = layer.weight.detach().float()
    return weight.reshape(groups, len(weight) // groups, -1).mT


def set_weight_matrix(layer: SolvableLayer, matrix: Tensor) -> None:
    """The inverse of `weight_matrix`, in place."""
    layer.weight.copy_(matrix.mT.reshape(layer.weight.shape))


def _at(positions: Sequence[Tensor]) -> tuple[slice | Tensor, ...]:
    """The index of the positions in all channels of all images."""
    return slice(None), slice(None), *positions


def solvable_layers(network: nn.Module) -> dict[str, SolvableLayer]:
    """The convolutions and linear layers of a graph's network, by their paths."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, SolvableLayer)}
