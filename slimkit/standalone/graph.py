"""Networks as graphs of ATen operations: the list of those that a graph may call, and the interpreter.

A graph is data. Each entry of its `layers` names one operation of `OPERATIONS`, the layers whose results it reads, and
the operation's arguments by the names of torch's own schemas. Nothing outside of that list can be reached.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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


SIZES: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "max": max,
    "min": min,
}

DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}

MEMORY_FORMATS = {name: getattr(torch, name) for name in ("contiguous_format", "channels_last", "channels_last_3d")}

Values = Mapping[str, Any]
Resolver = Callable[[Values, torch.Size], Any]


@functools.cache
def overload(operation: str) -> Any:
    """The function of torch.ops.aten that computes an operation. Raises ValueError for one that is not listed.

    Of several results the first one counts.
    """
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
    result = overload(operation)(**{name: plain_argument(name, value) for name, value in arguments.items()})
    return result[0] if isinstance(result, tuple) else result


def evaluate_size(size: Any, shape: Sequence[int]) -> int:
    """An integer of the form n, ["image", dim] (of the images' `shape`) or [name of SIZES, size, size]."""
    if isinstance(size, int):
        return size
    if size[0] == "image":
        return shape[int(size[1])]
    first, second = (evaluate_size(part, shape) for part in size[1:])
    return SIZES[size[0]](first, second)


class GraphNetwork(nn.Module):
    """A network run from its graph: images [n, channels, height, width] -> logits [n, classes].

    Its tensors hang at the dotted paths that are their names, so the state dict has the keys of the original network.
    In training mode BatchNorm and dropout do what they do in training; each BatchNorm heeds the mode of its own module.
    """

    def __init__(self, layers: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> None:
        """Build it around `tensors`, by name; those that are nn.Parameter are trained.

        layers: in the order that they run; each has a `name`, an `operation`, the names of its `inputs` ("input" is the
            images) and `arguments`, in which {"input": i} stands for the i-th input, {"weight": name} for a tensor,
            {"size": ...} for a size. The last one gives the logits.
        Raises ValueError that names the layer which can't be built.
        """
        super().__init__()
        self.__layers = tuple(layers)
        for name, tensor in tensors.items():
            self._register(name, tensor)
        self.__steps: list[_Step] = []
        self._prepare()

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images -> logits, of the dtype that the weights have."""
        if not self.__steps:
            self._prepare()
        values = {"input": x}
        for step in self.__steps:
            values[step.name] = step.run(values, x.shape)
            for expired in step.expired:
                del values[expired]
        logits: Tensor = values[self.__steps[-1].name]
        return logits

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of that name."""
        registry, attribute = self._place(name)
        found: Tensor = registry[attribute]
        return found

    def _register(self, name: str, tensor: Tensor) -> None:
        *containers, attribute = name.split(".")
        module: nn.Module = self
        for container in containers:
            if container not in module._modules:
                module.add_module(container, nn.Module())
            module = module.get_submodule(container)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(attribute, tensor)
        else:
            module.register_buffer(attribute, tensor)

    def _place(self, name: str) -> tuple[dict[str, Any], str]:
        """Where a tensor is kept: what exchanges tensors (`functional_call`, say) exchanges them there."""
        path, _, attribute = name.rpartition(".")
        module = self.get_submodule(path)
        registry = module._parameters if attribute in module._parameters else module._buffers
        if attribute not in registry:
            raise ValueError(f"there is no tensor {name!r}")
        return registry, attribute

    def _prepare(self) -> None:
        known = {"input"}
        for layer in self.__layers:
            name, inputs = layer["name"], layer["inputs"]
            if name in known or not known.issuperset(inputs):
                raise ValueError(f"layer {name!r} has no name of its own, or reads what is no earlier layer: {inputs}")
            known.add(name)
        read: set[str] = {self.__layers[-1]["name"]}
        for layer in reversed(self.__layers):
            expired = tuple(dict.fromkeys(source for source in layer["inputs"] if source not in read))
            read.update(expired)
            self.__steps.insert(0, _Step(self, layer, expired))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies what is tied to these very tensors."""
        return {**self.__dict__, "_GraphNetwork__steps": []}


class _Step:
    """One operation, with its arguments as far as they can be known before the images come."""

    def __init__(self, network: GraphNetwork, layer: Mapping[str, Any], expired: tuple[str, ...]) -> None:
        self.name: str = layer["name"]
        self.expired = expired
        self._inputs: tuple[str, ...] = tuple(layer["inputs"])
        self._network = network
        self._function = overload(layer["operation"])
        self._modes = self._read_modes(layer)
        given = dict(layer["arguments"])
        self._fixed: dict[str, Any] = {}
        self._open: list[tuple[str, Resolver]] = []
        for argument in self._function._schema.arguments:
            if argument.name in given:
                self._take(argument.name, given.pop(argument.name))
        if given:
            raise ValueError(f"layer {self.name!r}: {layer['operation']} takes no {', '.join(given)}")

    def run(self, values: Values, shape: torch.Size) -> Any:
        """The operation's value."""
        arguments = dict(self._fixed)
        for name, resolve in self._open:
            arguments[name] = resolve(values, shape)
        for name, module in self._modes:
            arguments[name] = arguments[name] or module.training
        result = self._function(**arguments)
        return result[0] if isinstance(result, tuple) else result

    def _read_modes(self, layer: Mapping[str, Any]) -> list[tuple[str, nn.Module]]:
        """The arguments that say whether this is training, each with the module that knows."""
        if layer["operation"] in ("dropout", "feature_dropout"):
            return [("train", self._network)]
        if layer["operation"] == "batch_norm" and layer["arguments"].get("running_mean"):
            path = layer["arguments"]["running_mean"]["weight"].rpartition(".")[0]
            return [("training", self._network.get_submodule(path))]
        return []

    def _take(self, name: str, value: Any) -> None:
        value = plain_argument(name, value)
        resolve = self._resolver(value)
        if resolve is None:
            self._fixed[name] = value
        else:
            self._open.append((name, resolve))

    def _resolver(self, value: Any) -> Resolver | None:
        """How to get an argument's value once the images are there; None where it is known already."""
        if isinstance(value, Mapping):
            ((kind, what),) = value.items()
            if kind == "input":
                source = self._inputs[what]
                return lambda values, _: values[source]
            if kind == "weight":
                registry, attribute = self._network._place(what)
                return lambda *_: registry[attribute]
            if kind == "size":
                return lambda _, shape: evaluate_size(what, shape)
            raise ValueError(f"layer {self.name!r} has an argument of the unknown kind {kind!r}")
        if isinstance(value, list | tuple):
            parts = [self._resolver(part) for part in value]
            if any(parts):
                pairs = list(zip(value, parts, strict=True))
                return lambda values, shape: [part(values, shape) if part else fixed for fixed, part in pairs]
        return None
