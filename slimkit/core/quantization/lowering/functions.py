"""What an operation without weights of its own does, in the terms of an int8 network's layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from slimkit.core.graph import Input, Weight
from slimkit.core.quantization.lowering.reading import Call, Reading
from slimkit.core.quantization.lowering.traced import run_operation


def read_call(node: fx.Node) -> Call:
    """What a call of an operation does. Raises ModelError where it can't be written down."""
    assert node.target is run_operation
    reading = Reading(node)
    reader = READERS.get(reading.node.operation)
    if reader is None:
        raise reading.refuse()
    return reader(reading)


Reader = Callable[[Reading], Call]


def _elementwise(function: str, *arguments: str) -> Reader:
    """A function of one tensor and of numbers."""

    def read(r: Reading) -> Call:
        return r.call("Activation", function, r["self"], *(r[name] for name in arguments))

    return read


def _elu(r: Reading) -> Call:
    if (r["scale"], r["input_scale"]) != (1, 1):
        raise r.refuse("has scales of its own")
    return r.call("Activation", "functional.elu", r["self"], r["alpha"])


def _gelu(r: Reading) -> Call:
    return r.call("Activation", "functional.gelu", r["self"], approximate=r["approximate"])


def _arithmetic(name: str, kind: str = "Function", *, reverse: bool = False) -> Reader:
    """Of two tensors, or of one and a number. kind: of the layer for the values of two."""

    def read(r: Reading) -> Call:
        first, second = r["self"], r["other"]
        if isinstance(second, dict):
            both = len(r.sources) == 2 and not r.node.weights
            return r.call(kind if both else "Function", f"operator.{name}", first, second)
        second *= 1 if r["alpha"] is None else r["alpha"]
        operands = (second, first) if reverse else (first, second)
        return r.call("Activation", f"operator.{name}", *operands)

    return read


def _mean(r: Reading) -> Call:
    before, after = r.shapes[0], r.shape
    if len(before) == 4 and after == before[:2]:
        return r.call("AveragePool", "slimkit.channel_means", r["self"])
    if len(before) == 4 and after == (*before[:2], 1, 1):
        return r.call("AveragePool", "functional.adaptive_avg_pool2d", r["self"], 1)
    return _reduction("mean")(r)


def _reduction(name: str) -> Reader:
    return lambda r: r.call("Function", f"Tensor.{name}", r["self"], r["dim"], keepdim=bool(r["keepdim"]))


def _identity(r: Reading) -> Call:
    return Call("Identity", r.sources, {})


def _reshape(r: Reading) -> Call:
    if len(r.sources) != 1 or not isinstance(r.node.arguments["self"], Input):
        raise r.refuse()
    return r.call("Rearrange", "Tensor.reshape", {"input": 0}, r.sizes)


def _flatten(r: Reading) -> Call:
    if r["start_dim"] == 1 and r["end_dim"] in (-1, len(r.shapes[0]) - 1):
        return r.call("Flatten", "Tensor.flatten", {"input": 0}, 1)
    return _reshape(r)


def _permute(r: Reading) -> Call:
    order = list(range(len(r.shape)))
    if r.node.operation == "permute":
        order = [dim % len(order) for dim in r["dims"]]
    else:
        first, second = r["dim0"], r["dim1"]
        order[first], order[second] = order[second], order[first]
    return r.call("Rearrange", "Tensor.permute", {"input": 0}, order)


def _slice(r: Reading) -> Call:
    start, end, dim = r["start"], r["end"], r["dim"]
    size = r.shapes[0][dim]
    if dim == 0 or not all(isinstance(bound, int) for bound in (start, end)):
        raise r.refuse("cuts what follows the number of images")
    if r["step"] == 1:
        return r.call("Rearrange", "Tensor.narrow", {"input": 0}, dim, start % size if start else 0, r.shape[dim])
    places = {"slice": [start, min(end, size), r["step"]]}
    return r.call("Rearrange", "operator.getitem", {"input": 0}, [*_whole(dim), places])


def _expand(r: Reading) -> Call:
    """Along the images it is repeated for each; what numbers of images there are is not known."""
    before, sizes = r.shapes[0], r.sizes
    if sizes[0] != -1 or (len(before) == len(sizes) and before[0] != 1):
        return r.call("Function", "Tensor.expand", {"input": 0}, sizes)
    return _for_each_image(r, sizes[1:])


def _for_each_image(r: Reading, sizes: Sequence[int]) -> Call:
    image = next(iter(r.traced.graph.nodes))
    options = {"function": "slimkit.for_each", "arguments": [{"input": 0}, {"input": 1}, list(sizes)]}
    return Call("Function", (r.sources[0], image), options)


def _repeat(r: Reading) -> Call:
    if r.repeats_images:
        return _for_each_image(r, r.shape[1:])
    return r.call("Function", "Tensor.repeat", {"input": 0}, r["repeats"])


def _addcmul(r: Reading) -> Call:
    return r.call("Function", "slimkit.addcmul", r["self"], r["tensor1"], r["tensor2"], value=r["value"])


