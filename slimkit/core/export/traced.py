"""Functions that slimkit has no ONNX form of its own for, as torch's exporter writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from slimkit.core.architecture import Layer
from slimkit.core.errors import ModelError, first_line
from slimkit.core.export.exporter import EXAMPLES, export_by_torch
from slimkit.standalone.model import Codes, Function

EXPORT_HINT = "Export the float model, or use the model folder itself."


@dataclass(frozen=True)
class Traced:
    """One function's part of a graph, with the names that it has there."""

    inputs: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]  # in the order that they run
    constants: dict[str, Any]  # numpy arrays, by name
    output: str


class _Calls(nn.Module):
    """Functions side by side: all of their inputs -> all of their values."""

    def __init__(self, functions: Sequence[Function], counts: Sequence[int]) -> None:
        super().__init__()
        self._functions, self._counts = functions, counts

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        remaining = iter(inputs)
        return [f.call([next(remaining) for _ in range(n)]) for f, n in zip(self._functions, self._counts, strict=True)]


def trace_functions(network: nn.Module, wanted: Sequence[Layer], input_shape: Sequence[int]) -> dict[str, Traced]:
    """What the functions of the layers `wanted` are in ONNX, by the layers' names.

    network: the int8 network that they are of. Raises ModelError where torch can't write them.
    """
    if not wanted:
        return {}
    shapes, others = (_shapes(network, batch, input_shape) for batch in (EXAMPLES, EXAMPLES + 1))
    modules = dict(network.named_modules())
    functions = [module for layer in wanted if isinstance(module := modules[layer.name], Function)]
    sources = [source for layer in wanted for source in layer.inputs]
    examples = tuple(torch.zeros(shapes[source]) for source in sources)
    dynamic = tuple(_free(shapes[source], others[source]) for source in sources)
    calls = _Calls(functions, [len(layer.inputs) for layer in wanted]).eval()
    graph = _export(wanted, calls, examples, dynamic)
    names = iter([value.name for value in graph.input])
    inputs = [tuple(next(names) for _ in layer.inputs) for layer in wanted]
    return {
        layer.name: _part(graph, own, output.name)
        for layer, own, output in zip(wanted, inputs, graph.output, strict=True)
    }


def _export(wanted: Sequence[Layer], calls: nn.Module, examples: Sequence[Tensor], dynamic: Any) -> onnx.GraphProto:
    try:
        return export_by_torch(calls, examples, (dynamic,)).graph
    except Exception as error:  # the exporter raises nearly anything
        called = ", ".join(sorted({(layer.options or {})["function"] for layer in wanted}))
        reason = first_line(error.__cause__) if isinstance(error.__cause__, Exception) else first_line(error)
        raise ModelError(f"torch can't write {called} as ONNX: {reason}", EXPORT_HINT) from error


def _part(graph: onnx.GraphProto, inputs: tuple[str, ...], output: str) -> Traced:
    """The nodes that `output` is computed by."""
    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input)
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer if i.name in needed}
    return Traced(inputs, tuple(reversed(nodes)), constants, output)


def _free(shape: torch.Size, other: torch.Size) -> dict[int, Any]:
    """The dimensions that follow the number of images."""
    return {i: Dim.AUTO for i, sizes in enumerate(zip(shape, other, strict=True)) if len(set(sizes)) > 1}


def _shapes(network: nn.Module, batch: int, input_shape: Sequence[int]) -> dict[str, torch.Size]:
    """The shape of each layer's output for a batch of images, by its name; of the images as "input"."""
    images = torch.empty(batch, *input_shape, device="meta")
    shapes = {"input": images.shape}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            shapes[name] = (output.values if isinstance(output, Codes) else output).shape

        return hook

    hooks = [part.register_forward_hook(keep(name)) for name, part in network.named_modules() if name]
    try:
        state = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
        torch.func.functional_call(network, state, (images,))
    finally:
        for handle in hooks:
            handle.remove()
    return shapes
