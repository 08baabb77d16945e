"""torch's functions as ONNX operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from slimkit.core.architecture import Layer
from slimkit.core.errors import ModelError

if TYPE_CHECKING:
    from slimkit.core.export.int8_graph import Writer

# Those that are one operator of one input, with fixed attributes.
OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "functional.relu": ("Relu", {}),
    "functional.sigmoid": ("Sigmoid", {}),
    "functional.tanh": ("Tanh", {}),
    "functional.hardswish": ("HardSwish", {}),
    "functional.hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "functional.softplus": ("Softplus", {}),
    "functional.mish": ("Mish", {}),
    "functional.selu": ("Selu", {}),
    "Tensor.flatten": ("Flatten", {}),
}
ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "truediv": "Div", "div": "Div"}


def has_form(layer: Layer) -> bool:
    """Whether what `layer` calls is written here, and not by torch's exporter."""
    options = layer.options or {}
    name = str(options.get("function")).rpartition(".")[2]
    if options.get("function") in OPERATORS or name in FUNCTIONS:
        return True
    return name in ARITHMETIC and not options.get("keywords")


def write_function(writer: Writer, layer: Layer) -> str:
    """Write what `layer` calls, on real numbers; its result's name. Raises ModelError for settings without a form."""
    if layer.name in writer.traced:
        return writer.inline(layer, writer.traced[layer.name])
    options = layer.options or {}
    function = options["function"]
    name = function.rpartition(".")[2]
    if function in OPERATORS:
        kind, attributes = OPERATORS[function]
        return writer.node(kind, writer.inputs(layer), f"{layer.name}.{name}", **attributes)
    if name in ARITHMETIC and not options.get("keywords"):
        return writer.node(ARITHMETIC[name], _operands(writer, layer), f"{layer.name}.{name}")
    return FUNCTIONS[name](writer, layer, *options["arguments"][1:], **options.get("keywords", {}))


def _operands(writer: Writer, layer: Layer) -> list[str]:
    """Each argument: an input, or a number as a constant."""
    operands = []
    for i, argument in enumerate((layer.options or {})["arguments"]):
        is_input = isinstance(argument, dict)
        constant = f"{layer.name}.operand_{i}"
        operands.append(
            writer.values[layer.inputs[argument["input"]]]
            if is_input
            else writer.constant(constant, np.float32(argument))
        )
    return operands


def _relu6(writer: Writer, layer: Layer) -> str:
    return _clip(writer, layer, 0.0, 6.0)


def _clip(writer: Writer, layer: Layer, low: float | None = None, high: float | None = None, **names: float) -> str:
    low, high = names.get("min_val", names.get("min", low)), names.get("max_val", names.get("max", high))
    numbers = (-math.inf if low is None else low, math.inf if high is None else high)
    bounds = [writer.constant(f"{layer.name}.bound_{i}", np.float32(number)) for i, number in enumerate(numbers)]
    return writer.node("Clip", [*writer.inputs(layer), *bounds], f"{layer.name}.clipped")


def _silu(writer: Writer, layer: Layer) -> str:
    (x,) = writer.inputs(layer)
    gate = writer.node("Sigmoid", [x], f"{layer.name}.gate")
    return writer.node("Mul", [x, gate], f"{layer.name}.product")


def _gelu(writer: Writer, layer: Layer, approximate: str = "none") -> str:
    if approximate != "none":
        raise ModelError(f"Layer {layer.name!r} is a GELU that is approximated.", "Export the float model.")
    (x,) = writer.inputs(layer)
    root, one, half = (
        writer.constant(f"{layer.name}.{what}", np.float32(number))
        for what, number in (("root", math.sqrt(0.5)), ("one", 1.0), ("half", 0.5))
    )
    error = writer.node("Erf", [writer.node("Mul", [x, root], f"{layer.name}.scaled")], f"{layer.name}.erf")
    twice = writer.node("Mul", [x, writer.node("Add", [error, one], f"{layer.name}.shifted")], f"{layer.name}.twice")
    return writer.node("Mul", [twice, half], f"{layer.name}.gelu")


def _leaky_relu(writer: Writer, layer: Layer, negative_slope: float = 0.01) -> str:
    return writer.node("LeakyRelu", writer.inputs(layer), f"{layer.name}.leaky", alpha=negative_slope)


def _elu(writer: Writer, layer: Layer, alpha: float = 1.0) -> str:
    return writer.node("Elu", writer.inputs(layer), f"{layer.name}.elu", alpha=alpha)


