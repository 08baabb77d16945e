"""Other spellings of the operations of the normal form: a reader for each call that isn't one by its very name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx

from slimkit.core.errors import ModelError
from slimkit.core.graph.node import Weight
from slimkit.core.graph.source import source_line


class Emitter(Protocol):
    """What reads the calls, see `normalize.py`."""

    def add(self, node: fx.Node, operation: str, arguments: Mapping[str, object]) -> str:
        """Append a node; its name."""

    def result(self, value: object) -> Result:
        """What a call before gave."""


@dataclass(frozen=True)
class Parts:
    """The results of one call, each made when it is read."""

    takers: tuple[Callable[[], Result], ...]

    def __len__(self) -> int:
        return len(self.takers)

    def take(self, index: int) -> Result:
        """The result at `index`."""
        return self.takers[index]()


Result = str | Weight | Parts  # the name of a node (IMAGE too), a tensor, or several


@dataclass(frozen=True)
class Call:
    """One call of the exported program, its arguments bound to the names of the schema."""

    emitter: Emitter
    node: fx.Node
    arguments: Mapping[str, object]

    def __getitem__(self, name: str) -> object:
        return self.arguments[name]

    def emit(self, operation: str, arguments: Mapping[str, object] | None = None) -> str:
        """Append a node of this call, with its own arguments or others."""
        return self.emitter.add(self.node, operation, self.arguments if arguments is None else arguments)

    def renamed(self, operation: str, *keep: str, **more: object) -> str:
        """Append a node of this call with those of its arguments that are named, and more."""
        return self.emit(operation, {name: self.arguments[name] for name in keep} | more)

    def passed(self, name: str = "self") -> Result:
        """The result of a call that changes nothing: that of its argument."""
        return self.emitter.result(self.arguments[name])

    @property
    def own_input(self) -> Tensor:
        """The traced value of the first argument."""
        value = next(iter(self.arguments.values()))
        assert isinstance(value, fx.Node)
        tensor: Tensor = value.meta["val"]
        return tensor

    @property
    def value(self) -> Tensor:
        """The traced value of the result."""
        tensor: Tensor = self.node.meta["val"]
        return tensor

    def refuse(self, what: str, hint: str) -> ModelError:
        """The error for what has no normal form."""
        return ModelError(f"{what} at {source_line(self.node) or self.node.name}.", hint)


Spelling = Callable[[Call], Result]


def _same(call: Call) -> Result:
    """Copies, views of the whole, and what matters in training alone."""
    return call.emitter.result(next(iter(call.arguments.values())))


def _contiguous(call: Call) -> Result:
    """Another order in memory counts: kernels add up in the order that they find."""
    memory_format = call.arguments.get("memory_format")
    memory_format = torch.contiguous_format if memory_format == 0 else memory_format  # the schema's own default
    if memory_format in (None, torch.preserve_format) or call.value.stride() == call.own_input.stride():
        return _same(call)
    return call.emit("contiguous", {"self": call["self"], "memory_format": memory_format})


def _reshape(call: Call) -> Result:
    if tuple(call.value.shape) == tuple(call.own_input.shape):
        return _same(call)
    return call.emit("reshape", {"self": call["self"], "shape": list(call.value.shape)})


def _expand(call: Call) -> Result:
    return call.emit("expand", {"self": call["self"], "size": list(call.value.shape)})


def _copy(call: Call) -> Result:
    """The values of another tensor, in the shape of this one."""
    source = call["src"]
    assert isinstance(source, fx.Node)
    if tuple(source.meta["val"].shape) == tuple(call.value.shape):
        return call.passed("src")
    return call.emit("expand", {"self": source, "size": list(call.value.shape)})


def _slice(call: Call) -> Result:
    """A whole dimension is no slice; ends are those of what is there."""
    if tuple(call.value.shape) == tuple(call.own_input.shape) and call["step"] == 1:
        return _same(call)
    dim, start, end = _dim(call, call["dim"]), call["start"], call["end"]
    size = call.own_input.shape[dim]
    start = 0 if start is None else start
    if end is None or (isinstance(end, int) and isinstance(size, int) and end > size):
        end = size
    if isinstance(end, int) and end > 2**62:
        end = 2**62
    return call.emit("slice", {"self": call["self"], "dim": dim, "start": start, "end": end, "step": call["step"]})


def _narrow(call: Call) -> Result:
    dim = _dim(call, call["dim"])
    start, length = call["start"], call.value.shape[dim]
    if isinstance(start, int) and start < 0:
        start += call.own_input.shape[dim]
    assert isinstance(start, int | torch.SymInt)
    return call.emit("slice", {"self": call["self"], "dim": dim, "start": start, "end": start + length, "step": 1})


def _dim(call: Call, dim: object) -> int:
    assert isinstance(dim, int)
    return dim % max(call.own_input.dim(), 1)


def _dims(call: Call, dims: object) -> list[int]:
    """The dimensions, from 0 on: all where none are given."""
    if dims is None or dims == []:
        return list(range(call.own_input.dim()))
    return [_dim(call, dim) for dim in ([dims] if isinstance(dims, int) else dims)]  # type: ignore[attr-defined]


def _split(call: Call) -> Result:
    """split, chunk, tensor_split: slices, one after the other."""
    dim = _dim(call, call.arguments.get("dim", 0))
    takers, start = [], 0
    for part in _traced_parts(call):
        stop = start + part.shape[dim]
        takers.append(_taker(call, "slice", {"dim": dim, "start": start, "end": stop, "step": 1}))
        start = stop
    return Parts(tuple(takers))


def _unbind(call: Call) -> Result:
    dim = _dim(call, call["dim"])
    count = len(_traced_parts(call))
    return Parts(tuple(_taker(call, "select", {"dim": dim, "index": index}) for index in range(count)))


def _taker(call: Call, operation: str, arguments: Mapping[str, object]) -> Callable[[], Result]:
    return lambda: call.emit(operation, {"self": call["self"], **arguments})


def _traced_parts(call: Call) -> Sequence[Tensor]:
    parts: Sequence[Tensor] = call.node.meta["val"]
    return parts


def _batch_norm(call: Call) -> Result:
    return call.emit("batch_norm", {**call.arguments, "cudnn_enabled": False})


def _batch_norm_no_training(call: Call) -> Result:
    """What run_decompositions makes of batch_norm: the first of its results is the output."""
    arguments = {**call.arguments, "training": False, "cudnn_enabled": False}
    return Parts((lambda: call.emit("batch_norm", arguments), *_unread(call, 2)))


def _instance_norm(call: Call) -> Result:
    return call.emit("instance_norm", {**call.arguments, "cudnn_enabled": False})


def _first_of(operation: str, *keep: str) -> Spelling:
    """A call whose further results are of no use without the first."""

    def read(call: Call) -> Result:
        count = len(_traced_parts(call))
        first = lambda: call.renamed(operation, *keep) if keep else call.emit(operation)  # noqa: E731
        return Parts((first, *_unread(call, count - 1)))

    return read


def _unread(call: Call, count: int) -> tuple[Callable[[], Result], ...]:
    def refuse() -> Result:
        raise call.refuse(
            f"The network uses a second result of {call.node.target}, which slimkit can't write down,",
            "Use its first result alone.",
        )

    return (refuse,) * count


def _extreme(values: str, places: str | None) -> Spelling:
    """max and min over one dimension (values and places), over all, or of two tensors."""

    def read(call: Call) -> Result:
        if "other" in call.arguments:
            return call.emit({"amax": "maximum", "amin": "minimum"}[values])
        if "dim" not in call.arguments:
            return call.emit(values, {"self": call["self"], "dim": _dims(call, None), "keepdim": False})
        arguments = {"self": call["self"], "keepdim": call["keepdim"]}
        dim = _dim(call, call["dim"])
        first = lambda: call.emit(values, {**arguments, "dim": [dim]})  # noqa: E731
        second = (lambda: call.emit(places, {**arguments, "dim": dim}),) if places else _unread(call, 1)
        return Parts((first, *second))

    return read


def _reduction(operation: str) -> Spelling:
    """Reductions over some dimensions, or all."""

    def read(call: Call) -> Result:
        keep = {name: value for name, value in call.arguments.items() if name not in ("self", "dim")}
        keep.setdefault("keepdim", False)
        return call.emit(operation, {"self": call["self"], "dim": _dims(call, call.arguments.get("dim")), **keep})

    return read


def _variance(operation: str) -> Spelling:
    """var and std, whose older spellings say `unbiased`."""

    def read(call: Call) -> Result:
        correction = call.arguments.get("correction", 1 if call.arguments.get("unbiased", True) else 0)
        return call.emit(
            operation,
            {
                "self": call["self"],
                "dim": _dims(call, call.arguments.get("dim")),
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
    return Parts((lambda: _pool(name)(call), *_unread(call, 1)))


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


def _to(call: Call) -> Result:
    """Another dtype, unless it is the same; the device is always that of the network."""
    if call.value.dtype == call.own_input.dtype:
        return _contiguous(call)
    return call.emit("to", {"self": call["self"], "dtype": call.value.dtype})


def _squeeze(call: Call) -> Result:
    dims = _dims(call, call.arguments.get("dim"))
    shape = call.own_input.shape
    gone = [dim for dim in dims if isinstance(shape[dim], int) and shape[dim] == 1]
    return call.emit("squeeze", {"self": call["self"], "dim": gone}) if gone else _same(call)


def _unsqueeze(call: Call) -> Result:
    dim = call["dim"]
    assert isinstance(dim, int)
    return call.emit("unsqueeze", {"self": call["self"], "dim": dim % (call.own_input.dim() + 1)})


def _movedim(call: Call) -> Result:
    """movedim, swapaxes, numpy_T, t: all are permutations, told by the strides of a small example."""
    shape = range(2, 2 + call.own_input.dim())
    example = torch.empty(tuple(shape), device="meta")
    arguments = {name: value for name, value in call.arguments.items() if name != "self"}
    moved = call.node.target(example, **arguments)  # type: ignore[operator]  # an overload
    return call.emit("permute", {"self": call["self"], "dims": [size - 2 for size in moved.shape]})


def _linear_by_product(call: Call) -> Result:
    return call.emit("addmm")


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
    return call.emit("pow_tensor" if isinstance(call["exponent"], fx.Node) else "pow")


def _without_tensors(operation: str) -> Spelling:
    """Comparisons with a number; those of two tensors have no normal form."""

    def read(call: Call) -> Result:
        if isinstance(call["other"], fx.Node):
            raise call.refuse(f"The network compares two tensors by {operation}", "Compare with a number.")
        return call.emit(operation)

    return read


_SAME = (
    "detach alias lift lift_fresh lift_fresh_copy positive requires_grad alpha_dropout "
    "feature_alpha_dropout _conj resolve_conj resolve_neg view_as_real"
)
SPELLINGS: dict[str, Spelling] = {
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "view_as", "reshape_as", "unflatten", "_reshape_alias"), _reshape
    ),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split"), _split),
    **dict.fromkeys(("to", "_to_copy", "type_as", "float", "_autocast_to_full_precision"), _to),
    **dict.fromkeys(("clamp", "hardtanh", "clip"), _clamp),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("movedim", "moveaxis", "swapaxes", "swapdims", "t", "numpy_T", "mT", "adjoint"), _movedim),
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
    **dict.fromkeys(("contiguous", "clone"), _contiguous),
    "max": _extreme("amax", "argmax"),
    "min": _extreme("amin", None),
    "copy": _copy,
    "slice": _slice,
    "narrow": _narrow,
    "unbind": _unbind,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm_no_training,
    "instance_norm": _instance_norm,
    "layer_norm": lambda call: call.renamed("layer_norm", "input", "normalized_shape", "weight", "bias", "eps"),
    "native_layer_norm": _first_of("layer_norm"),
    "group_norm": lambda call: call.renamed("group_norm", "input", "num_groups", "weight", "bias", "eps"),
    "adaptive_max_pool2d": _first_of("adaptive_max_pool2d"),
    "convolution": _convolution,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "arange": _arange,
    "div": _div,
    "true_divide": _div,
    "pow": _pow,
    "linalg_vector_norm": _reduction("norm"),
    "clamp_min": lambda call: _clamp(call) if call["min"] == 0 else call.emit("clamp_min"),
    "_softmax": lambda call: call.renamed("softmax", "self", "dim"),
    "masked_fill": lambda call: call.emit("masked_fill"),
}
