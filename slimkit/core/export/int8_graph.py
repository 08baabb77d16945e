"""An int8 network as an ONNX graph, built from its list of layers and its very scales.

Static: QDQ, the form in which runtimes recognize int8: every tensor of codes is written as QuantizeLinear followed by
DequantizeLinear. Dynamic: ONNX quantizes by no range per image, so activations are rounded to codes in float there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from slimkit.core.architecture import Architecture, Layer
from slimkit.core.errors import ModelError
from slimkit.core.export.exporter import OPSET
from slimkit.core.export.functions import has_form, write_function
from slimkit.core.export.traced import Traced, trace_functions
from slimkit.standalone.model import QuantizedConv2d, QuantizedLinear

IR_VERSION = 10  # what ONNX Runtime 1.18 and later read


def build_onnx(architecture: Architecture, network: nn.Module) -> onnx.ModelProto:
    """The int8 `network` as ONNX: input [batch, 3, h, w], logits [batch, num_classes].

    Raises ModelError for a function that has no ONNX form here, and none in torch.
    """
    others = [layer for layer in architecture.layers if (layer.options or {}).get("function") and not has_form(layer)]
    traced = trace_functions(network, others, architecture.input_shape)
    writer = Writer({key: tensor.detach().cpu().numpy() for key, tensor in _state(network).items()}, traced)
    for layer in architecture.layers:
        writer.values[layer.name] = WRITERS[layer.type](writer, layer)
    writer.node("Identity", [writer.values[architecture.layers[-1].name]], "logits")
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        writer.nodes,
        architecture.model_type,
        [helper.make_tensor_value_info("input", float32, ["batch", *architecture.input_shape])],
        [helper.make_tensor_value_info("logits", float32, ["batch", *architecture.output_shape])],
        writer.initializers,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="slimkit")


def _state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict, with weights of 4 bits as one int8 each: few runtimes read less."""
    unpacked = {
        f"{name}.weight": layer.weight_codes()
        for name, layer in network.named_modules()
        if isinstance(layer, QuantizedConv2d | QuantizedLinear)
    }
    return network.state_dict() | unpacked


class Writer:
    """Collects nodes and initializers; `values` has each layer's output, in real numbers, by the layer's name."""

    def __init__(self, state: dict[str, Any], traced: Mapping[str, Traced]) -> None:
        self.state = state
        self.traced = traced
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.values = {"input": "input"}
        self.scales: dict[str, Any] = {}  # of tensors of codes, by the layer's name
        self.numbers: dict[str, list[str]] = {}  # the names of their scales and zero points

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Write a node; the name of its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """Write a constant; its name."""
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def inline(self, layer: Layer, traced: Traced) -> str:
        """Write what torch's exporter made of the layer's function; the name of its output."""
        names = dict(zip(traced.inputs, self.inputs(layer), strict=True)) | {"": ""}
        for name, value in traced.constants.items():
            names[name] = self.constant(f"{layer.name}.{name}", value)
        for node in traced.nodes:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            names |= {output: output and f"{layer.name}.{output}" for output in node.output}
            copied.name = f"{layer.name}.{node.name}"
            copied.input[:] = [names[name] for name in node.input]
            copied.output[:] = [names[name] for name in node.output]
            self.nodes.append(copied)
        return names[traced.output]

    def scale_and_zero_point(self, scale: Any, zero_point: Any, name: str) -> list[str]:
        """Write both; their names."""
        return [
            self.constant(f"{name}.scale", np.float32(scale)),
            self.constant(f"{name}.zero_point", np.uint8(zero_point)),
        ]

    def requantize(self, value: str, numbers: list[str], name: str) -> str:
        """Round `value` to codes and back."""
        codes = self.node("QuantizeLinear", [value, *numbers], f"{name}.codes")
        return self.node("DequantizeLinear", [codes, *numbers], f"{name}.real")

    def output(self, layer: Layer, value: str) -> str:
        """The layer's activation and, where it gives codes, their rounding."""
        if layer.activation == "relu":
            value = self.node("Relu", [value], f"{layer.name}.relu")
        elif layer.activation == "relu6":
            bounds = [self.constant(f"{layer.name}.{i}", np.float32(i)) for i in (0, 6)]
            value = self.node("Clip", [value, *bounds], f"{layer.name}.relu6")
        if f"{layer.name}.output_scale" not in self.state:
            return value
        scale, zero_point = self.state[f"{layer.name}.output_scale"], self.state[f"{layer.name}.output_zero_point"]
        self.scales[layer.name] = scale
        self.numbers[layer.name] = self.scale_and_zero_point(scale, zero_point, f"{layer.name}.output")
        return self.requantize(value, self.numbers[layer.name], f"{layer.name}.output")

    def same_scale(self, layer: Layer, value: str) -> str:
        """Write `value` as codes of its inputs' scale, where they are codes."""
        return self.requantize(value, self.numbers[layer.name], layer.name) if self.keep_scale(layer) else value

    def keep_scale(self, layer: Layer) -> bool:
        """Let the values of `layer` have its inputs' scale; False where some of these are no codes."""
        if not self.scales.keys() >= set(layer.inputs):
            return False
        source = layer.inputs[0]
        self.scales[layer.name], self.numbers[layer.name] = self.scales[source], self.numbers[source]
        return True

    def round_per_image(self, value: str, name: str, axes: list[int]) -> str:
        """Round to the codes that span each image's own range, and back, in float."""

        def node(kind: str, output: str, *inputs: str, **attributes: Any) -> str:
            return self.node(kind, list(inputs), f"{name}.{output}", **attributes)

        zero, one, top = (self.constant(f"{name}.{i}", np.float32(i)) for i in (0, 1, 255))
        over = self.constant(f"{name}.axes", np.array(axes, dtype=np.int64))
        low = node("Min", "low", node("ReduceMin", "least", value, over), zero)
        high = node("Max", "high", node("ReduceMax", "most", value, over), zero)
        step = node("Div", "step", node("Sub", "span", high, low), top)
        scale = node("Where", "scale", node("Greater", "has_span", step, zero), step, one)
        zero_point = node("Round", "zero_point", node("Neg", "shift", node("Div", "offset", low, scale)))
        steps = node("Add", "steps", node("Round", "rounded", node("Div", "scaled", value, scale)), zero_point)
        codes = node("Clip", "codes", steps, zero, top)
        return node("Mul", "real", node("Sub", "signed", codes, zero_point), scale)

    def weighted_input(self, layer: Layer, dimensions: int) -> str:
        """What an int8 or float layer with weights multiplies."""
        value = self.values[layer.inputs[0]]
        if layer.quantization is None or layer.quantization["scheme"] != "dynamic":
            return value
        return self.round_per_image(value, f"{layer.name}.input", list(range(1, dimensions)))

    def inputs(self, layer: Layer) -> list[str]:
        """The values that `layer` reads."""
        return [self.values[source] for source in layer.inputs]

    def weight_and_bias(self, layer: Layer) -> list[str]:
        """The int8 weight, dequantized, and the bias: int32 at the scale of the sums where the input is codes.

        Of a float layer both as they are.
        """
        name = layer.name
        if layer.quantization is None:
            return [self.constant(f"{name}.{what}", self.state[f"{name}.{what}"]) for what in ("weight", "bias")]
        scale = self.state[f"{name}.weight_scale"]
        numbers = [self.constant(f"{name}.weight", self.state[f"{name}.weight"]), self.constant(f"{name}.scale", scale)]
        weight = self.node("DequantizeLinear", numbers, f"{name}.weight.real", axis=0)
        bias = self.state[f"{name}.bias"]
        if layer.inputs[0] not in self.scales:
            return [weight, self.constant(f"{name}.bias", bias)]
        sum_scale = (self.scales[layer.inputs[0]] * scale).astype(np.float32)
        codes = np.rint(bias / sum_scale.astype(np.float64))
        if np.abs(codes).max() >= 2**31:
            message = f"The bias of layer {name!r} is too large for an int32 at the scale of its sums."
            raise ModelError(message, "Quantize the float model again.")
        codes = codes.astype(np.int32)
        numbers = [self.constant(f"{name}.bias", codes), self.constant(f"{name}.bias.scale", sum_scale)]
        return [weight, self.node("DequantizeLinear", numbers, f"{name}.bias.real", axis=0)]


