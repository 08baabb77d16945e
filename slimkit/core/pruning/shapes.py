"""What a network costs at given widths of its groups, told without cutting it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from slimkit.core.measure.macs import COUNTED, count_macs, count_network
from slimkit.core.pruning.groups import Group, Place, Side
from slimkit.core.pruning.trace import CONVOLUTIONS

Widths = tuple[int, ...]  # of each group


@dataclass(frozen=True)
class LayerShape:
    """The channels of a convolution or linear layer."""

    inputs: int
    outputs: int
    groups: int = 1

    @property
    def connections(self) -> int:
        """How many pairs of an input and an output channel there are."""
        return self.inputs // self.groups * self.outputs


@dataclass(frozen=True)
class Cost:
    """How large a network is; the terms are those of `Extent`."""

    macs: int
    parameters: int
    bytes: int


class Shapes:
    """The layers of a network as functions of the widths of its groups."""

    def __init__(self, module: nn.Module, groups: Sequence[Group], input_shape: Sequence[int]) -> None:
        self.full: Widths = tuple(group.width for group in groups)
        self.layers: dict[str, LayerShape] = {}  # of the uncut network, in execution order
        self._module = module
        self._macs = count_macs(module, input_shape)
        self._sides: dict[Place, list[tuple[int, int]]] = defaultdict(list)  # (group, channels for one of it)
        for index, group in enumerate(groups):
            for member in group.members:
                self._sides[member.layer, member.side].append((index, member.positions.shape[1]))
        for name in self._macs:
            self.layers[name] = _shape_of(module.get_submodule(name))
        self._whole = Cost(
            macs=count_network(module, input_shape).macs,
            parameters=sum(p.numel() for p in module.parameters()),
            bytes=sum(t.numel() * t.element_size() for t in module.state_dict().values()),
        )

    def groups_of(self, layer: str, *sides: Side) -> set[int]:
        """The groups whose channels are on these sides of a layer."""
        return {index for side in sides for index, _ in self._sides.get((layer, side), ())}

    def at(self, layer: str, widths: Widths) -> LayerShape:
        """The shape of a convolution or linear layer at these widths, by the rule of `surgery.py`."""
        full = self.layers[layer]
        inputs = full.inputs - self._lost(layer, "inputs", widths)
        outputs = full.outputs - self._lost(layer, "outputs", widths)
        size = full.inputs // full.groups
        return LayerShape(inputs, outputs, inputs // size if full.groups >= size else full.groups)

    def cost(self, widths: Widths) -> Cost:
        """MACs, parameters and bytes at these widths."""
        macs, parameters, size = self._whole.macs, self._whole.parameters, self._whole.bytes
        for name in dict.fromkeys(layer for layer, _ in self._sides):
            module = self._module.get_submodule(name)
            outputs = self._lost(name, "outputs", widths)
            if isinstance(module, COUNTED):
                weight, bias = module.weight, module.bias
                lost = self._lost_weights(name, weight, widths)
                macs -= self._macs.get(name, 0) // weight.numel() * lost
                parameters -= lost + (outputs if bias is not None else 0)
                size -= (lost + (outputs if bias is not None else 0)) * weight.element_size()
            else:
                parameters -= outputs * sum(p.dim() > 0 for p in module.parameters())
                size -= outputs * sum(t.element_size() for t in module.state_dict().values() if t.dim() > 0)
        return Cost(macs, parameters, size)

    def _lost_weights(self, layer: str, weight: Tensor, widths: Widths) -> int:
        before, after = _shape_of(self._module.get_submodule(layer)), self.at(layer, widths)
        return (before.connections - after.connections) * math.prod(weight.shape[2:])

    def _lost(self, layer: str, side: Side, widths: Widths) -> int:
        return sum((self.full[g] - widths[g]) * each for g, each in self._sides.get((layer, side), ()))


def _shape_of(layer: nn.Module) -> LayerShape:
    if isinstance(layer, CONVOLUTIONS):
        return LayerShape(layer.in_channels, layer.out_channels, layer.groups)
    assert isinstance(layer, nn.Linear)  # the only other kind that is counted
    return LayerShape(layer.in_features, layer.out_features)
