"""The ATen operations that a graph may call, by name: nothing outside of this list can be reached from a graph."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

# Each operation, and the overload of torch.ops.aten that computes it. An overload's schema says what it takes.
OPERATIONS: dict[str, str] = {
    # with weights
    "conv1d": "conv1d",
    "conv2d": "conv2d",
    "conv3d": "conv3d",
    "conv_transpose1d": "conv_transpose1d",
    "conv_transpose2d": "conv_transpose2d.input",
    "conv_transpose3d": "conv_transpose3d.input",
    "linear": "linear",
    "batch_norm": "batch_norm",
    "instance_norm": "instance_norm",
    "group_norm": "group_norm",
    "layer_norm": "layer_norm",
    "rms_norm": "rms_norm",
    "prelu": "prelu",
    # products of activations
    "matmul": "matmul",
    "bmm": "bmm",
    "mm": "mm",
    "baddbmm": "baddbmm",
    "addmm": "addmm",
    "einsum": "einsum",
    "mv": "mv",
    "dot": "dot",
    "weight_norm": "_weight_norm",
    "scaled_dot_product_attention": "scaled_dot_product_attention",
    # element by element
    **{
        name: name
        for name in [
            "relu",
            "relu6",
            "hardswish",
            "hardsigmoid",
            "silu",
            "sigmoid",
            "tanh",
            "gelu",
            "elu",
            "selu",
            "celu",
            "leaky_relu",
            "mish",
            "softplus",
            "log_sigmoid",
            "hardshrink",
            "softshrink",
            "abs",
            "exp",
            "expm1",
            "log",
            "log1p",
            "sqrt",
            "rsqrt",
            "square",
            "neg",
            "reciprocal",
            "sin",
            "cos",
            "erf",
            "sign",
            "floor",
            "ceil",
            "round",
            "trunc",
            "clamp",
            "clamp_min",
            "clamp_max",
            "logical_not",
        ]
    },
    "add": "add.Tensor",
    "sub": "sub.Tensor",
    "rsub": "rsub.Scalar",
    "mul": "mul.Tensor",
    "div": "div.Tensor",
    "div_rounded": "div.Tensor_mode",
    "pow": "pow.Tensor_Scalar",
    "pow_tensor": "pow.Tensor_Tensor",
    "addcmul": "addcmul",
    "maximum": "maximum",
    "minimum": "minimum",
    "where": "where.self",
    "masked_fill": "masked_fill.Scalar",
    **{name: f"{name}.Scalar" for name in ("eq", "ne", "lt", "le", "gt", "ge", "remainder")},
    "to": "to.dtype",
    "dropout": "dropout",
    "feature_dropout": "feature_dropout",
    # over pixels
    "max_pool1d": "max_pool1d",
    "max_pool2d": "max_pool2d",
    "max_pool3d": "max_pool3d",
    "avg_pool1d": "avg_pool1d",
    "avg_pool2d": "avg_pool2d",
    "avg_pool3d": "avg_pool3d",
    "adaptive_avg_pool1d": "adaptive_avg_pool1d",
    "adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "adaptive_avg_pool3d": "adaptive_avg_pool3d",
    "adaptive_max_pool2d": "adaptive_max_pool2d",
    "upsample_nearest1d": "upsample_nearest1d.vec",
    "upsample_nearest2d": "upsample_nearest2d.vec",
    "upsample_bilinear2d": "upsample_bilinear2d.vec",
    "upsample_bicubic2d": "upsample_bicubic2d.vec",
    "pad": "pad",
    "pixel_shuffle": "pixel_shuffle",
    "pixel_unshuffle": "pixel_unshuffle",
    "unfold": "unfold",
    "im2col": "im2col",
    "grid_sampler": "grid_sampler",
    # reductions
    "mean": "mean.dim",
    "sum": "sum.dim_IntList",
    "amax": "amax",
    "amin": "amin",
    "argmax": "argmax",
    "prod": "prod.dim_int",
    "var": "var.correction",
    "std": "std.correction",
    "norm": "linalg_vector_norm",
    "logsumexp": "logsumexp",
    "cumsum": "cumsum",
    "softmax": "softmax.int",
    "log_softmax": "log_softmax.int",
    # shapes and places
    "reshape": "reshape",
    "flatten": "flatten.using_ints",
    "permute": "permute",
    "transpose": "transpose.int",
    "squeeze": "squeeze.dims",
    "unsqueeze": "unsqueeze",
    "expand": "expand",
    "repeat": "repeat",
    "repeat_interleave": "repeat_interleave.self_int",
    "cat": "cat",
    "stack": "stack",
    "slice": "slice.Tensor",
    "select": "select.int",
    "index": "index.Tensor",
    "index_select": "index_select",
    "gather": "gather",
    "flip": "flip",
    "roll": "roll",
    "select_scatter": "select_scatter",
    "slice_scatter": "slice_scatter",
    "contiguous": "contiguous",
    "tril": "tril",
    "triu": "triu",
    # numbers that are not computed from the image
    "arange": "arange.start_step",
    "full": "full",
}


DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}

MEMORY_FORMATS = {name: getattr(torch, name) for name in ("contiguous_format", "channels_last", "channels_last_3d")}


@functools.cache
def overload(operation: str) -> Any:
    """The function of torch.ops.aten that computes an operation. Raises ValueError for one that is not listed."""
    if operation not in OPERATIONS:
        raise ValueError(f"there is no operation called {operation!r}")
    packet, _, name = OPERATIONS[operation].partition(".")
    return getattr(getattr(torch.ops.aten, packet), name or "default")


def plain_argument(name: str, value: Any) -> Any:
    """What torch takes for an argument that JSON holds by its name: a dtype or a memory format."""
    if value is None or name not in ("dtype", "memory_format"):
        return value
    return DTYPES[value] if name == "dtype" else MEMORY_FORMATS[value]


def call(operation: str, arguments: Mapping[str, Any]) -> Any:
    """The value of an operation, all of whose arguments are there."""
    return first_result(overload(operation)(**{name: plain_argument(name, value) for name, value in arguments.items()}))


def first_result(result: Any) -> Any:
    """Of an operation's several results the one that counts."""
    return result[0] if isinstance(result, tuple) else result
