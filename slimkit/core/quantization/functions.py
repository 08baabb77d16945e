"""What a traced call does, in the terms of an int8 network's layers."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx
from torch.nn import functional

from slimkit.core.errors import ModelError

ELEMENTWISE = {
    *("relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "sigmoid", "tanh", "gelu", "elu", "selu"),
    *("celu", "leaky_relu", "mish", "softplus", "softsign", "logsigmoid", "hardshrink", "softshrink", "tanhshrink"),
    *("clamp", "clamp_min", "clamp_max", "abs", "exp", "sqrt", "square", "pow", "neg", "add", "sub", "mul", "div"),
    "truediv",
}
POOLS = ("avg_pool2d", "adaptive_avg_pool2d")
MAX_POOLS = ("max_pool2d", "adaptive_max_pool2d")
DROPOUTS = ("dropout", "dropout2d", "dropout1d", "alpha_dropout", "feature_dropout", "stochastic_depth")
UNCHANGED = ("contiguous", "detach", "clone")
RESHAPES = ("view", "reshape", "squeeze", "unsqueeze", "flatten", "unflatten")


@dataclass(frozen=True)
class Call:
    """One call of a function without weights."""

    type: str  # of the standalone layer, or "Identity"
    sources: tuple[fx.Node, ...]  # the tensors that it reads
    options: dict[str, Any]  # "function" and "arguments", in which {"input": i} stands for sources[i]


def read_call(node: fx.Node) -> Call:
    """What `node`, a call of a function or method, does. Raises ModelError where it can't be written down."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
    name = {"iadd": "add", "imul": "mul", "add_": "add", "mul_": "mul", "mean_": "mean", "concat": "cat"}.get(
        name, name
    )
    tensors = tuple(n for n in node.all_input_nodes if "shape" in n.meta)
    for read in (_read_identity, _read_shape_change, _read_common):
        call = read(name, node, tensors)
        if call is not None:
            return call
    return _call(node, "Function", _qualified(name, node), tensors)


def _read_identity(name: str, node: fx.Node, tensors: tuple[fx.Node, ...]) -> Call | None:
    if name in UNCHANGED or (
        name in DROPOUTS and not _argument(node, 3 if name == "stochastic_depth" else 2, "training")
    ):
        return Call("Identity", tensors, {})
    return None


def _read_shape_change(name: str, node: fx.Node, tensors: tuple[fx.Node, ...]) -> Call | None:
    """Reshapes, with the sizes that they have for images of the given size, and cuts along a dimension."""
    shape = node.meta["shape"]
    if name == "flatten" and _argument(node, 1, "start_dim") == 1 and _argument(node, 2, "end_dim") in (None, -1):
        return Call("Flatten", tensors, {"function": "Tensor.flatten", "arguments": [{"input": 0}, 1]})
    if name in RESHAPES and len(tensors) == 1:
        return _rearrange(tensors, "Tensor.reshape", [-1, *shape[1:]])
    if name == "transpose":
        order = list(range(len(shape)))
        first, second = node.args[1:3]
        order[first], order[second] = order[second], order[first]  # type: ignore[index]
        return _rearrange(tensors, "Tensor.permute", order)
    if name == "permute":
        order = list(node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:])  # type: ignore[arg-type]
        return _rearrange(tensors, "Tensor.permute", [d % len(shape) for d in order])
    if name == "getitem" and isinstance(node.args[0], fx.Node) and "parts" in node.args[0].meta:
        return _read_part(node.args[0], int(node.args[1]), shape)  # type: ignore[arg-type]
    if name == "getitem" and len(tensors) == 1:
        return _call(node, "Rearrange", "operator.getitem", tensors)
    return None


def _read_part(split: fx.Node, index: int, shape: tuple[int, ...]) -> Call | None:
    """One of the tensors that chunk or split gives: a cut along their dimension."""
    source, parts = split.all_input_nodes[0], split.meta["parts"]
    whole = source.meta.get("shape")
    if whole is None or len(whole) != len(shape) or any(len(part) != len(shape) for part in parts):
        return None
    dim = next((d for d in range(len(shape)) if shape[d] != whole[d]), 0)
    return _rearrange((source,), "Tensor.narrow", dim, sum(part[dim] for part in parts[:index]), shape[dim])


def _rearrange(sources: tuple[fx.Node, ...], function: str, *arguments: Any) -> Call:
    return Call("Rearrange", sources, {"function": function, "arguments": [{"input": 0}, *arguments]})


def _read_common(name: str, node: fx.Node, tensors: tuple[fx.Node, ...]) -> Call | None:
    shape, sources = node.meta["shape"], [n.meta["shape"] for n in tensors]
    if name == "cat" and all(isinstance(item, fx.Node) for item in node.args[0]):  # type: ignore[union-attr]
        return _call(node, "Concatenate", "slimkit.cat", tensors) if len(tensors) > 1 else Call("Identity", tensors, {})
    if name in ("add", "mul") and len(tensors) == 2 and not node.kwargs and all(n.op != "get_attr" for n in tensors):
        return _call(node, {"add": "Add", "mul": "Multiply"}[name], f"operator.{name}", tensors)
    if len(tensors) != 1:
        return None
    if name == "mean" and len(sources[0]) == 4 and shape in (sources[0][:2], (*sources[0][:2], 1, 1)):
        flat = {"function": "slimkit.channel_means", "arguments": [{"input": 0}]}
        kept = {"function": "functional.adaptive_avg_pool2d", "arguments": [{"input": 0}, 1]}
        return Call("AveragePool", tensors, flat if len(shape) == 2 else kept)
    if name in POOLS:
        call = _call(node, "AveragePool", f"functional.{name}", tensors)
        return replace(call, options=call.options | {"input_size": list(sources[0][2:])})
    if name in MAX_POOLS:
        return _call(node, "MaxPool2d", f"functional.{name}", tensors)
    if name == "hardtanh" and (_argument(node, 1, "min_val"), _argument(node, 2, "max_val")) == (0, 6):
        return Call("Activation", tensors, {"function": "functional.relu6", "arguments": [{"input": 0}]})
    if name in ELEMENTWISE:
        return _call(node, "Activation", _qualified(name, node), tensors)
    return None


def _call(node: fx.Node, kind: str, function: str, sources: tuple[fx.Node, ...]) -> Call:
    """The very call of `node`, numbers that come from shapes written out."""
    ignored = {"inplace"}  # another layer may read the input too

    def encode(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return {"input": sources.index(value)} if value in sources else encode(value.meta["value"])
        if isinstance(value, slice):
            return {"slice": [encode(part) for part in (value.start, value.stop, value.step)]}
        if isinstance(value, tuple | list):
            return [encode(item) for item in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise ModelError(f"{node.name!r} calls {function} with {value!r}.", "Rewrite the network without that call.")

    keywords = {key: encode(value) for key, value in node.kwargs.items() if key not in ignored}
    options = {"function": function, "arguments": encode(node.args)}
    return Call(kind, sources, options | ({"keywords": keywords} if keywords else {}))


def _qualified(name: str, node: fx.Node) -> str:
    """Where the standalone code finds the function: functional.silu, Tensor.mean, operator.add, slimkit.stack."""
    if name in ("cat", "stack"):
        return f"slimkit.{name}"
    for home, module in (("functional", functional), ("operator", operator), ("Tensor", Tensor)):
        if hasattr(module, name) and (home != "operator" or node.op == "call_function"):
            return f"{home}.{name}"
    raise ModelError(f"{node.name!r} calls {name}, which slimkit can't write down.", "Keep this model in float.")


def _argument(node: fx.Node, position: int, keyword: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(keyword)