def _quantize(writer: Writer, layer: Layer) -> str:
    return writer.output(layer, writer.values[layer.inputs[0]])


def _convolution(writer: Writer, layer: Layer) -> str:
    x, residuals = writer.weighted_input(layer, 4), writer.inputs(layer)[1:]
    assert layer.padding is not None
    value = writer.node(
        "Conv",
        [x, *writer.weight_and_bias(layer)],
        f"{layer.name}.sum",
        strides=layer.stride,
        pads=[*layer.padding, *layer.padding],
        dilations=layer.dilation,
        group=layer.groups,
    )
    for residual in residuals:
        value = writer.node("Add", [value, residual], f"{layer.name}.with_residual")
    return writer.output(layer, value)


def _linear(writer: Writer, layer: Layer) -> str:
    dimensions = (layer.options or {}).get("dimensions", 2)
    x, (weight, bias) = writer.weighted_input(layer, dimensions), writer.weight_and_bias(layer)
    if not layer.options:
        return writer.output(layer, writer.node("Gemm", [x, weight, bias], f"{layer.name}.sum", transB=1))
    turned = writer.node("Transpose", [weight], f"{layer.name}.weight.turned", perm=[1, 0])  # more than 2 dimensions
    products = writer.node("MatMul", [x, turned], f"{layer.name}.products")
    return writer.output(layer, writer.node("Add", [products, bias], f"{layer.name}.sum"))


def _batch_norm(writer: Writer, layer: Layer) -> str:
    factor, shift = (
        writer.constant(f"{layer.name}.{what}", writer.state[f"{layer.name}.{what}"][:, None, None])
        for what in ("weight", "bias")
    )
    product = writer.node("Mul", [writer.values[layer.inputs[0]], factor], f"{layer.name}.product")
    return writer.output(layer, writer.node("Add", [product, shift], f"{layer.name}.sum"))


def _constant(writer: Writer, layer: Layer) -> str:
    return writer.constant(layer.name, writer.state[f"{layer.name}.value"])


def _function(writer: Writer, layer: Layer) -> str:
    return writer.output(layer, write_function(writer, layer))


def _passing(writer: Writer, layer: Layer) -> str:
    """The largest code stands for the largest value: the scale stays, and runtimes pool or move the codes."""
    return writer.same_scale(layer, write_function(writer, layer))


def _zero_pad(writer: Writer, layer: Layer) -> str:
    """Zeros have a code in any scale. No rounding stands between them and a convolution, which can take them in."""
    writer.keep_scale(layer)
    return write_function(writer, layer)


WRITERS: dict[str, Callable[[Writer, Layer], str]] = {
    "Quantize": _quantize,
    **dict.fromkeys(("QuantizedConv2d", "Conv2d"), _convolution),
    **dict.fromkeys(("QuantizedLinear", "Linear"), _linear),
    "BatchNorm2d": _batch_norm,
    "Constant": _constant,
    **dict.fromkeys(("Add", "Multiply", "Activation", "AveragePool", "Function"), _function),
    **dict.fromkeys(("Concatenate", "Flatten", "MaxPool2d", "Rearrange"), _passing),
    "ZeroPad": _zero_pad,
}