def _layer_norm(
    writer: Writer, layer: Layer, shape: list[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> str:
    x, *rest = writer.inputs(layer)
    if weight is None:
        rest = [writer.constant(f"{layer.name}.ones", np.ones(shape, dtype=np.float32))]
    name = f"{layer.name}.normalized"
    return writer.node("LayerNormalization", [x, *rest], name, axis=-len(shape), epsilon=eps)


def _cat(writer: Writer, layer: Layer, dim: int = 0) -> str:
    return writer.node("Concat", writer.inputs(layer), f"{layer.name}.cat", axis=dim)


def _reshape(writer: Writer, layer: Layer, shape: list[int]) -> str:
    return writer.node(
        "Reshape", [*writer.inputs(layer), _integers(writer, layer, "shape", shape)], f"{layer.name}.shaped"
    )


def _permute(writer: Writer, layer: Layer, order: list[int]) -> str:
    return writer.node("Transpose", writer.inputs(layer), f"{layer.name}.permuted", perm=order)


def _narrow(writer: Writer, layer: Layer, dim: int, start: int, length: int) -> str:
    ends = {"starts": start, "ends": start + length, "axes": dim}
    numbers = [_integers(writer, layer, what, [number]) for what, number in ends.items()]
    return writer.node("Slice", [*writer.inputs(layer), *numbers], f"{layer.name}.slice")


def _pad_zeros(writer: Writer, layer: Layer, sides: list[int]) -> str:
    """torch names the sides from the last dimension back, before and after each; ONNX all befores, then all afters."""
    amounts = _integers(writer, layer, "sides", [0, *sides[-2::-2], 0, *sides[-1::-2]])
    return writer.node("Pad", [*writer.inputs(layer), amounts], f"{layer.name}.padded")


def _take(writer: Writer, layer: Layer, dim: int, places: list[int]) -> str:
    numbers = _integers(writer, layer, "places", places)
    return writer.node("Gather", [*writer.inputs(layer), numbers], f"{layer.name}.taken", axis=dim)


def _integers(writer: Writer, layer: Layer, what: str, values: list[int]) -> str:
    return writer.constant(f"{layer.name}.{what}", np.array(values, dtype=np.int64))


def _channel_means(writer: Writer, layer: Layer) -> str:
    mean = writer.node("GlobalAveragePool", writer.inputs(layer), f"{layer.name}.mean")
    return writer.node("Flatten", [mean], f"{layer.name}.flat")


def _adaptive_avg_pool2d(writer: Writer, layer: Layer, output_size: Any) -> str:
    if _pair(output_size) == [1, 1]:
        return writer.node("GlobalAveragePool", writer.inputs(layer), f"{layer.name}.mean")
    sizes = zip((layer.options or {})["input_size"], _pair(output_size), strict=True)
    return _average(writer, layer, [_means(before, after) for before, after in sizes])


def _average(writer: Writer, layer: Layer, means: list[Any]) -> str:
    """The product with a matrix of means, [after, before], for each of height and width."""
    height, width = (writer.constant(f"{layer.name}.means_{i}", matrix) for i, matrix in enumerate(means))
    turned = writer.node("Transpose", [width], f"{layer.name}.turned", perm=[1, 0])
    rows = writer.node("MatMul", [height, *writer.inputs(layer)], f"{layer.name}.rows")
    return writer.node("MatMul", [rows, turned], f"{layer.name}.mean")


def _means(before: int, after: int | None) -> Any:
    """The matrix [after, before] of adaptive average pooling along one dimension."""
    after = before if after is None else after
    matrix = np.zeros((after, before), dtype=np.float32)
    for i in range(after):
        start, end = i * before // after, -(-(i + 1) * before // after)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


def _window_means(before: int, kernel: int, step: int, padding: int, counts_padding: bool) -> Any:
    """The matrix [after, before] of average pooling in ceil mode along one dimension, as PyTorch defines it.

    No window starts beyond the input and its left padding; none counts what is beyond the right padding.
    """
    after = -(-(before + 2 * padding - kernel) // step) + 1
    after -= (after - 1) * step >= before + padding
    matrix = np.zeros((after, before), dtype=np.float32)
    for i in range(after):
        start = i * step - padding
        end = min(start + kernel, before + padding)
        first, last = max(start, 0), min(end, before)
        matrix[i, first:last] = 1 / (end - start if counts_padding else last - first)
    return matrix


def _avg_pool2d(
    writer: Writer,
    layer: Layer,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: None = None,
) -> str:
    if divisor_override is not None:
        raise ModelError(f"Layer {layer.name!r} overrides its divisor.", "Export the float model.")
    if ceil_mode:  # runtimes differ in what they divide by where a window reaches beyond the rim
        before, kernel, step = (layer.options or {})["input_size"], _pair(kernel_size), _pair(stride or kernel_size)
        sizes = zip(before, kernel, step, _pair(padding), strict=True)
        return _average(writer, layer, [_window_means(*size, count_include_pad) for size in sizes])
    attributes = _window(kernel_size, stride, padding, ceil_mode) | {"count_include_pad": int(count_include_pad)}
    return writer.node("AveragePool", writer.inputs(layer), f"{layer.name}.mean", **attributes)


def _max_pool2d(
    writer: Writer,
    layer: Layer,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> str:
    assert not return_indices  # its node would give two tensors
    attributes = _window(kernel_size, stride, padding, ceil_mode) | {"dilations": _pair(dilation)}
    return writer.node("MaxPool", writer.inputs(layer), f"{layer.name}.max", **attributes)


def _window(kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool) -> dict[str, Any]:
    return {
        "kernel_shape": _pair(kernel_size),
        "strides": _pair(stride or kernel_size),
        "pads": _pair(padding) * 2,
        "ceil_mode": int(ceil_mode),
    }


def _pair(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value, value]


# By name, called with the function's arguments after the first.
FUNCTIONS: dict[str, Callable[..., str]] = {
    "relu6": _relu6,
    **dict.fromkeys(("hardtanh", "clamp", "clamp_min"), _clip),
    "silu": _silu,
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "layer_norm": _layer_norm,
    "cat": _cat,
    "reshape": _reshape,
    "permute": _permute,
    "narrow": _narrow,
    "pad_zeros": _pad_zeros,
    "take": _take,
    "channel_means": _channel_means,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "avg_pool2d": _avg_pool2d,
    "max_pool2d": _max_pool2d,
}
