"""Spellings of what moves values or changes nothing: views, slices, splits, permutations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx

from slimkit.core.graph.call import Call, Parts, Result, Spelling, dimension, dimensions, traced_parts


def _same(call: Call) -> Result:
    """Views of the whole, and what matters in training alone."""
    return call.emitter.result(next(iter(call.arguments.values())))


def _contiguous(call: Call) -> Result:
    """Another order in memory counts: kernels add up in the order that they find."""
    memory_format = call.arguments.get("memory_format")
    memory_format = torch.contiguous_format if memory_format == 0 else memory_format  # the schema's own default
    if memory_format in (None, torch.preserve_format) or call.value.stride() == call.own_input.stride():
        return _same(call)
    return call.emit("contiguous", {"self": call["self"], "memory_format": memory_format})


def _to(call: Call) -> Result:
    """Another dtype, unless it is the same; the device is always that of the network."""
    if call.value.dtype == call.own_input.dtype:
        return _contiguous(call)
    return call.emit("to", {"self": call["self"], "dtype": call.value.dtype})


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
    traced: Tensor = source.meta["val"]
    result = call.passed("src")
    if traced.dtype != call.value.dtype:
        result = call.emit("to", {"self": result, "dtype": call.value.dtype})
    if tuple(traced.shape) != tuple(call.value.shape):
        result = call.emit("expand", {"self": result, "size": list(call.value.shape)})
    return result


def _slice(call: Call) -> Result:
    """A whole dimension is no slice; ends are those of what is there."""
    if tuple(call.value.shape) == tuple(call.own_input.shape) and call["step"] == 1:
        return _same(call)
    dim, start, end = dimension(call, call["dim"]), call["start"], call["end"]
    size = call.own_input.shape[dim]
    start = 0 if start is None else start
    if end is None or (isinstance(end, int) and isinstance(size, int) and end > size):
        end = size
    if isinstance(end, int) and end > 2**62:
        end = 2**62
    return call.emit("slice", {"self": call["self"], "dim": dim, "start": start, "end": end, "step": call["step"]})


def _slice_scatter(call: Call) -> Result:
    """A slice of everything leaves nothing of what was there."""
    source = call["src"]
    if isinstance(source, fx.Node) and tuple(source.meta["val"].shape) == tuple(call.value.shape) and call["step"] == 1:
        return call.passed("src")
    return call.emit("slice_scatter")


def _narrow(call: Call) -> Result:
    dim = dimension(call, call["dim"])
    start, length = call["start"], call.value.shape[dim]
    if isinstance(start, int) and start < 0:
        start += call.own_input.shape[dim]
    assert isinstance(start, int | torch.SymInt)
    return call.emit("slice", {"self": call["self"], "dim": dim, "start": start, "end": start + length, "step": 1})


def _split(call: Call) -> Result:
    """split, chunk, tensor_split: slices, one after the other."""
    dim = dimension(call, call.arguments.get("dim", 0))
    takers, start = [], 0
    for part in traced_parts(call):
        stop = start + part.shape[dim]
        takers.append(_taker(call, "slice", {"dim": dim, "start": start, "end": stop, "step": 1}))
        start = stop
    return Parts(tuple(takers))


def _unbind(call: Call) -> Result:
    dim = dimension(call, call["dim"])
    count = len(traced_parts(call))
    return Parts(tuple(_taker(call, "select", {"dim": dim, "index": index}) for index in range(count)))


def _taker(call: Call, operation: str, arguments: Mapping[str, object]) -> Callable[[], Result]:
    return lambda: call.emit(operation, {"self": call["self"], **arguments})


def _squeeze(call: Call) -> Result:
    dims = dimensions(call, call.arguments.get("dim"))
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


_SAME = "detach alias lift lift_fresh lift_fresh_copy positive alpha_dropout feature_alpha_dropout"
MOVES: dict[str, Spelling] = {
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "view_as", "reshape_as", "unflatten", "_reshape_alias"), _reshape
    ),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _to),
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split"), _split),
    **dict.fromkeys(("movedim", "moveaxis", "swapaxes", "swapdims", "t", "numpy_T", "mT", "adjoint"), _movedim),
    **dict.fromkeys(("contiguous", "clone"), _contiguous),
    "copy": _copy,
    "slice": _slice,
    "slice_scatter": _slice_scatter,
    "narrow": _narrow,
    "unbind": _unbind,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
}