def _select(r: Reading) -> Call:
    place = [*_whole(r["dim"]), r["index"]] if r["dim"] else r["index"]
    return r.call("Rearrange", "operator.getitem", {"input": 0}, place)


def _whole(count: int) -> list[Any]:
    return [{"slice": [None, None, None]}] * count


def _cat(r: Reading) -> Call:
    if len(r["tensors"]) == 1:
        return _identity(r)
    return r.call("Concatenate", "slimkit.cat", r["tensors"], r["dim"])


def _avg_pool(r: Reading) -> Call:
    names = ("self", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return _with_input_size(r, r.call("AveragePool", "functional.avg_pool2d", *(r[name] for name in names)))


def _adaptive_avg_pool(r: Reading) -> Call:
    return _with_input_size(r, r.call("AveragePool", "functional.adaptive_avg_pool2d", r["self"], r["output_size"]))


def _with_input_size(r: Reading, made: Call) -> Call:
    """ONNX has some pools as matrices, which depend on it."""
    return replace(made, options=made.options | {"input_size": list(r.shapes[0][2:])})


def _max_pool(r: Reading) -> Call:
    names = ("self", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return r.call("MaxPool2d", "functional.max_pool2d", *(r[name] for name in names))


def _pool(kind: str, dimensions: int) -> Reader:
    """Pools over other than two dimensions of space, in float."""
    more = ("dilation", "ceil_mode") if kind == "max_pool" else ("ceil_mode", "count_include_pad")
    names = ("self", "kernel_size", "stride", "padding", *more)
    return _of_tensors(f"functional.{kind}{dimensions}d", *names)


def _interpolate(mode: str) -> Reader:
    def read(r: Reading) -> Call:
        corners = {} if mode == "nearest" else {"align_corners": bool(r["align_corners"])}
        factors = r["scale_factors"]
        given = {"size": list(r.shape[2:])} if factors is None else {"scale_factor": factors}
        return r.call("Function", "functional.interpolate", {"input": 0}, **given, mode=mode, **corners)

    return read


def _pad(r: Reading) -> Call:
    is_zero = r["mode"] == "constant" and r["value"] in (None, 0)
    rest = [0, 0] * (len(r.shape) - 1 - len(r["pad"]) // 2)
    sides = [*r["pad"], *rest]  # of all dimensions but the images'
    if is_zero and len(sides) < 2 * len(r.shape):
        return r.call("ZeroPad", "slimkit.pad_zeros", {"input": 0}, sides)
    return r.call("Function", "functional.pad", {"input": 0}, r["pad"], mode=r["mode"], value=r["value"])


def _normalize(name: str, *arguments: str) -> Reader:
    """layer_norm and the like, with weights that are constants."""
    return lambda r: r.call(
        "Function",
        f"functional.{name}",
        r["input"],
        *(r[argument] for argument in arguments),
        weight=r["weight"],
        bias=r["bias"],
        eps=r["eps"],
    )


def _batch_norm(r: Reading) -> Call:
    if r["running_mean"] is None or r["training"]:
        raise r.refuse("has no statistics of its own: it normalizes each batch by that very batch")
    return _normalize("batch_norm", "running_mean", "running_var")(r)


def _instance_norm(r: Reading) -> Call:
    names = ("running_mean", "running_var", "weight", "bias", "use_input_stats", "eps")
    return r.call("Function", "functional.instance_norm", r["input"], **{name: r[name] for name in names})


def _variance(r: Reading) -> Call:
    keywords = {"correction": r["correction"], "keepdim": bool(r["keepdim"])}
    return r.call("Function", f"Tensor.{r.node.operation}", r["self"], r["dim"], **keywords)


def _attention(r: Reading) -> Call:
    keywords = {name: r[name] for name in ("attn_mask", "dropout_p", "is_causal", "scale")}
    made = (r["query"], r["key"], r["value"])
    return r.call("Function", "functional.scaled_dot_product_attention", *made, **keywords)


def _of_tensors(function: str, *names: str) -> Reader:
    return lambda r: r.call("Function", function, *(r[name] for name in names))


def _take(r: Reading) -> Call:
    """An order by numbers that are the network's own, along one dimension."""
    given = r.node.arguments
    listed = given.get("indices", (given.get("index"),))
    assert isinstance(listed, tuple)
    places = [(dim, place) for dim, place in enumerate(listed) if place is not None]
    dim = given.get("dim", places[0][0])
    if len(places) != 1 or not isinstance(places[0][1], Weight) or not isinstance(dim, int) or dim == 0:
        raise r.refuse()
    numbers = r.tensor(places[0][1].name)
    if numbers.dim() != 1 or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise r.refuse()
    size = r.shapes[0][dim]
    made = r.call("Rearrange", "slimkit.take", {"input": 0}, dim, [int(n) % size for n in numbers])
    return replace(made, sources=made.sources[:1])


READERS: dict[str, Reader] = {
    **{
        name: _elementwise(f"functional.{name}")
        for name in ("relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid", "tanh", "selu", "mish")
    },
    **{
        name: _elementwise(f"Tensor.{name}")
        for name in ("abs", "exp", "sqrt", "square", "neg", "reciprocal", "rsqrt", "log", "erf", "sin", "cos")
    },
    **{name: _elementwise(f"Tensor.{name}") for name in ("expm1", "log1p", "sign", "floor", "ceil", "round", "trunc")},
    "log_sigmoid": _elementwise("functional.logsigmoid"),
    "elu": _elu,
    "celu": _elementwise("functional.celu", "alpha"),
    "hardshrink": _elementwise("functional.hardshrink", "lambd"),
    "softshrink": _elementwise("functional.softshrink", "lambd"),
    "leaky_relu": _elementwise("functional.leaky_relu", "negative_slope"),
    "softplus": _elementwise("functional.softplus", "beta", "threshold"),
    "gelu": _gelu,
    "clamp": _elementwise("Tensor.clamp", "min", "max"),
    "clamp_min": _elementwise("Tensor.clamp_min", "min"),
    "clamp_max": _elementwise("Tensor.clamp_max", "max"),
    "pow": _elementwise("operator.pow", "exponent"),
    "pow_tensor": _of_tensors("operator.pow", "self", "exponent"),
    "add": _arithmetic("add", "Add"),
    "sub": _arithmetic("sub"),
    "rsub": _arithmetic("sub", reverse=True),
    "mul": _arithmetic("mul", "Multiply"),
    "div": _arithmetic("truediv"),
    "maximum": _of_tensors("Tensor.maximum", "self", "other"),
    "minimum": _of_tensors("Tensor.minimum", "self", "other"),
    "matmul": _of_tensors("operator.matmul", "self", "other"),
    "bmm": _of_tensors("operator.matmul", "self", "mat2"),
    "mm": _of_tensors("operator.matmul", "self", "mat2"),
    "mean": _mean,
    **{name: _reduction(name) for name in ("sum", "amax", "amin")},
    "softmax": lambda r: r.call("Function", "functional.softmax", r["self"], r["dim"]),
    "log_softmax": lambda r: r.call("Function", "functional.log_softmax", r["self"], r["dim"]),
    **dict.fromkeys(("var", "std"), _variance),
    "norm": lambda r: r.call("Function", "slimkit.norm", r["self"], r["ord"], r["dim"], keepdim=bool(r["keepdim"])),
    "logsumexp": _reduction("logsumexp"),
    "cumsum": _of_tensors("Tensor.cumsum", "self", "dim"),
    "conv1d": _of_tensors("functional.conv1d", "input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose2d": _of_tensors(
        "functional.conv_transpose2d",
        *("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
    "instance_norm": _instance_norm,
    "rms_norm": lambda r: r.call(
        "Function", "functional.rms_norm", r["input"], r["normalized_shape"], weight=r["weight"], eps=r["eps"]
    ),
    "layer_norm": _normalize("layer_norm", "normalized_shape"),
    "group_norm": _normalize("group_norm", "num_groups"),
    "batch_norm": _batch_norm,
    "prelu": _of_tensors("functional.prelu", "self", "weight"),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("dropout", "feature_dropout", "contiguous"), _identity),
    **dict.fromkeys(("reshape", "squeeze", "unsqueeze"), _reshape),
    "flatten": _flatten,
    **dict.fromkeys(("permute", "transpose"), _permute),
    **dict.fromkeys(("index", "index_select"), _take),
    "slice": _slice,
    "select": _select,
    "cat": _cat,
    "stack": lambda r: r.call("Function", "slimkit.stack", r["tensors"], r["dim"]),
    "expand": _expand,
    "addcmul": _addcmul,
    "repeat": _repeat,
    "flip": lambda r: r.call("Function", "Tensor.flip", {"input": 0}, r["dims"]),
    "roll": lambda r: r.call("Function", "Tensor.roll", {"input": 0}, r["shifts"], dims=r["dims"]),
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "max_pool2d": _max_pool,
    **{f"{kind}{n}d": _pool(kind, n) for kind in ("max_pool", "avg_pool") for n in (1, 3)},
    **{
        f"adaptive_avg_pool{n}d": _of_tensors(f"functional.adaptive_avg_pool{n}d", "self", "output_size")
        for n in (1, 3)
    },
    "adaptive_max_pool2d": lambda r: r.call(
        "Function", "functional.adaptive_max_pool2d", {"input": 0}, r["output_size"]
    ),
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d"), _interpolate("nearest")),
    "upsample_bilinear2d": _interpolate("bilinear"),
    "upsample_bicubic2d": _interpolate("bicubic"),
    "pad": _pad,
    "pixel_shuffle": lambda r: r.call("Function", "functional.pixel_shuffle", {"input": 0}, r["upscale_factor"]),
    "pixel_unshuffle": lambda r: r.call("Function", "functional.pixel_unshuffle", {"input": 0}, r["downscale_factor"]),
}
