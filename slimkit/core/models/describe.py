"""From a float network to the layers of its architecture."""

import dataclasses
from collections.abc import Iterator, Mapping

from torch import nn

from slimkit.core.architecture import GRAPH_FORMAT_VERSION, Architecture, Layer, StoredTensor
from slimkit.core.graph import Graph
from slimkit.core.measure.macs import count_macs, count_network
from slimkit.standalone.model import DTYPES, layer_path

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
DESCRIBED = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)


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


def known_widths(architecture: Architecture) -> dict[str, int]:
    """The output channels that each layer had before any pruning, as `describe_layers` takes them."""
    return {layer.name: layer.width_before or layer.out_channels or 0 for layer in architecture.layers}


def describe_graph(
    architecture: Architecture, graph: Graph, widths_before: Mapping[str, int] | None = None
) -> Architecture:
    """The architecture with `graph` as its network: every operation is a layer, and model.py runs them as they stand.

    widths_before: as for `describe_layers`.
    """
    network = graph.network(copy=False)
    macs = count_macs(network, graph.input_shape)
    before = widths_before or {}
    weighted = dict(_weighted_layers(network))
    layers = []
    for node in graph.nodes:
        entry = node.to_json()
        path = layer_path(entry) or ""
        module = weighted.pop(path, None)  # the layer that is called twice costs its bytes once
        layer = Layer(name=node.name, type=node.operation)
        if module is not None:
            layer = _describe(node.name, module, macs.get(path, 0), before.get(node.name))
        call = {part: entry[part] for part in ("operation", "arguments")}
        layers.append(dataclasses.replace(layer, inputs=node.inputs, options=call))
    tensors = {
        name: StoredTensor(tuple(tensor.shape), DTYPE_NAMES[tensor.dtype], isinstance(tensor, nn.Parameter))
        for name, tensor in graph.tensors.items()
    }
    return dataclasses.replace(
        architecture,
        layers=tuple(layers),
        tensors=tensors,
        count=count_network(network, graph.input_shape),
        format_version=GRAPH_FORMAT_VERSION,
    )


def _weighted_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in module.named_modules():
        if isinstance(layer, DESCRIBED):
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
        type="Linear" if isinstance(layer, nn.Linear) else "BatchNorm2d",
        in_channels=inputs,
        out_channels=width,
        bias=bias,
        width_before=width_before or width,
        macs=macs,
        bytes=size,
    )
