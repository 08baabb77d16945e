"""From a float network to the layers of its architecture."""

from collections.abc import Iterator, Mapping

from torch import nn

from slimkit.core.architecture import Layer
from slimkit.core.measure.macs import count_macs


def describe_layers(
    module: nn.Module, input_shape: tuple[int, ...], widths_before: Mapping[str, int] | None = None
) -> tuple[Layer, ...]:
    """Every Conv2d, BatchNorm2d and Linear of `module`, for images of `input_shape` (channels, height, width).

    `widths_before` gives the output channels that a layer had before any pruning; one that is not in it was not cut.
    """
    macs = count_macs(module, input_shape)
    before = widths_before or {}
    return tuple(
        _describe(name, layer, macs.get(name, 0), before.get(name)) for name, layer in _weighted_layers(module)
    )


def _weighted_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            yield name, layer


def _describe(name: str, layer: nn.Module, macs: int, width_before: int | None) -> Layer:
    size = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    if isinstance(layer, nn.Conv2d):
        padding = layer.padding if isinstance(layer.padding, tuple) else None
        return Layer(
            name=name,
            type="Conv2d",
            in_channels=layer.in_channels,
            out_channels=layer.out_channels,
            kernel_size=layer.kernel_size,
            stride=layer.stride,
            padding=padding,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=layer.bias is not None,
            width_before=width_before or layer.out_channels,
            macs=macs,
            bytes=size,
        )
    if isinstance(layer, nn.Linear):
        width, inputs, bias = layer.out_features, layer.in_features, layer.bias is not None
    else:
        assert isinstance(layer, nn.BatchNorm2d)  # the third and last kind that _weighted_layers gives
        width, inputs, bias = layer.num_features, layer.num_features, layer.affine
    return Layer(
        name=name,
        type=type(layer).__name__,
        in_channels=inputs,
        out_channels=width,
        bias=bias,
        width_before=width_before or width,
        macs=macs,
        bytes=size,
    )
