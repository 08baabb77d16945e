"""Other spellings of the operations of the normal form: a reader for each call that isn't one by its very name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from slimkit.core.graph.call import Call, Parts, Result, Spelling, dimension, dimensions, traced_parts, unread
from slimkit.core.graph.moves import MOVES


def _batch_norm(call: Call) -> Result:
    return call.emit("batch_norm", {**call.arguments, "cudnn_enabled": False})


def _batch_norm_no_training(call: Call) -> Result:
    """What run_decompositions makes of batch_norm: the first of its results is the output."""
    arguments = {**call.arguments, "training": False, "cudnn_enabled": False}
    return Parts((lambda: call.emit("batch_norm", arguments), *unread(call, 2)))


def _instance_norm(call: Call) -> Result:
    return call.emit("instance_norm", {**call.arguments, "cudnn_enabled": False})


def _first_of(operation: str, *keep: str) -> Spelling:
    """A call whose further results are of no use without the first."""

    def read(call: Call) -> Result:
        count = len(traced_parts(call))
        first = lambda: call.renamed(operation, *keep) if keep else call.emit(operation)  # noqa: E731
        return Parts((first, *unread(call, count - 1)))

    return read


def _extreme(values: str, places: str | None) -> Spelling:
    """max and min over one dimension (values and places), over all, or of two tensors."""

    def read(call: Call) -> Result:
        if "other" in call.arguments:
            return call.emit({"amax": "maximum", "amin": "minimum"}[values])
        if "dim" not in call.arguments:
            return call.emit(values, {"self": call["self"], "dim": dimensions(call, None), "keepdim": False})
        arguments = {"self": call["self"], "keepdim": call["keepdim"]}
        dim = dimension(call, call["dim"])
        first = lambda: call.emit(values, {**arguments, "dim": [dim]})  # noqa: E731
        second = (lambda: call.emit(places, {**arguments, "dim": dim}),) if places else unread(call, 1)
        return Parts((first, *second))

    return read


def _reduction(operation: str) -> Spelling:
    """Reductions over some dimensions, or all."""

    def read(call: Call) -> Result:
        keep = {name: value for name, value in call.arguments.items() if name not in ("self", "dim")}
        keep.setdefault("keepdim", False)
        return call.emit(operation, {"self": call["self"], "dim": dimensions(call, call.arguments.get("dim")), **keep})

    return read


def _variance(operation: str) -> Spelling:
    """var and std, whose older spellings say `unbiased`."""

    def read(call: Call) -> Result:
        correction = call.arguments.get("correction", 1 if call.arguments.get("unbiased", True) else 0)
        return call.emit(
            operation,
            {
                "self": call["self"],
                "dim": dimensions(call, call.arguments.get("dim")),
                "correction": 1 if correction is None else correction,
                "keepdim": call.arguments.get("keepdim", False),
            },
        )

    return read


def _clamp(call: Call) -> Result:
    """Two of its ranges have names of their own."""
    low = call.arguments.get("min", call.arguments.get("min_val"))
    high = call.arguments.get("max", call.arguments.get("max_val"))
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        raise call.refuse("The network clamps to the values of a tensor", "Use torch.minimum and torch.maximum.")
    if low == 0 and high in (None, 6):
        return call.emit("relu" if high is None else "relu6", {"self": call["self"]})
    return call.emit("clamp", {"self": call["self"], "min": low, "max": high})


def _conv(call: Call) -> Result:
    """Padding as text is written out; where it differs from side to side, it is an operation of its own."""
    name = f"conv{call.own_input.dim() - 2}d"
    padding = call["padding"]
    if not isinstance(padding, str):
        return call.emit(name)
    weight = call["weight"]
    assert isinstance(weight, fx.Node)
    dilation = call["dilation"]
    assert isinstance(dilation, Sequence)
    spans = [step * (size - 1) for step, size in zip(dilation, weight.meta["val"].shape[2:], strict=True)]
    spans = spans if padding == "same" else [0] * len(spans)
    source = call["input"]
    if any(span % 2 for span in spans):
        sides = [side for span in reversed(spans) for side in (span // 2, span - span // 2)]
        source = call.emit("pad", {"self": source, "pad": sides, "mode": "constant", "value": None})
        spans = [0] * len(spans)
    return call.emit(name, {**call.arguments, "input": source, "padding": [span // 2 for span in spans]})


def _convolution(call: Call) -> Result:
    """The general form that decompositions may leave."""
    dims = call.own_input.dim() - 2
    keep = {name: call[name] for name in ("input", "weight", "bias", "stride", "padding", "dilation", "groups")}
    if call["transposed"]:
        return call.emit(f"conv_transpose{dims}d", {**keep, "output_padding": call["output_padding"]})
    return call.emit(f"conv{dims}d", keep)


def _pool(name: str) -> Spelling:
    """Pools without a stride step by their kernel."""

    def read(call: Call) -> Result:
        stride = call["stride"] or call["kernel_size"]
        return call.emit(name, {**call.arguments, "stride": stride})

    return read


def _pool_with_indices(call: Call) -> Result:
    name = f"max_pool{call.own_input.dim() - 2}d"
    return Parts((lambda: _pool(name)(call), *unread(call, 1)))


def _pad(mode: str) -> Spelling:
    def read(call: Call) -> Result:
        sides = call.arguments.get("pad", call.arguments.get("padding"))
        value = call.arguments.get("value")
        return call.emit("pad", {"self": call["self"], "pad": sides, "mode": mode, "value": value})

    return read


def _dropout(call: Call) -> Result:
    operation = "feature_dropout" if "feature" in str(call.node.target) else "dropout"
    source = next(iter(call.arguments.values()))
    return call.emit(operation, {"input": source, "p": call["p"], "train": False})


def _rrelu(call: Call) -> Result:
    """Outside of training its slope is the mean of its two."""
    low, high = call["lower"], call["upper"]
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    return call.emit("leaky_relu", {"self": call["self"], "negative_slope": (low + high) / 2})


def _full(value: float | None) -> Spelling:
    """ones, zeros, full, scalar_tensor and the like."""

    def read(call: Call) -> Result:
        number = call.arguments.get("fill_value", call.arguments.get("s", value))
        return call.emit("full", {"size": list(call.value.shape), "fill_value": number, "dtype": call.value.dtype})

    return read


def _arange(call: Call) -> Result:
    start, step = call.arguments.get("start", 0), call.arguments.get("step", 1)
    return call.emit("arange", {"start": start, "end": call["end"], "step": step, "dtype": call.value.dtype})


def _div(call: Call) -> Result:
    mode = call.arguments.get("rounding_mode")
    arguments = {"self": call["self"], "other": call["other"]}
    return (
        call.emit("div", arguments) if mode is None else call.emit("div_rounded", {**arguments, "rounding_mode": mode})
    )


def _pow(call: Call) -> Result:
    """Also of a number to the power of a tensor."""
    base, exponent = _as_tensor(call, call["self"]), call["exponent"]
    return call.emit("pow_tensor" if isinstance(exponent, fx.Node) else "pow", {"self": base, "exponent": exponent})


def _where(call: Call) -> Result:
    """Also between numbers."""
    choices = {name: _as_tensor(call, call[name]) for name in ("self", "other")}
    return call.emit("where", {"condition": call["condition"], **choices})


def _as_tensor(call: Call, value: object) -> object:
    """An operand of the call, made a tensor where it is a number."""
    if isinstance(value, fx.Node):
        return value
    return call.emit("full", {"size": [], "fill_value": value, "dtype": call.value.dtype})


def _without_tensors(operation: str) -> Spelling:
    """Comparisons with a number; those of two tensors have no normal form."""

    def read(call: Call) -> Result:
        if isinstance(call["other"], fx.Node):
            raise call.refuse(f"The network compares two tensors by {operation}", "Compare with a number.")
        return call.emit(operation)

    return read


def _bitwise_not(call: Call) -> Result:
    if call.own_input.dtype != torch.bool:
        raise call.refuse("The network inverts the bits of numbers", "Use torch.logical_not, or a comparison.")
    return call.emit("logical_not")


SPELLINGS: dict[str, Spelling] = {
    **MOVES,
    **dict.fromkeys(("clamp", "hardtanh", "clip"), _clamp),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _full(1)),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), _full(0)),
    **dict.fromkeys(("full", "full_like", "new_full", "scalar_tensor"), _full(None)),
    **{name: _reduction(name) for name in ("mean", "sum", "amax", "amin", "logsumexp")},
    **{name: _variance(name) for name in ("var", "std")},
    **{
        name: _pool(name)
        for name in ("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d")
    },
    **dict.fromkeys(
        ("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d_with_indices"), _pool_with_indices
    ),
    **dict.fromkeys(("dropout", "feature_dropout"), _dropout),
    **{name: _without_tensors(name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "remainder")},
    **{f"reflection_pad{n}d": _pad("reflect") for n in (1, 2, 3)},
    **{f"replication_pad{n}d": _pad("replicate") for n in (1, 2, 3)},
    "pad": lambda call: call.emit("pad"),
    "constant_pad_nd": _pad("constant"),
    "max": _extreme("amax", "argmax"),
    "min": _extreme("amin", None),
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm_no_training,
    "instance_norm": _instance_norm,
    "_weight_norm": lambda call: call.emit("weight_norm"),
    "bitwise_not": _bitwise_not,
    "vdot": lambda call: call.renamed("dot", "self", tensor=call["other"]),
    "rrelu": _rrelu,
    "layer_norm": lambda call: call.renamed("layer_norm", "input", "normalized_shape", "weight", "bias", "eps"),
    "native_layer_norm": _first_of("layer_norm"),
    "group_norm": lambda call: call.renamed("group_norm", "input", "num_groups", "weight", "bias", "eps"),
    "adaptive_max_pool2d": _first_of("adaptive_max_pool2d"),
    "convolution": _convolution,
    "arange": _arange,
    "div": _div,
    "true_divide": _div,
    "pow": _pow,
    "where": _where,
    "linalg_vector_norm": _reduction("norm"),
    "clamp_min": lambda call: _clamp(call) if call["min"] == 0 else call.emit("clamp_min"),
    "_softmax": lambda call: call.renamed("softmax", "self", "dim"),
    "masked_fill": lambda call: call.emit("masked_fill"),
}
