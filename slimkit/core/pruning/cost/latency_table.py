"""The latency of a network at given widths, predicted from timings of single layers.

Layers that differ in nothing but channels share a grid of timings over input and output channels; between its points
it is interpolated. What lies between layers (sums, pooling, the calls themselves) is not in it: the prediction is
proportional to the whole, and whoever needs milliseconds scales it by one measurement of the whole network.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from slimkit.core.measure.layer_times import TimedLayer
from slimkit.core.measure.modes import evaluating
from slimkit.core.pruning.channels.groups import Side
from slimkit.core.pruning.cost.shapes import LayerShape, Shapes, Widths

POINTS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)  # channels in a grid

Grid = tuple[list[int], list[int], Tensor]  # input channels, output channels, ms: float [inputs, outputs]


class LatencyTable:
    """Predicted milliseconds of a network for any widths of its groups."""

    def __init__(
        self,
        module: nn.Module,
        shapes: Shapes,
        input_shape: Sequence[int],
        times: Callable[[Sequence[TimedLayer]], dict[TimedLayer, float]],
    ) -> None:
        """times: gives the ms of each layer of the grids, here (`time_layers`) or on another machine."""
        self._shapes = shapes
        self._kinds = {n: layer for n, layer in timed_layers(module, input_shape).items() if n in shapes.layers}
        layers_of: dict[TimedLayer, list[str]] = defaultdict(list)
        for name, layer in self._kinds.items():
            layers_of[_kind(layer)].append(name)
        points = {kind: self._points(names) for kind, names in layers_of.items()}
        wanted = [
            _with_channels(self._kinds[names[0]], i, o)
            for kind, names in layers_of.items()
            for i in points[kind][0]
            for o in points[kind][1]
        ]
        ms = times(wanted)
        self._grids = {kind: _grid(self._kinds[names[0]], *points[kind], ms) for kind, names in layers_of.items()}
        self._layer_ms = cache(self._interpolated)
        self._layers_of: dict[int, list[str]] = defaultdict(list)
        for name in self._kinds:
            for group in shapes.groups_of(name, "inputs", "outputs"):
                self._layers_of[group].append(name)

    def ms(self, widths: Widths) -> float:
        """The sum over all layers."""
        return sum(self._layer_ms(name, self._shapes.at(name, widths)) for name in self._kinds)

    def ms_saved(self, group: int, widths: Widths, narrower: int) -> float:
        """How much less time all layers take when one group goes to a narrower width; never below 0."""
        changed = (*widths[:group], narrower, *widths[group + 1 :])
        return sum(
            self._layer_ms(name, self._shapes.at(name, widths)) - self._layer_ms(name, self._shapes.at(name, changed))
            for name in self._layers_of[group]
        )

    def _points(self, names: Sequence[str]) -> tuple[list[int], list[int]]:
        """The input and output channels at which layers of one kind are timed."""
        sides: tuple[Side, Side] = ("inputs", "outputs")
        lists = [sorted({p for name in names for p in self._points_of(name, side)}) for side in sides]
        return (lists[0], lists[1][-1:]) if (self._kinds[names[0]].groups or 1) > 1 else (lists[0], lists[1])

    def _points_of(self, name: str, side: Side) -> list[int]:
        most = int(getattr(self._shapes.layers[name], side))
        return [*(p for p in POINTS if p < most), most] if self._shapes.groups_of(name, side) else [most]

    def _interpolated(self, name: str, shape: LayerShape) -> float:
        inputs, outputs, values = self._grids[_kind(self._kinds[name])]
        low_i, share_i = _place(inputs, shape.inputs)
        low_o, share_o = _place(outputs, shape.outputs)
        corner = values[low_i : low_i + 2, low_o : low_o + 2]
        along = corner[0] + share_i * (corner[-1] - corner[0])
        return float(along[0] + share_o * (along[-1] - along[0]))


def timed_layers(module: nn.Module, input_shape: Sequence[int]) -> dict[str, TimedLayer]:
    """Every Conv2d and Linear that an image of `input_shape` (channels, height, width) reaches, in execution order."""
    found: dict[str, TimedLayer] = {}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name] = _describe(layer, inputs[0].shape)

        return hook

    layers = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers]
    try:
        with evaluating(module), torch.no_grad():
            module(next(module.parameters()).new_zeros(1, *input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _describe(layer: nn.Module, shape: torch.Size) -> TimedLayer:
    if isinstance(layer, nn.Linear):
        return TimedLayer("Linear", layer.in_features, layer.out_features)
    assert isinstance(layer, nn.Conv2d)  # the other of the two kinds that are asked for
    kernel, stride, dilation = ((int(a), int(b)) for a, b in (layer.kernel_size, layer.stride, layer.dilation))
    padded = layer._reversed_padding_repeated_twice  # also where the padding is given as a word: [left, right, top, …]
    return TimedLayer(
        "Conv2d",
        layer.in_channels,
        layer.out_channels,
        kernel_size=kernel,
        stride=stride,
        padding=(padded[2], padded[0]),
        dilation=dilation,
        groups=layer.groups,
        height=shape[-2],
        width=shape[-1],
    )


def _kind(layer: TimedLayer) -> TimedLayer:
    """What layers that share a grid have in common. Grouped ones share it only where they are alike."""
    return dataclasses.replace(layer, inputs=0, outputs=0) if (layer.groups or 1) == 1 else layer


def _with_channels(layer: TimedLayer, inputs: int, outputs: int) -> TimedLayer:
    """The layer with other channels; a grouped one keeps the size of its groups, or their number (see `surgery.py`)."""
    groups = layer.groups or 1
    if groups == 1:
        return dataclasses.replace(layer, inputs=inputs, outputs=outputs)
    size, made = layer.inputs // groups, layer.outputs // groups
    if groups >= size:
        kept = max(1, inputs // size)
        return dataclasses.replace(layer, inputs=kept * size, outputs=kept * made, groups=kept)
    size, made = max(1, inputs // groups), max(1, round(made * inputs / layer.inputs))
    return dataclasses.replace(layer, inputs=size * groups, outputs=made * groups)


def _grid(layer: TimedLayer, inputs: list[int], outputs: list[int], times: dict[TimedLayer, float]) -> Grid:
    """The timings; where more channels were faster, that is noise (or padding), and the fewer can be padded too."""
    values = torch.tensor([[times[_with_channels(layer, i, o)] for o in outputs] for i in inputs])
    for dim in (0, 1):
        values = values.flip(dim).cummin(dim).values.flip(dim)
    return inputs, outputs, values


def _place(points: list[int], value: int) -> tuple[int, float]:
    """The point at or below `value`, and how far it is to the next; beyond the ends it is the end."""
    low = max(0, bisect.bisect_right(points, value) - 1)
    if low + 1 >= len(points):
        return low, 0.0
    return low, min(1.0, max(0.0, (value - points[low]) / (points[low + 1] - points[low])))
