"""The networks: built from an architecture's JSON alone, then filled from a state dict.

This file is copied into every model folder and works there without slimkit; it imports torch alone (torchvision only
for a float network that is stored by its name there). Its chapters:

    Float networks               ResNets, and torchvision's networks with other widths
    Operations of a graph        what a graph may call
    Layers of a graph            which of them are layers of torch.nn
    Graphs                       the interpreter of any other float network
    What an architecture may say the checks of what may come from a stranger
    int8 networks                their layers, and the arithmetics that compute them
    Coded weights                the weights of an int8 network out of one short string of bytes
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import itertools
import math
import operator
import struct
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


@torch.random.fork_rng(devices=())  # the weights come from the file: whoever loads a model keeps the random state
def build_model(architecture: dict[str, Any]) -> nn.Module:
    """Build the network that `architecture` (the parsed JSON) describes, in eval mode, its weights uninitialised.

    It maps normalized float images [n, 3, height, width] to float logits [n, num_classes]. The architecture may be a
    stranger's: it is data, no code that it names is reached but what stands in CALLS, and sizes are bounded before
    memory is taken. What it computes is checked by `check_network`. torch's random state stays.
    Raises ValueError that names the layer where the architecture contradicts itself.
    """
    check_layers(architecture["layers"])
    if not _is_integer(architecture["num_classes"], 1, MOST_CLASSES):
        raise ValueError(f"num_classes is {architecture['num_classes']!r:.60}, not 1 to {MOST_CLASSES}")
    if architecture.get("tensors") is not None:
        return build_graph(architecture["layers"], architecture["tensors"]).eval()
    if any(layer.get("inputs") for layer in architecture["layers"]):
        return Int8Network(architecture["layers"]).eval()
    model_type, num_classes = architecture["model_type"], architecture["num_classes"]
    if model_type in RESNETS:
        return RESNETS[model_type](num_classes, architecture).eval()
    module = torchvision_network(model_type, num_classes)
    resize_layers(module, architecture["layers"])
    return module.eval()


# ---- Float networks ----


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, arXiv:1512.03385); named as in torchvision."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[n, in_channels, h, w] -> [n, width, h / stride, w / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]  # nn.Module's call is untyped


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution and a shortcut; named as in torchvision."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[n, in_channels, h, w] -> [n, 4 width, h / stride, w / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]  # nn.Module's call is untyped


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """A 1x1 convolution where the shape changes; None where the shortcut is the input itself."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class SlimResNet(nn.Module):
    """A ResNet whose every layer can have a width of its own; its state dict has torchvision's keys."""

    block: type[BasicBlock] | type[Bottleneck] = BasicBlock
    depths: tuple[int, int, int, int]

    def __init__(self, num_classes: int = 100, architecture: dict[str, Any] | None = None, *, width: int = 32) -> None:
        """Build it with random weights.

        num_classes: outputs of the classifier.
        architecture: the parsed architecture JSON, whose `layers` give every layer's widths; None: the four stages have
            width, 2 width, 4 width and 8 width. Raises ValueError where it names other layers than this network has.
        width: output channels of the first convolution: 64 is torchvision's, 32 the contest's.
        """
        super().__init__()
        if architecture is not None:
            num_classes = architecture["num_classes"]
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = self._stage(width, width, self.depths[0], stride=1)
        self.layer2 = self._stage(width * self.block.expansion, 2 * width, self.depths[1], stride=2)
        self.layer3 = self._stage(2 * width * self.block.expansion, 4 * width, self.depths[2], stride=2)
        self.layer4 = self._stage(4 * width * self.block.expansion, 8 * width, self.depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width * self.block.expansion, num_classes)
        if architecture is not None:
            resize_layers(self, architecture["layers"])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(self, in_channels: int, width: int, depth: int, stride: int) -> nn.Sequential:
        blocks = [self.block(in_channels, width, stride)]
        blocks += [self.block(width * self.block.expansion, width, 1) for _ in range(depth - 1)]
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images [n, 3, h, w] -> logits [n, num_classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]  # nn.Module's call is untyped


class SlimResNet18(SlimResNet):
    """ResNet18; `SlimResNet18(num_classes=100)` is the contest's variant: widths 32, 64, 128, 256."""

    depths = (2, 2, 2, 2)


class SlimResNet34(SlimResNet):
    """ResNet34."""

    depths = (3, 4, 6, 3)


class SlimResNet50(SlimResNet):
    """ResNet50, with the stride in the 3x3 convolution as torchvision has it."""

    block = Bottleneck
    depths = (3, 4, 6, 3)


RESNETS: dict[str, type[SlimResNet]] = {
    "SlimResNet18": SlimResNet18,
    "SlimResNet34": SlimResNet34,
    "SlimResNet50": SlimResNet50,
}

SIZED = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)  # the layers that have widths


def resize_layers(module: nn.Module, layers: list[dict[str, Any]]) -> None:
    """Give each Conv2d, BatchNorm2d and Linear of `module` the channel counts and groups of its entry in `layers`.

    A layer that has to change is replaced by a new one. Raises ValueError where `layers` names one that is not there,
    calls it another type, gives it impossible channels, or leaves one out.
    """
    check_layers(layers)
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, SIZED)}
    for entry in layers:
        layer = found.pop(entry.get("name"), None)
        if layer is None or type(layer).__name__ != entry.get("type"):
            raise ValueError(f"layer {entry.get('name')!r} ({entry.get('type')}) is not in the network")
        parent, _, attribute = entry["name"].rpartition(".")
        setattr(module.get_submodule(parent), attribute, _resized(layer, entry))
    if found:
        raise ValueError(f"layer {next(iter(found))!r} is missing from the architecture")


def _resized(layer: nn.Module, entry: dict[str, Any]) -> nn.Module:
    """`layer`, or a new one of its kind with the channels of `entry`, which must be like it in all else."""
    inputs, outputs, groups = entry.get("in_channels"), entry.get("out_channels"), entry.get("groups") or 1
    if inputs is None or outputs is None or inputs % groups or outputs % groups:
        raise ValueError(f"layer {entry['name']!r} can't have {inputs} -> {outputs} channels in {groups} groups")
    for key in ("kernel_size", "stride", "padding", "dilation"):
        own, told = getattr(layer, key, None), entry.get(key)
        if told is not None and tuple(told) != own:
            raise ValueError(f"layer {entry['name']!r} has the {key} {own} in this network, not {tuple(told)}")
    if isinstance(layer, nn.Conv2d):
        if (layer.in_channels, layer.out_channels, layer.groups) == (inputs, outputs, groups):
            return layer
        return nn.Conv2d(
            inputs,
            outputs,
            layer.kernel_size,  # type: ignore[arg-type]  # always a pair for Conv2d
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            groups,
            bias=layer.bias is not None,
        )
    if isinstance(layer, nn.BatchNorm2d):
        return layer if layer.num_features == outputs else nn.BatchNorm2d(outputs, layer.eps, layer.momentum)
    assert isinstance(layer, nn.Linear)
    if (layer.in_features, layer.out_features) == (inputs, outputs):
        return layer
    return nn.Linear(inputs, outputs, bias=layer.bias is not None)


def torchvision_network(name: str, num_classes: int) -> nn.Module:
    """A torchvision classifier with random weights, without the heads that two of them have for training alone.

    Raises ValueError for a name that torchvision has no classifier of: its other networks download weights unasked.
    """
    try:
        from torchvision import models
    except RuntimeError:  # PyPI's torchvision beside a CPU build of torch lacks its operators; declaring them is enough
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
        from torchvision import models
    if name not in models.list_models(module=models):
        raise ValueError(f"{name!r:.80} is no classifier that torchvision has")
    headless = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, num_classes=num_classes, **headless)  # type: ignore[no-any-return]  # untyped


# ---- Operations of a graph ----
# The ATen operations that a graph may call, by name: nothing outside of this list can be reached from a graph.

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


PRODUCTS = {"matmul", "bmm", "mm", "baddbmm", "addmm", "mv", "dot", "scaled_dot_product_attention"}

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


# ---- Layers of a graph ----
# The operations of a graph that are whole layers of torch.nn, as such layers.
#
# What looks at the modules of a network (hooks, optimizers, whoever freezes BatchNorm) finds in a graph's network the
# convolutions, linear layers and norms that the original had, at their paths.

Entry = Mapping[str, Any]  # one layer of a graph


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm over channels of any number of dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


_SPATIAL = ("stride", "padding", "dilation")
_CONVOLUTIONS: dict[str, Callable[..., nn.Module]] = {f"conv{n}d": getattr(nn, f"Conv{n}d") for n in (1, 2, 3)}
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


def layer_path(entry: Entry) -> str | None:
    """The path of the layer that an operation may be, told by the names of its tensors; None where it can be none."""
    is_norm = entry["operation"] == "batch_norm"
    if (not is_norm and entry["operation"] not in (*_CONVOLUTIONS, "linear")) or len(entry["inputs"]) != 1:
        return None
    names = {name: _tensor_name(entry, name) for name in (_NORM_TENSORS if is_norm else ("weight", "bias"))}
    path = (names["running_mean" if is_norm else "weight"] or "").rpartition(".")[0]
    fits = path and all(name in (None, f"{path}.{part}") for part, name in names.items())
    return path if fits else None


def torch_layers(entries: Sequence[Entry], tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The layers of a graph by their paths, without their tensors.

    Left out are those whose tensors other operations read too, or that are called in different ways.
    """
    calls: dict[str | None, list[Entry]] = defaultdict(list)
    readers: dict[str, set[str | None]] = defaultdict(set)
    for entry in entries:
        path = layer_path(entry)
        calls[path].append(entry)
        for name in _tensor_names(entry["arguments"]):
            readers[name].add(path)
    calls.pop(None, None)
    found = {}
    for path, entries_of in calls.items():
        settings = [_settings(entry) for entry in entries_of]
        own = {name for entry in entries_of for name in _tensor_names(entry["arguments"])}
        if all(s == settings[0] for s in settings) and all(readers[name] == {path} for name in own):
            layer = make_layer(entries_of[0], tensors)
            if layer is not None:
                found[str(path)] = layer
    return found


def set_tensor(root: nn.Module, name: str, tensor: Tensor, layers: Mapping[str, nn.Module] | None = None) -> None:
    """Hang a parameter or buffer at its dotted name; modules on the way are made: those of `layers`, or plain ones."""
    *containers, attribute = name.split(".")
    module = root
    for depth, container in enumerate(containers, 1):
        if container not in module._modules:
            module.add_module(container, (layers or {}).get(".".join(containers[:depth])) or nn.Module())
        module = module.get_submodule(container)
    module._parameters.pop(attribute, None)  # a layer whose weight is constant has it as a buffer
    module._buffers.pop(attribute, None)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(attribute, tensor)
    else:
        module.register_buffer(attribute, tensor)


def _settings(entry: Entry) -> Any:
    """All arguments but for the values that are read."""
    return {k: v for k, v in entry["arguments"].items() if not (isinstance(v, Mapping) and "input" in v)}


def make_layer(entry: Entry, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """The layer of torch.nn that an operation is, with tensors that are yet to be set; None where it is none."""
    arguments, operation = entry["arguments"], entry["operation"]
    if operation == "batch_norm":
        return _make_norm(entry, tensors)
    weight = tensors.get(_tensor_name(entry, "weight") or "")
    if weight is None:
        return None
    bias = _tensor_name(entry, "bias") is not None
    if operation == "linear":
        return nn.Linear(weight.shape[1], weight.shape[0], bias, device="meta") if weight.dim() == 2 else None
    kernel, groups = tuple(weight.shape[2:]), arguments.get("groups", 1)
    settings = {name: _spread(arguments[name], len(kernel)) for name in _SPATIAL if name in arguments}
    inputs = weight.shape[1] * groups
    layer = _CONVOLUTIONS[operation]
    return layer(inputs, weight.shape[0], kernel, groups=groups, bias=bias, device="meta", **settings)


def _make_norm(entry: Entry, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """A BatchNorm that has all of its tensors, or statistics alone."""
    arguments = entry["arguments"]
    names = {name: _tensor_name(entry, name) for name in _NORM_TENSORS}
    affine = names["weight"] is not None
    if affine != (names["bias"] is not None) or names["running_var"] is None or arguments.get("training"):
        return None
    channels = tensors[str(names["running_mean"])].numel()
    norm = BatchNorm(channels, arguments["eps"], arguments["momentum"], affine, device="meta")
    del norm.num_batches_tracked  # it is no tensor of the graph, and counts for nothing with a fixed momentum
    norm.num_batches_tracked = None
    return norm


def _spread(value: Any, dimensions: int) -> tuple[int, ...]:
    """One number for each dimension of space."""
    numbers = value if isinstance(value, list | tuple) else [value]
    return tuple(numbers) if len(numbers) == dimensions else tuple(numbers[:1]) * dimensions


def _tensor_name(entry: Entry, argument: str) -> str | None:
    value = entry["arguments"].get(argument)
    return value.get("weight") if isinstance(value, Mapping) else None


def _tensor_names(value: Any) -> list[str]:
    """The names of all tensors in nested arguments."""
    if isinstance(value, Mapping) and set(value) == {"weight"}:
        return [value["weight"]]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [name for part in parts for name in _tensor_names(part)]


# ---- Graphs ----
# Networks as graphs of ATen operations, and the interpreter that runs them.
#
# A graph is data. Each entry of its layers names one of OPERATIONS, the layers whose results it reads, and the
# operation's arguments by the names of torch's own schemas.

SIZES: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "max": max,
    "min": min,
}

UNBOUNDED = ("inf", "-inf", "nan")  # the numbers that JSON does not know

Values = Mapping[str, Any]
Resolver = Callable[[Values, torch.Size], Any]


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
        modules = torch_layers(layers, tensors)
        for name, tensor in tensors.items():
            set_tensor(self, name, tensor, modules)
        self.__modules = frozenset(modules)
        self.__steps: list[Step] = []
        self._prepare()

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images -> logits, of the dtype that the weights have."""
        values = {"input": x}
        for step in self.steps:
            step.run(values, x.shape)
        logits: Tensor = values[self.steps[-1].name]
        return logits

    @property
    def steps(self) -> Sequence[Step]:
        """The operations in the order that they run."""
        if not self.__steps:
            self._prepare()
        return self.__steps

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of that name."""
        registry, attribute = self._place(name)
        found: Tensor = registry[attribute]
        return found

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
            self.__steps.insert(0, Step(self, layer, expired, self.__modules))

    def _without_numbers(self) -> GraphNetwork:
        """The same on torch's meta device, which computes shapes alone."""
        return GraphNetwork(self.__layers, {name: t.to("meta") for name, t in self.state_dict().items()})

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies what is tied to these very tensors."""
        return {**self.__dict__, "_GraphNetwork__steps": []}


def build_graph(layers: Sequence[dict[str, Any]], tensors: Any) -> GraphNetwork:
    """The network of `layers`, whose options give operation and arguments, with uninitialised tensors.

    tensors: by name the shape, the dtype, and whether it is trained. Raises ValueError that names what can't be built.
    """
    check_tensors(tensors)
    made = {name: torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]]) for name, entry in tensors.items()}
    trained = {name: nn.Parameter(made[name]) for name, entry in tensors.items() if entry["trained"]}
    try:
        return GraphNetwork([_graph_entry(layer) for layer in layers], {**made, **trained})
    except (AttributeError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(f"the layers are no graph: {error}") from error


def _graph_entry(layer: dict[str, Any]) -> dict[str, Any]:
    """One operation, as GraphNetwork takes it."""
    options = layer.get("options") or {}
    operation, arguments = options.get("operation"), options.get("arguments")
    if not isinstance(operation, str) or not isinstance(arguments, dict):
        raise ValueError(f"layer {layer['name']!r} has no operation with arguments")
    return {
        "name": layer["name"],
        "operation": operation,
        "inputs": list(layer.get("inputs") or ()),
        "arguments": arguments,
    }


class Step:
    """One operation, with its arguments as far as they can be known before the images come."""

    def __init__(
        self, network: GraphNetwork, layer: Mapping[str, Any], expired: tuple[str, ...], modules: Container[str]
    ) -> None:
        self.name: str = layer["name"]
        self._expired = expired  # the values that no later step reads
        self._inputs: tuple[str, ...] = tuple(layer["inputs"])
        path = layer_path(layer)
        self._layer = network.get_submodule(path) if path is not None and path in modules else None
        self._network = network
        self._operation: str = layer["operation"]
        self._function = overload(self._operation)
        self._weights = [network._place(tensor) for tensor in _tensor_names(layer["arguments"])]
        self._modes = self._read_modes(layer)
        given = dict(layer["arguments"])
        self._fixed: dict[str, Any] = {}
        self._open: list[tuple[str, Resolver]] = []
        for argument in self._function._schema.arguments:
            if argument.name in given:
                self._take(argument.name, given.pop(argument.name))
        if given:
            raise ValueError(f"layer {self.name!r}: {layer['operation']} takes no {', '.join(given)}")
        if layer["operation"] in ("arange", "full"):
            self._open.append(("device", lambda values, _: next(iter(values.values())).device))  # that of the images

    def run(self, values: dict[str, Any], shape: torch.Size) -> None:
        """Compute the operation's value into `values`, and drop what is not needed any more. shape: of the images."""
        values[self.name] = self._compute(values, shape)
        for name in self._expired:
            del values[name]

    def _compute(self, values: Values, shape: torch.Size) -> Any:
        if self._layer is not None:
            return self._layer(values[self._inputs[0]])
        arguments = dict(self._fixed)
        for name, resolve in self._open:
            arguments[name] = resolve(values, shape)
        for name, module in self._modes:
            arguments[name] = arguments[name] or module.training
        return first_result(self._function(**arguments))

    def check_dim(self, values: Values) -> None:
        """Raise ValueError for a dimension that its input has not: computing shapes alone, torch lets some pass."""
        source = values[self._inputs[0]] if self._inputs else None
        dim = self._fixed.get("dim")
        if isinstance(source, Tensor) and type(dim) is int:
            dimensions = max(1, source.dim() + (self._operation in ("unsqueeze", "stack")))
            if not -dimensions <= dim < dimensions:
                raise ValueError(f"there is no dimension {dim} in {list(source.shape)}")

    def products(self, values: Values) -> int:
        """At most so many multiply-adds, or values of a window, make each value that it will compute of `values`."""
        operands = [registry[attribute] for registry, attribute in self._weights]
        sizes = [tensor[0].numel() for tensor in operands if tensor.dim() > 1 and tensor.numel()]
        if self._operation in PRODUCTS:
            operands += [value for value in map(values.get, self._inputs) if isinstance(value, Tensor)]
            sizes += [size for tensor in operands for size in tensor.shape]
        window = [size for size in _leaves([self._fixed.get("kernel_size", 1)]) if type(size) is int]
        return max(sizes, default=1) * max(1, math.prod(window))

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
                if not _is_integer(what, 0, len(self._inputs) - 1):
                    raise ValueError(f"layer {self.name!r} has no input {what!r}")
                source = self._inputs[what]
                return lambda values, _: values[source]
            if kind == "weight":
                registry, attribute = self._network._place(what)
                return lambda *_: registry[attribute]
            if kind == "size":
                return lambda _, shape: evaluate_size(what, shape)
            if kind == "number" and what in UNBOUNDED:
                return lambda *_: float(what)
            raise ValueError(f"layer {self.name!r} has an argument of the unknown kind {kind!r}")
        if isinstance(value, list | tuple):
            parts = [self._resolver(part) for part in value]
            if any(parts):
                pairs = list(zip(value, parts, strict=True))
                return lambda values, shape: [part(values, shape) if part else fixed for fixed, part in pairs]
        return None


# ---- What an architecture may say ----

MOST_LAYERS = 10_000
MOST_CLASSES = 2**20
MOST_CHANNELS = 2**24  # of one layer
MOST_PIXELS = 2**14  # along one side of an image, and so of a kernel or a stride
MOST_BYTES = 2**33  # of all weights together
MOST_VALUES = 2**28  # of one layer's output for one image; four times as many at the same time
MOST_PRODUCTS = 2**43  # multiply-adds, or values of pools and the like, for one image
CHECKED_IMAGES = 3  # the batch that shapes are checked with: it shows what is true for a batch of 1 or 2 alone

_COUNTS = {"in_channels": MOST_CHANNELS, "out_channels": MOST_CHANNELS, "groups": MOST_CHANNELS}
_PAIRS = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}  # with the least that they can be
_ARITHMETIC: dict[str, tuple[Any, ...]] = {
    "scheme": ("static", "dynamic"),
    "output": ("float32", "uint8 per tensor"),
    "weight_bits": (2, 3, 4, 5, 6, 8),
}
_WORDS = {"activation": ("relu", "relu6"), **_ARITHMETIC}


def check_tensors(tensors: Any) -> None:
    """Raise ValueError that names the first entry of a graph's `tensors` that can't be. It takes no memory for them."""
    if not isinstance(tensors, dict) or len(tensors) > 4 * MOST_LAYERS:
        raise ValueError(f"the field 'tensors' is no object of at most {4 * MOST_LAYERS} tensors")
    for name, entry in tensors.items():
        if not _is_tensor(entry) or len(name) > 500 or not all(name.split(".")):
            raise ValueError(f"tensor {name!r:.80} can't be made: it is {entry!r:.80}")
    if (size := tensor_bytes(tensors)) > MOST_BYTES:
        raise ValueError(f"the tensors have {size / 2**30:.1f} GiB; {MOST_BYTES / 2**30:g} is the most")


def _is_tensor(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in DTYPES:
        return False
    is_shape = _is_list(entry.get("shape"), 8) and all(_is_integer(size, 0, MOST_BYTES) for size in entry["shape"])
    floats = DTYPES[entry["dtype"]].is_floating_point
    return is_shape and type(entry.get("trained")) is bool and (floats or not entry["trained"])


def tensor_bytes(tensors: Mapping[str, dict[str, Any]]) -> int:
    """The bytes of a graph's tensors (see `check_tensors`)."""
    return sum(math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize for entry in tensors.values())


def check_layers(layers: Any) -> None:
    """Raise ValueError that names the first entry of an architecture's `layers` with a field that can't be.

    Weights may come to MOST_BYTES: this takes no memory for them.
    """
    if not isinstance(layers, list | tuple) or not 0 < len(layers) <= MOST_LAYERS:
        raise ValueError(f"the field 'layers' is no list of 1 to {MOST_LAYERS} layers")
    for entry in layers:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or len(entry["name"]) > 500:
            raise ValueError(f"{entry!r:.80} is no layer with a name")
        for key, value in entry.items():
            if value is not None and not _is_field(key, value):
                raise ValueError(f"layer {entry['name']!r} can't be built: its {key} is {value!r:.80}")
    if (size := _layer_bytes(layers)) > MOST_BYTES:
        raise ValueError(f"the layers have {size / 2**30:.1f} GiB of weights; {MOST_BYTES / 2**30:g} is the most")


def declared_bytes(architecture: dict[str, Any]) -> int:
    """The bytes of the weights that a checked architecture gives shapes of; biases and scales are not counted."""
    if (tensors := architecture.get("tensors")) is not None:
        check_tensors(tensors)
        return tensor_bytes(tensors)
    return _layer_bytes(architecture["layers"])


def _layer_bytes(layers: Sequence[dict[str, Any]]) -> int:
    return sum(_declared_bytes(entry) for entry in layers)


def _declared_bytes(entry: dict[str, Any]) -> int:
    if entry.get("type") == "Constant":
        return 4 * math.prod((entry.get("options") or {}).get("shape") or ())
    inputs, outputs = (entry.get(key) or 1 for key in ("in_channels", "out_channels"))
    if entry.get("type") == "BatchNorm2d":
        return 8 * int(outputs)
    count = outputs * -(-inputs // (entry.get("groups") or 1)) * math.prod(entry.get("kernel_size") or ())
    if not str(entry.get("type")).startswith("Quantized"):
        return 4 * int(count)
    return int(count) // 2 if (entry.get("quantization") or {}).get("weight_bits") == 4 else int(count)


def _is_field(key: Any, value: Any) -> bool:
    """Whether an entry's field can have this value. Fields that nothing is built from are not looked at."""
    if key in _COUNTS:
        return _is_integer(value, 1, _COUNTS[key])
    if key in _PAIRS:
        return _is_list(value, 2) and len(value) == 2 and all(_is_integer(v, _PAIRS[key], MOST_PIXELS) for v in value)
    if key == "inputs":
        return _is_list(value, MOST_LAYERS) and all(isinstance(name, str) for name in value)
    if key in _WORDS:
        return type(value) in (str, int) and value in _WORDS[key]
    if key == "quantization":
        return isinstance(value, dict) and all(_is_field(k, v) for k, v in value.items() if k in _ARITHMETIC)
    if key == "options":
        return isinstance(value, dict) and all(_is_option(k, v) for k, v in value.items())
    return True


def _is_option(key: Any, value: Any) -> bool:
    """Whether the options of a layer can have this. What a function is called with is checked by CALLS."""
    if key in ("shape", "input_size"):  # of a constant, of the images that are pooled
        return _is_list(value, 6) and all(_is_integer(v, 1, MOST_CHANNELS) for v in value)
    if key == "dimensions":
        return _is_integer(value, 1, 6)
    kinds: dict[Any, Any] = {"function": str, "operation": str, "arguments": list | tuple | dict, "keywords": dict}
    return key in kinds and isinstance(value, kinds[key])


def _is_integer(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_list(value: Any, most: int) -> bool:
    return isinstance(value, list | tuple) and len(value) <= most


def check_network(network: nn.Module, input_shape: Sequence[int], num_classes: int) -> None:
    """Have a network of `build_model` compute shapes alone, for images of `input_shape`: no memory, and no time.

    Raises ValueError that names the layer which can't compute, or would take too much, or if there are no logits.
    """
    if isinstance(network, GraphNetwork):
        _require_logits(graph_answer(network, input_shape), num_classes)
        return
    sizes: dict[str, int] = {}
    products, reached = 0, "the first layer"

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            nonlocal reached
            reached = f"layer {name!r}"

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal products
            values = output.values if isinstance(output, Codes) else output
            sizes[name] = values.numel() // CHECKED_IMAGES
            products += sizes[name] * _products_each(layer)
            if sizes[name] > MOST_VALUES or products > MOST_PRODUCTS:
                raise ValueError(f"it has {sizes[name]:,} values for one image, after {products:,} multiply-adds")

        return hook

    leaves = [(name, part) for name, part in network.named_modules() if isinstance(part, Int8Layer) or _is_leaf(part)]
    hooks = [part.register_forward_pre_hook(enter(name)) for name, part in leaves]
    hooks += [part.register_forward_hook(leave(name)) for name, part in leaves]
    state = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    try:
        with torch.no_grad():
            images = torch.empty(CHECKED_IMAGES, *input_shape, device="meta")
            logits = torch.func.functional_call(network, state, (images,))
    except Exception as error:  # whatever torch has to say of shapes that do not fit
        raise ValueError(f"{reached} can't compute its output: {str(error).partition(chr(10))[0]}") from error
    finally:
        for handle in hooks:
            handle.remove()
    _require_logits(logits, num_classes)
    if isinstance(network, Int8Network) and (most := network.most_values(sizes)) > 4 * MOST_VALUES:
        raise ValueError(f"its layers hold {most:,} values for one image at the same time")


def _require_logits(answer: Any, num_classes: int) -> None:
    shape = list(answer.shape) if isinstance(answer, Tensor) else answer
    if shape != [CHECKED_IMAGES, num_classes]:
        raise ValueError(f"it answers {CHECKED_IMAGES} images with {shape}, not {num_classes} logits each")


def graph_answer(network: GraphNetwork, input_shape: Sequence[int]) -> Any:
    """What a graph's network answers, by shapes alone. Raises ValueError that names the layer which can't compute."""
    images = torch.empty(CHECKED_IMAGES, *input_shape, device="meta", dtype=_float_type(network))
    values: dict[str, Any] = {"input": images}
    products = 0
    step = None
    try:
        with torch.no_grad():
            for step in network._without_numbers().steps:
                step.check_dim(values)
                each = step.products(values)
                step.run(values, images.shape)
                held = {name: _count_values(value) for name, value in values.items()}
                products += held[step.name] * each
                if held[step.name] > MOST_VALUES or sum(held.values()) > 4 * MOST_VALUES or products > MOST_PRODUCTS:
                    raise ValueError(f"{sum(held.values()):,} values for one image, after {products:,} multiply-adds")
    except Exception as error:  # whatever torch has to say of shapes that do not fit
        reached = f"layer {step.name!r}" if step is not None else "the first layer"
        raise ValueError(f"{reached} can't compute its output: {str(error).partition(chr(10))[0]}") from error
    return values[step.name] if step is not None else None


def _count_values(value: Any) -> int:
    """How many numbers a value holds for one image."""
    parts = value if isinstance(value, list | tuple) else [value]
    return sum(part.numel() for part in parts if isinstance(part, Tensor)) // CHECKED_IMAGES


def _float_type(network: nn.Module) -> torch.dtype:
    """The type that the images must have."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


def _is_leaf(part: nn.Module) -> bool:
    return not any(True for _ in part.children()) and type(part).__module__.startswith("torch.nn")


def _products_each(layer: nn.Module) -> int:
    """How many multiply-adds, or values, each value of a layer's output takes."""
    if isinstance(layer, Function):
        window = [v for v in _leaves(layer.arguments[1:]) + _leaves(list(layer.keywords.values())) if type(v) is int]
        return max([1, *(v * v for v in window)]) if "pool" in layer.function.__name__ else 1
    weight = getattr(layer, "weight", None)
    shape: Any = getattr(layer, "weight_shape", None) or getattr(weight, "shape", ())
    return math.prod(shape[1:])


def _leaves(value: Any) -> list[Any]:
    """The values in nested lists."""
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list | tuple) else [value]


def _read_inputs(arguments: Any) -> set[int]:
    """The inputs that a call's arguments read."""
    return {leaf["input"] for leaf in _leaves(arguments) if isinstance(leaf, dict) and "input" in leaf}


def _check_residuals(steps: Sequence[_Step]) -> None:
    """Raise ValueError where a convolution's residual is needed after it: the kernels write over its memory."""
    moving = [step for step in steps if isinstance(step.layer, Rearrange)]  # their output may be their input's memory
    kept = {"input", *(name for step in moving for name in (step.name, *step.inputs))}
    kept |= {step.name for step in steps if isinstance(step.layer, Constant)}
    for step in steps:
        if not isinstance(step.layer, QuantizedConv2d) or len(step.inputs) < 2:
            continue
        source, residual = step.inputs
        if residual in (source, *kept) or residual not in step.expired or not step.layer.activation:
            raise ValueError(f"layer {step.name!r} can't be built: {residual!r}, which it writes over, is still needed")


# What an argument of a function can be. Each says so of a JSON value, for a layer with so many inputs.
_Kind = Callable[[Any, int], bool]


def _tensor(value: Any, inputs: int) -> bool:
    return isinstance(value, dict) and value.keys() == {"input"} and _is_integer(value["input"], 0, inputs - 1)


def _tensors(value: Any, inputs: int) -> bool:
    return _is_list(value, MOST_LAYERS) and len(value) > 0 and all(_tensor(v, inputs) for v in value)


def _number(value: Any, _: int) -> bool:
    return type(value) in (int, float) and -3e38 <= value <= 3e38


def _operand(value: Any, inputs: int) -> bool:
    return _number(value, inputs) or _tensor(value, inputs)


def _integer(value: Any, _: int) -> bool:
    return _is_integer(value, -(2**31), 2**31)


def _integers(value: Any, inputs: int) -> bool:
    return _is_list(value, 8) and all(_integer(v, inputs) for v in value)


def _flag(value: Any, _: int) -> bool:
    return type(value) is bool


def _at_least(low: int) -> _Kind:
    """One number of pixels, or one for each of up to three sides."""

    def kind(value: Any, _: int) -> bool:
        sides = value if _is_list(value, 3) and len(value) > 0 else [value]
        return all(_is_integer(side, low, MOST_PIXELS) for side in sides)

    return kind


def _refused(value: Any, _: int) -> bool:
    return False


def _one_of(*values: Any) -> _Kind:
    return lambda value, _: any(type(value) is type(v) and value == v for v in values)


def _either(*kinds: _Kind) -> _Kind:
    return lambda value, inputs: any(kind(value, inputs) for kind in kinds)


def _optional(kind: _Kind) -> _Kind:
    return lambda value, inputs: value is None or kind(value, inputs)


def _place(value: Any, inputs: int) -> bool:
    """An index, or {"slice": [start, stop, step]}."""
    if isinstance(value, dict) and value.keys() == {"slice"}:
        parts = value["slice"]
        return _is_list(parts, 3) and len(parts) == 3 and all(v is None or _integer(v, inputs) for v in parts)
    return value is None or _integer(value, inputs)


def _places(value: Any, inputs: int) -> bool:
    return _is_list(value, 8) and all(_place(v, inputs) for v in value)


class _Call(NamedTuple):
    """A function that a graph may call, and what with."""

    function: Callable[..., Any]
    required: dict[str, _Kind]  # in order
    optional: dict[str, _Kind] = {}  # noqa: RUF012  # never changed
    rest: _Kind | None = None  # what any number of further positional arguments are

    def check(self, arguments: Sequence[Any], keywords: dict[str, Any], inputs: int) -> None:
        """Raise ValueError where the function can't be called so, in a layer with so many inputs."""
        kinds = self.required | self.optional
        given = dict(zip(kinds, arguments, strict=False))
        spare = arguments[len(kinds) :]
        if self.rest is None and spare:
            raise ValueError(f"{self.function.__name__} takes at most {len(kinds)} arguments")
        for name, value in keywords.items():
            if name not in kinds or name in given:
                raise ValueError(f"{self.function.__name__} can't be given {name!r:.80}")
            given[name] = value
        for name, value in (*given.items(), *(("...", value) for value in spare)):
            if not kinds.get(name, self.rest or _refused)(value, inputs):
                raise ValueError(f"{self.function.__name__} can't be given {value!r:.80} as {name}")
        if missing := [name for name in self.required if name not in given]:
            raise ValueError(f"{self.function.__name__} needs {missing[0]!r}")


def _channel_means(x: Tensor) -> Tensor:
    """[n, c, h, w] -> [n, c]; summed by this function, an image's means are the same in every batch."""
    return functional.adaptive_avg_pool2d(x, 1).flatten(1)


def _take(x: Tensor, dim: int, places: list[int]) -> Tensor:
    """The values at these places of a dimension, in their order."""
    return x.index_select(dim, torch.tensor(places))


def _for_each(x: Tensor, like: Tensor, sizes: list[int]) -> Tensor:
    """One and the same tensor for each of the images: [1, ...] -> [n, ...], of these sizes after the first."""
    return x.expand(like.shape[0], *sizes)


def _counts(value: Any, _: int) -> bool:
    return _is_list(value, MOST_CLASSES) and all(_is_integer(v, 0, MOST_CHANNELS) for v in value)


_X: dict[str, _Kind] = {"input": _tensor}
_XY: dict[str, _Kind] = {"input": _operand, "other": _operand}
_SIDES, _SIDES_OR_NONE, _PADDING = _at_least(1), _optional(_at_least(1)), _at_least(0)
_DIM: dict[str, _Kind] = {"dim": _either(_integer, _integers), "keepdim": _flag}
_NO_DTYPE: dict[str, _Kind] = {"_stacklevel": _integer, "dtype": _one_of(None)}
_CONVOLUTION: dict[str, _Kind] = {
    "bias": _optional(_tensor),
    "stride": _SIDES,
    "padding": _either(_PADDING, _one_of("same", "valid")),
    "dilation": _SIDES,
    "groups": _SIDES,
}
_POOL: dict[str, _Kind] = {"stride": _SIDES_OR_NONE, "padding": _PADDING}
_AFFINE: dict[str, _Kind] = {"weight": _optional(_tensor), "bias": _optional(_tensor), "eps": _number}
_NO_INDICES: dict[str, _Kind] = {"return_indices": _one_of(False)}
_RESIZE: dict[str, _Kind] = {
    "size": _SIDES_OR_NONE,
    "scale_factor": _optional(_either(_number, lambda v, _: _is_list(v, 2) and all(_number(s, 0) for s in v))),
    "mode": _one_of("nearest", "bilinear", "bicubic", "area", "nearest-exact"),
    "align_corners": _optional(_flag),
    "recompute_scale_factor": _optional(_flag),
    "antialias": _flag,
}

# By the name that an architecture has for it. All are pure: none reads or writes anything but tensors, none is random,
# none writes over its input, and each gives one tensor.
CALLS: dict[str, _Call] = {
    **{
        f"functional.{name}": _Call(getattr(functional, name), _X)
        for name in ("relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid", "tanh", "selu", "mish", "softsign")
    },
    **{f"functional.{name}": _Call(getattr(functional, name), _X) for name in ("logsigmoid", "tanhshrink")},
    **{f"functional.{name}": _Call(getattr(functional, name), _X, {"alpha": _number}) for name in ("elu", "celu")},
    **{
        f"functional.{name}": _Call(getattr(functional, name), _X, {"lambd": _number})
        for name in ("hardshrink", "softshrink")
    },
    "functional.hardtanh": _Call(functional.hardtanh, _X, {"min_val": _number, "max_val": _number}),
    "functional.gelu": _Call(functional.gelu, _X, {"approximate": _one_of("none", "tanh")}),
    "functional.leaky_relu": _Call(functional.leaky_relu, _X, {"negative_slope": _number}),
    "functional.softplus": _Call(functional.softplus, _X, {"beta": _number, "threshold": _number}),
    "functional.threshold": _Call(functional.threshold, _X | {"threshold": _number, "value": _number}),
    "functional.prelu": _Call(functional.prelu, _X | {"weight": _tensor}),
    "functional.glu": _Call(functional.glu, _X, {"dim": _integer}),
    "functional.softmax": _Call(functional.softmax, _X | {"dim": _integer}, _NO_DTYPE),
    "functional.log_softmax": _Call(functional.log_softmax, _X | {"dim": _integer}, _NO_DTYPE),
    "functional.normalize": _Call(
        functional.normalize, _X, {"p": _number, "dim": _integer, "eps": _number, "out": _one_of(None)}
    ),
    "functional.layer_norm": _Call(functional.layer_norm, _X | {"normalized_shape": _integers}, _AFFINE),
    "functional.group_norm": _Call(functional.group_norm, _X | {"num_groups": _SIDES}, _AFFINE),
    "functional.batch_norm": _Call(
        functional.batch_norm,
        _X | {"running_mean": _tensor, "running_var": _tensor},
        {**_AFFINE, "eps": _number, "training": _one_of(False), "momentum": _number},
    ),
    "functional.linear": _Call(functional.linear, _X | {"weight": _tensor}, {"bias": _optional(_tensor)}),
    "functional.conv1d": _Call(functional.conv1d, _X | {"weight": _tensor}, _CONVOLUTION),
    "functional.conv2d": _Call(functional.conv2d, _X | {"weight": _tensor}, _CONVOLUTION),
    "functional.conv_transpose2d": _Call(
        functional.conv_transpose2d,
        _X | {"weight": _tensor},
        {
            "bias": _optional(_tensor),
            "stride": _SIDES,
            "padding": _PADDING,
            "output_padding": _PADDING,
            "groups": _SIDES,
            "dilation": _SIDES,
        },
    ),
    "functional.instance_norm": _Call(
        functional.instance_norm,
        _X,
        {
            "running_mean": _optional(_tensor),
            "running_var": _optional(_tensor),
            **_AFFINE,
            "use_input_stats": _flag,
            "eps": _number,
        },
    ),
    "functional.rms_norm": _Call(
        functional.rms_norm,
        _X | {"normalized_shape": _integers},
        {"weight": _optional(_tensor), "eps": _optional(_number)},
    ),
    "functional.avg_pool2d": _Call(
        functional.avg_pool2d,
        _X | {"kernel_size": _SIDES},
        _POOL | {"ceil_mode": _flag, "count_include_pad": _flag, "divisor_override": _SIDES_OR_NONE},
    ),
    **{
        f"functional.avg_pool{n}d": _Call(
            getattr(functional, f"avg_pool{n}d"),
            _X | {"kernel_size": _SIDES},
            _POOL | {"ceil_mode": _flag, "count_include_pad": _flag},
        )
        for n in (1, 3)
    },
    **{
        f"functional.adaptive_avg_pool{n}d": _Call(
            getattr(functional, f"adaptive_avg_pool{n}d"), _X | {"output_size": _SIDES}
        )
        for n in (1, 2, 3)
    },
    "functional.lp_pool2d": _Call(
        functional.lp_pool2d,
        _X | {"norm_type": _number, "kernel_size": _SIDES},
        {"stride": _SIDES_OR_NONE, "ceil_mode": _flag},
    ),
    **{
        f"functional.max_pool{n}d": _Call(
            getattr(functional, f"max_pool{n}d"),
            _X | {"kernel_size": _SIDES},
            _POOL | {"dilation": _SIDES, "ceil_mode": _flag, **_NO_INDICES},
        )
        for n in (1, 2, 3)
    },
    "functional.adaptive_max_pool2d": _Call(functional.adaptive_max_pool2d, _X | {"output_size": _SIDES}, _NO_INDICES),
    "functional.interpolate": _Call(functional.interpolate, _X, _RESIZE),
    "functional.pad": _Call(
        functional.pad,
        _X | {"pad": _integers},
        {"mode": _one_of("constant", "reflect", "replicate", "circular"), "value": _optional(_number)},
    ),
    "functional.pixel_shuffle": _Call(functional.pixel_shuffle, _X | {"upscale_factor": _SIDES}),
    "functional.pixel_unshuffle": _Call(functional.pixel_unshuffle, _X | {"downscale_factor": _SIDES}),
    "functional.channel_shuffle": _Call(functional.channel_shuffle, _X | {"groups": _SIDES}),
    "functional.scaled_dot_product_attention": _Call(
        functional.scaled_dot_product_attention,
        {"query": _tensor, "key": _tensor, "value": _tensor},
        {
            "attn_mask": _optional(_tensor),
            "dropout_p": _one_of(0, 0.0),
            "is_causal": _flag,
            "scale": _optional(_number),
        },
    ),
    **{f"operator.{name}": _Call(getattr(operator, name), _XY) for name in ("add", "sub", "mul", "truediv", "pow")},
    **{f"operator.{name}": _Call(getattr(operator, name), _X) for name in ("neg", "abs")},
    "operator.matmul": _Call(operator.matmul, {"input": _tensor, "other": _tensor}),
    "operator.getitem": _Call(operator.getitem, _X | {"index": _either(_place, _places)}),
    **{
        f"Tensor.{name}": _Call(getattr(Tensor, name), _X)
        for name in ("abs", "exp", "sqrt", "square", "neg", "reciprocal", "rsqrt", "log", "erf", "sin", "cos", "float")
    },
    **{
        f"Tensor.{name}": _Call(getattr(Tensor, name), _X)
        for name in ("expm1", "log1p", "sign", "floor", "ceil", "round", "trunc")
    },
    **{f"Tensor.{name}": _Call(getattr(Tensor, name), _X, _DIM | {"correction": _number}) for name in ("var", "std")},
    "Tensor.logsumexp": _Call(Tensor.logsumexp, _X, _DIM),
    "Tensor.cumsum": _Call(Tensor.cumsum, _X | {"dim": _integer}),
    "slimkit.norm": _Call(torch.linalg.vector_norm, _X | {"ord": _number}, _DIM),
    **{
        f"Tensor.{name}": _Call(getattr(Tensor, name), _X | {"other": _operand})
        for name in ("add", "sub", "mul", "div", "pow")
    },
    **{
        f"Tensor.{name}": _Call(getattr(Tensor, name), _X | {"other": _tensor})
        for name in ("matmul", "bmm", "maximum", "minimum", "expand_as")
    },
    "Tensor.clamp": _Call(Tensor.clamp, _X, {"min": _optional(_number), "max": _optional(_number)}),
    "Tensor.clamp_min": _Call(Tensor.clamp_min, _X | {"min": _number}),
    "Tensor.clamp_max": _Call(Tensor.clamp_max, _X | {"max": _number}),
    **{f"Tensor.{name}": _Call(getattr(Tensor, name), _X, _DIM) for name in ("mean", "sum", "amax", "amin")},
    "Tensor.expand": _Call(Tensor.expand, _X, rest=_either(_integer, _integers)),
    "Tensor.repeat": _Call(Tensor.repeat, _X, rest=_either(_integer, _integers)),
    "Tensor.flip": _Call(Tensor.flip, _X, rest=_either(_integer, _integers)),
    "Tensor.roll": _Call(
        Tensor.roll, _X | {"shifts": _either(_integer, _integers)}, {"dims": _either(_integer, _integers)}
    ),
    "Tensor.flatten": _Call(Tensor.flatten, _X, {"start_dim": _integer, "end_dim": _integer}),
    "Tensor.narrow": _Call(Tensor.narrow, _X | {"dim": _integer, "start": _integer, "length": _integer}),
    "Tensor.permute": _Call(Tensor.permute, _X | {"dims": _integers}),
    "Tensor.reshape": _Call(Tensor.reshape, _X | {"shape": _integers}),
    "slimkit.cat": _Call(torch.cat, {"tensors": _tensors}, {"dim": _integer}),
    "slimkit.stack": _Call(torch.stack, {"tensors": _tensors}, {"dim": _integer}),
    "slimkit.channel_means": _Call(_channel_means, _X),
    "slimkit.pad_zeros": _Call(functional.pad, _X | {"sides": _integers}),
    "slimkit.for_each": _Call(_for_each, {"input": _tensor, "like": _tensor, "sizes": _integers}),
    "slimkit.addcmul": _Call(
        torch.addcmul, {"input": _tensor, "tensor1": _tensor, "tensor2": _tensor}, {"value": _number}
    ),
    "slimkit.take": _Call(_take, _X | {"dim": _integer, "places": _counts}),
}


# ---- int8 networks ----

MOST_SIZES = 8  # image sizes that a network is kept ready for: each has weights of its own
FEW_IMAGES = 8  # up to so many are traced when they first come: a service wants its answers soon, again and again
MANY_CALLS = 3  # more are traced when they come for this time: calibration shows a batch but once or twice


class _Ready:
    """What an int8 network keeps for images of one shape."""

    def __init__(self, weights: list[Tensor]) -> None:
        """weights: packed for such images."""
        self.weights = weights
        self.calls = 0
        self.traced: nn.Module | None = None


class Int8Network(nn.Module):
    """A network computed in int8: the list of layers in its architecture, run in order.

    A real value is scale * (code - zero_point). Weights are int8 with a scale per output channel, activations uint8. A
    static network quantizes the image once, by a scale found in calibration, and stays in uint8 up to the classifier. A
    dynamic one quantizes the input of each layer by the range that it has in that very image; its layers give float.
    Where the CPU lacks int8 kernels, and on a GPU, the same arithmetic is done on float32 numbers: equal to rounding.
    """

    def __init__(self, layers: list[dict[str, Any]]) -> None:
        """`layers`: the `layers` of the architecture. Raises ValueError that names the layer which can't be built."""
        super().__init__()
        check_layers(layers)
        self._steps: list[_Step] = []
        known = {"input"}
        last_use = {source: index for index, entry in enumerate(layers) for source in entry.get("inputs") or ()}
        for index, entry in enumerate(layers):
            name, inputs = entry["name"], tuple(entry.get("inputs") or ())
            if name in known or not known.issuperset(inputs):
                raise ValueError(
                    f"layer {name!r} has no name of its own, or its inputs {list(inputs)!s:.200} are no earlier layers"
                )
            expired = tuple(source for source in dict.fromkeys(inputs) if last_use[source] == index)
            self._steps.append(_Step(name, _attach(self, {**entry, "inputs": inputs}), inputs, expired))
            known.add(name)
        _check_residuals(self._steps)
        self._is_dynamic = any(step.layer.is_dynamic for step in self._steps)
        self._ready: dict[torch.Size, _Ready] = {}  # by the shape of an image

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Normalized images [n, 3, h, w] of any float type -> float32 logits [n, num_classes]."""
        x = x.float()
        if x.device.type == "meta":  # shapes without numbers
            return self._run(FloatArithmetic(), x)
        arithmetic = cpu_arithmetic() if x.device.type == "cpu" else FloatArithmetic()
        if not isinstance(arithmetic, Int8Kernels):
            with torch.autocast(x.device.type, enabled=False):  # its half precision can't hold the integer sums
                return self._run(arithmetic, x)
        if not len(x):
            return self._run(FloatArithmetic(), x)
        ready = self._ready_for(arithmetic, x)
        run = ready.traced or _Traceable(self, arithmetic)
        # Image by image where ranges are taken per image: a kernel knows one range for all of its batch.
        parts = torch.split(x, 1) if self._is_dynamic else (x,)
        return torch.cat([run(part, *ready.weights) for part in parts])

    def _ready_for(self, arithmetic: Int8Kernels, x: Tensor) -> _Ready:
        """What is kept for images of the shape of `x`, traced where that pays."""
        shape = x.shape[1:]
        if shape not in self._ready:
            if len(self._ready) == MOST_SIZES:
                del self._ready[next(iter(self._ready))]
            self._ready[shape] = _Ready(_Traceable(self, arithmetic).pack_weights(x[:1]))
        ready = self._ready[shape]
        ready.calls += 1
        if ready.traced is None and (len(x) <= FEW_IMAGES or ready.calls == MANY_CALLS):
            ready.traced = self._trace(arithmetic, x[:1], ready.weights)
        return ready

    def _trace(self, arithmetic: Int8Kernels, x: Tensor, weights: list[Tensor]) -> nn.Module:
        """`_run` for images of the shape of `x`, as one call: Python takes a third of the time of a small network.

        Where TorchScript can't have all of it, or has not the same answers, it stays layer by layer.
        """
        body = _Traceable(self, arithmetic).eval()
        with warnings.catch_warnings(), contextlib.suppress(AttributeError, RuntimeError):
            warnings.simplefilter("ignore")  # that what is constant for images of this shape becomes a constant
            traced = torch.jit.trace(body, (x, *weights), check_trace=False)  # type: ignore[no-untyped-call]
            traced = torch.jit.freeze(traced, optimize_numerics=False)
            other = x.flip(-1) if self._is_dynamic else torch.cat([x, x.flip(-1)])
            if torch.equal(traced(other, *weights), body(other, *weights)):
                return traced  # type: ignore[no-any-return]
        return body

    def _run(self, arithmetic: FloatArithmetic, x: Tensor) -> Tensor:
        values: dict[str, Any] = {"input": x}
        for name, layer, inputs, expired in self._steps:
            values[name] = layer(arithmetic, *[values[source] for source in inputs])
            for source in expired:
                del values[source]
        logits: Tensor = values[self._steps[-1].name]
        return logits

    def most_values(self, sizes: dict[str, int]) -> int:
        """How many values are held at the same time, where `sizes` gives those of each layer's output."""
        held = most = 0
        for step in self._steps:
            held += sizes[step.name]
            most = max(most, held)
            held -= sum(sizes.get(source, 0) for source in step.expired)
        return most

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._ready = {}
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies what belongs to this process alone."""
        return {**self.__dict__, "_ready": {}}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Network:
        """Move, but keep every dtype: half precision has no room for scales."""
        self._ready = {}
        return super()._apply(lambda t: t.to(fn(t).device), recurse)  # type: ignore[no-untyped-call, no-any-return]


class _Traceable(nn.Module):
    """An int8 network as the tracer wants it: weights in oneDNN's own layout can't be constants, so they are inputs."""

    def __init__(self, network: Int8Network, arithmetic: Int8Kernels) -> None:
        super().__init__()
        self.network = network
        self.arithmetic = arithmetic

    def pack_weights(self, x: Tensor) -> list[Tensor]:
        """Those for images of the shape of `x`: in a layout for another size some take 100 times as long."""
        for layer in self._opaque_layers():
            layer.packed = None
        with _onednn_engine():
            self.network._run(self.arithmetic, x)
        return [weight for layer in self._opaque_layers() for weight in layer.packed.weights]

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        """As the network does; weights: in the order of the layers."""
        given = iter(weights)
        for layer in self._opaque_layers():
            layer.packed = layer.packed._replace(weights=[next(given) for _ in layer.packed.weights])
        return self.network._run(self.arithmetic, x)

    def _opaque_layers(self) -> list[Int8Layer]:
        layers = [step.layer for step in self.network._steps]
        return [layer for layer in layers if isinstance(layer.packed, _Packed)]


ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": torch.relu_,
    "relu6": lambda x: x.clamp_(0, 6),
}


class Int8Layer(nn.Module):
    """One entry of an int8 network's `layers`. Its inputs and its output are codes, or float tensors."""

    is_dynamic = False
    input_counts: tuple[int, ...] = (1,)  # how many inputs it can have; empty: any number
    activations: tuple[str | None, ...] = (None,)  # that can be fused into it

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__()
        self._check(entry)
        self.activation = entry.get("activation")
        self.activate = ACTIVATIONS[self.activation]
        self.packed: Any = None  # what the kernels made of the weights at first use
        self.numbers: Any = None  # and of the output's scale and zero point
        self.gives_codes = (entry.get("quantization") or {}).get("output", "float32") != "float32"
        if self.gives_codes:
            self.register_buffer("output_scale", torch.ones(()))
            self.register_buffer("output_zero_point", torch.zeros((), dtype=torch.uint8))

    def _check(self, entry: dict[str, Any]) -> None:
        """Raise ValueError where the entry says what this kind of layer can't be."""
        inputs = entry.get("inputs")  # there are none where a layer is built by itself
        if inputs is not None and self.input_counts and len(inputs) not in self.input_counts:
            raise ValueError(f"it takes {' or '.join(map(str, self.input_counts))} inputs, not {len(inputs)}")
        if entry.get("activation") not in self.activations:
            raise ValueError(f"it can't have the activation {entry.get('activation')!r}")

    def finish(self, arithmetic: FloatArithmetic, y: Tensor) -> Any:
        """The layer's activation, in place, and codes where it gives them."""
        y = self.activate(y)
        return arithmetic.quantize(self, y) if self.gives_codes else y

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.packed = self.numbers = None
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Layer:
        self.packed = self.numbers = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies what belongs to this process alone."""
        return {**self.__dict__, "packed": None, "numbers": None}


class _Step(NamedTuple):
    name: str
    layer: Int8Layer
    inputs: tuple[str, ...]
    expired: tuple[str, ...]  # the values that no later step reads


class Quantize(Int8Layer):
    """Float -> codes."""

    def forward(self, arithmetic: FloatArithmetic, x: Tensor) -> Any:
        """Keeps the shape."""
        return arithmetic.quantize(self, x)


class _Int8Weights(Int8Layer):
    """What convolutions and linear layers share. Static ones take codes and give either, dynamic ones are float."""

    activations = (None, "relu", "relu6")

    def __init__(self, entry: dict[str, Any], *shape: int) -> None:
        """shape: of the weight."""
        super().__init__(entry)
        self.is_dynamic = entry["quantization"]["scheme"] == "dynamic"
        if self.is_dynamic and self.gives_codes:
            raise ValueError("a dynamic layer gives float32")
        self.weight_shape = shape
        self.is_packed = entry["quantization"].get("weight_bits") == 4
        size = (math.prod(shape) + 1) // 2
        weight = torch.zeros(size).byte() if self.is_packed else torch.zeros(shape).char()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", torch.ones(shape[0]))
        self.bias = _parameter(shape[0])

    def weight_codes(self) -> Tensor:
        """int8 [out_channels, in_channels / groups, ...]."""
        return unpack(self.weight, self.weight_shape)  # type: ignore[arg-type]  # a buffer


def pack(codes: Tensor) -> Tensor:
    """int8 codes from -8 to 7, of any shape, as uint8 [half as many]: two to a byte, each + 8, the first low."""
    flat = (codes.flatten() + 8).to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(len(flat) % 2)])
    return flat[0::2] | flat[1::2] << 4


def unpack(stored: Tensor, shape: Sequence[int]) -> Tensor:
    """int8 codes of `shape` from how a layer holds them: the reverse of `pack` where that was used."""
    if stored.dtype == torch.int8:
        return stored
    codes = torch.stack([stored & 15, stored >> 4], 1).flatten().to(torch.int8) - 8
    return codes[: math.prod(shape)].view(*shape)


class QuantizedConv2d(_Int8Weights):
    """Convolution; to a dynamic one a second input, the residual, is added before the activation."""

    input_counts = (1, 2)

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry, *_convolution_shape(entry))
        if not self.is_dynamic and len(entry.get("inputs") or ()) > 1:
            raise ValueError("a static convolution takes one input")
        self.geometry = tuple(entry[key] for key in ("stride", "padding", "dilation", "groups"))
        # oneDNN gets strided 1x1 convolutions wrong on CPUs with AVX2 for 8, 24, 40, ... channels, where two threads
        # compute them (seen in torch 2.13); so the kernels are handed the pixels that count
        is_odd = self.weight_shape[2:] == (1, 1) and not any(entry["padding"]) and entry["in_channels"] % 16 != 0
        self.steps = list(entry["stride"]) if is_odd else [1, 1]
        self.kernel_geometry = ([1, 1], *self.geometry[1:]) if is_odd else self.geometry

    def forward(self, arithmetic: FloatArithmetic, x: Any, residual: Any = None) -> Any:
        """[n, in_channels, h, w] and, for the residual and the output, [n, out_channels, h', w']."""
        return arithmetic.convolve(self, x, residual)


class QuantizedLinear(_Int8Weights):
    """Linear layer."""

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry, entry["out_channels"], entry["in_channels"])

    def forward(self, arithmetic: FloatArithmetic, x: Any) -> Any:
        """[n, ..., in_channels] -> [n, ..., out_channels]."""
        return self.finish(arithmetic, arithmetic.linear(self, x))


class Conv2d(Int8Layer):
    """Convolution in float, of a layer that would lose too much in int8; with a residual as there."""

    input_counts = (1, 2)
    activations = (None, "relu", "relu6")

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry)
        self.weight, self.bias = _parameter(*_convolution_shape(entry)), _parameter(entry["out_channels"])
        self.geometry = tuple(entry[key] for key in ("stride", "padding", "dilation", "groups"))

    def forward(self, arithmetic: FloatArithmetic, x: Any, residual: Any = None) -> Tensor:
        """[n, in_channels, h, w] and, for the residual and the output, [n, out_channels, h', w']."""
        y = functional.conv2d(arithmetic.real(x), self.weight, self.bias, *self.geometry)
        return self.activate(y if residual is None else y.add_(arithmetic.real(residual)))


class Linear(Int8Layer):
    """Linear layer in float."""

    activations = (None, "relu", "relu6")

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry)
        self.weight, self.bias = (
            _parameter(entry["out_channels"], entry["in_channels"]),
            _parameter(entry["out_channels"]),
        )

    def forward(self, arithmetic: FloatArithmetic, x: Any) -> Tensor:
        """[n, ..., in_channels] -> [n, ..., out_channels]."""
        return self.activate(functional.linear(arithmetic.real(x), self.weight, self.bias))


def _convolution_shape(entry: dict[str, Any]) -> tuple[int, ...]:
    return entry["out_channels"], entry["in_channels"] // entry["groups"], *entry["kernel_size"]


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape), requires_grad=False)


class BatchNorm2d(Int8Layer):
    """Scale and shift of each channel, where no convolution comes before that could take them in."""

    activations = (None, "relu", "relu6")

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry)
        self.weight, self.bias = _parameter(entry["out_channels"]), _parameter(entry["out_channels"])

    def forward(self, arithmetic: FloatArithmetic, x: Any) -> Any:
        """Keeps the shape."""
        y = torch.addcmul(self.bias[:, None, None], arithmetic.real(x), self.weight[:, None, None])
        return self.finish(arithmetic, y)


class Constant(Int8Layer):
    """A float tensor of the network's own."""

    input_counts = (0,)

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry)
        self.value = _parameter(*entry["options"]["shape"])

    def forward(self, _: FloatArithmetic) -> Tensor:
        """Takes nothing."""
        return self.value


class Function(Int8Layer):
    """A function without weights, computed on real numbers. From codes to codes it is rounded but once.

    A table of the 256 results would be as exact, but PyTorch's look-up takes three times as long as its arithmetic.
    """

    input_counts: tuple[int, ...] = ()
    calls: frozenset[str] | None = None  # the functions that this kind of layer can call; None: all of CALLS

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry)
        options = entry["options"]
        name, self.arguments, self.keywords = options["function"], options["arguments"], options.get("keywords") or {}
        if name not in CALLS or (self.calls is not None and name not in self.calls):
            raise ValueError(f"it can't call {name!r:.80}")
        CALLS[name].check(self.arguments, self.keywords, len(entry.get("inputs") or ()))
        self.function = CALLS[name].function

    def call(self, inputs: Sequence[Any]) -> Any:
        """The function's value. Among its arguments {"input": i} is `inputs[i]`, and {"slice": [..]} a slice."""

        def fill(value: Any) -> Any:
            if isinstance(value, dict):
                return inputs[value["input"]] if "input" in value else slice(*value["slice"])
            if isinstance(value, list):
                items = [fill(item) for item in value]
                return tuple(items) if any(isinstance(item, slice) for item in items) else items
            return value

        return self.function(*fill(self.arguments), **{key: fill(value) for key, value in self.keywords.items()})

    def forward(self, arithmetic: FloatArithmetic, *inputs: Any) -> Any:
        """As the function does."""
        return self.finish(arithmetic, self.call([arithmetic.real(x) for x in inputs]))


class Add(Function):
    """Sum of two inputs, each of its own scale."""

    input_counts = (2,)
    activations = (None, "relu")
    calls = frozenset({"operator.add"})

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry)
        if sorted(_read_inputs(self.arguments)) != [0, 1]:
            raise ValueError("it adds its first input to its second")

    def forward(self, arithmetic: FloatArithmetic, *inputs: Any) -> Any:
        """As the function does."""
        return arithmetic.add(self, *inputs) if self.gives_codes else super().forward(arithmetic, *inputs)


class Rearrange(Function):
    """A function that moves values but makes no new ones. Codes keep their scale, which all inputs share.

    Codes beside float become float.
    """

    calls = frozenset(
        {"operator.getitem", "slimkit.cat", "slimkit.take", "Tensor.flatten", "Tensor.narrow", "Tensor.permute"}
        | {"Tensor.reshape"}
    )

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry)
        if self.gives_codes or {0} - _read_inputs(self.arguments):
            raise ValueError("it has its inputs' scale, and moves its inputs' values")

    def move(self, inputs: Sequence[Tensor], zero_point: Any) -> Any:
        """Codes -> codes; `zero_point` is the code of 0."""
        return self.call(inputs)

    def forward(self, arithmetic: FloatArithmetic, *inputs: Any) -> Any:
        """As the function does."""
        return arithmetic.rearrange(self, inputs)


class ZeroPad(Rearrange):
    """Zeros around the last dimensions. Among codes the zero point stands for 0."""

    input_counts = (1,)
    calls = frozenset({"slimkit.pad_zeros"})

    def move(self, inputs: Sequence[Tensor], zero_point: Any) -> Tensor:
        """Codes -> codes."""
        code = 0 if inputs[0].is_meta else int(zero_point)  # meta: shapes without numbers
        return functional.pad(inputs[0], self.arguments[1], value=code)


class MaxPool2d(Function):
    """Max pooling: the largest code stands for the largest value, so the scale stays."""

    input_counts = (1,)
    calls = frozenset({"functional.max_pool2d", "functional.adaptive_max_pool2d"})

    def forward(self, arithmetic: FloatArithmetic, *inputs: Any) -> Any:
        """[n, c, h, w] -> [n, c, h', w']."""
        return arithmetic.max_pool(self, inputs[0])


INT8_LAYERS: dict[str, type[Int8Layer]] = {
    "Quantize": Quantize,
    "QuantizedConv2d": QuantizedConv2d,
    "QuantizedLinear": QuantizedLinear,
    "Conv2d": Conv2d,
    "Linear": Linear,
    "BatchNorm2d": BatchNorm2d,
    "Constant": Constant,
    "Add": Add,
    **dict.fromkeys(("Multiply", "Activation", "AveragePool", "Function"), Function),
    "MaxPool2d": MaxPool2d,
    **dict.fromkeys(("Concatenate", "Flatten", "Rearrange"), Rearrange),
    "ZeroPad": ZeroPad,
}


def _attach(network: nn.Module, entry: dict[str, Any]) -> Int8Layer:
    """Build the layer of `entry` and hang it into `network` at the dotted path that is its name."""
    name, kind = entry["name"], entry.get("type")
    if kind not in INT8_LAYERS:
        raise ValueError(f"layer {name!r} has the unknown type {kind!r}")
    *containers, attribute = name.split(".")
    try:
        layer = INT8_LAYERS[kind](entry)
        for container in containers:
            if container not in network._modules:
                network.add_module(container, nn.Module())
            network = network.get_submodule(container)
        network.add_module(attribute, layer)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"layer {name!r} can't be built: {error}") from None
    return layer


class Codes(NamedTuple):
    """Quantized values: scale * (values - zero_point)."""

    values: Tensor  # uint8 [n, ...]
    scale: Any  # float32 tensor, one for all [] or per image [n, 1, ...]; for the kernels a plain number
    zero_point: Any  # likewise


class FloatArithmetic:
    """The definition of the arithmetic, on float32 numbers.

    Codes and weights are integers below 2^9, and float32 holds every integer up to 2^24, so sums of their products are
    exact in all but contrived networks. Results are rounded half to even, as the kernels round.
    """

    saturates = False  # whether sums of products can, on this CPU, unless weights are split

    def numbers(self, layer: Any) -> tuple[Any, Any]:
        """Scale and zero point of the layer's output."""
        return layer.output_scale, layer.output_zero_point.float()

    def round(self, x: Tensor, scale: Any, zero_point: Any) -> Tensor:
        """Float -> uint8."""
        codes: Tensor = (x / scale).round_() + zero_point
        return codes.clamp_(0, 255).to(torch.uint8)

    def quantize(self, layer: Any, x: Tensor) -> Any:
        """Float -> codes of the layer's output scale."""
        scale, zero_point = self.numbers(layer)
        return Codes(self.round(x, scale, zero_point), scale, zero_point)

    def real(self, x: Any) -> Tensor:
        """Codes -> float; what is float already stays."""
        return torch.mul(x.values.float() - x.zero_point, x.scale) if isinstance(x, Codes) else x

    def quantize_per_image(self, x: Tensor) -> Codes:
        """Float -> codes that span each image's own range, which is widened to include 0."""
        dims = tuple(range(1, x.ndim))
        low, high = x.amin(dims, keepdim=True).clamp(max=0), x.amax(dims, keepdim=True).clamp(min=0)
        scale = (high - low) / 255
        scale = torch.where(scale > 0, scale, 1.0)
        zero_point = (-low / scale).round()
        return Codes(self.round(x, scale, zero_point), scale, zero_point)

    def convolve(self, layer: Any, x: Any, residual: Any) -> Any:
        """activation(convolution + residual), as codes or float; a residual is float, and so is the output then."""
        x = self.quantize_per_image(x) if layer.is_dynamic else x
        codes = x.values.float() - x.zero_point
        sums = functional.conv2d(codes, layer.weight_codes().float(), None, *layer.geometry)
        y = sums * (x.scale * layer.weight_scale[:, None, None]) + layer.bias[:, None, None]
        return layer.finish(self, y if residual is None else y.add_(self.real(residual)))

    def linear(self, layer: Any, x: Any) -> Tensor:
        """Linear layer, to float."""
        x = self.quantize_per_image(x) if layer.is_dynamic else x
        sums = functional.linear(x.values.float() - x.zero_point, layer.weight_codes().float())
        return torch.addcmul(layer.bias, sums, x.scale * layer.weight_scale)

    def add(self, layer: Any, x: Any, y: Any) -> Any:
        """Sum of codes or floats -> codes."""
        return layer.finish(self, self.real(x) + self.real(y))

    def rearrange(self, layer: Any, inputs: Any) -> Any:
        """Codes -> codes of the same scale; float, or some float -> float."""
        if not all(isinstance(x, Codes) for x in inputs):
            return layer.call([self.real(x) for x in inputs])
        return inputs[0]._replace(values=layer.move([x.values for x in inputs], inputs[0].zero_point))

    def max_pool(self, layer: Any, x: Any) -> Any:
        """Codes -> codes of the same scale; float -> float. PyTorch pools no uint8 beyond 255 pixels."""
        if not isinstance(x, Codes):
            return layer.call([x])
        return x._replace(values=layer.call([x.values.float()]).to(torch.uint8))


EXACT_INPUTS = 2**24 // (255 * 128)  # of a linear layer, whose sums float32 then holds in any case


class _Packed(NamedTuple):
    """The weight of a layer as oneDNN takes it."""

    weights: list[Tensor]  # codes that add up to the layer's, each in a layout of oneDNN's own
    scale: Tensor
    zero_point: Tensor


LARGEST_PAIR = 32767 // 255  # 128: the most that two weights may come to, for sums of 16 bits not to saturate


class Int8Kernels(FloatArithmetic):
    """The same arithmetic by oneDNN's int8 kernels, on plain uint8 and int8 tensors.

    A kernel knows one scale for its whole batch, so what is dynamic comes here image by image.
    """

    def __init__(self, *, saturates: bool = False) -> None:
        """saturates: whether the CPU adds two products in 16 bits, as x86 ones without VNNI do."""
        self.saturates = saturates

    def numbers(self, layer: Any) -> tuple[float, int]:
        """As plain numbers, read once."""
        if layer.numbers is None:
            layer.numbers = (layer.output_scale.item(), layer.output_zero_point.item())
        scale, zero_point = layer.numbers
        return scale, zero_point

    def quantize(self, layer: Any, x: Tensor) -> Any:
        """Float -> codes of the layer's output scale, in the kernels' memory format."""
        return super().quantize(layer, _channels_last(x))

    def parts(self, layer: Any) -> list[Tensor]:
        """The layer's codes; where sums of them could saturate on this CPU, two halves whose sums can't."""
        codes: Tensor = layer.weight_codes()
        half = LARGEST_PAIR // 2
        if not self.saturates or not can_saturate(codes):
            return [codes]
        return [codes.clamp(-half, half), codes - codes.clamp(-half, half)]

    def convolve(self, layer: Any, x: Any, residual: Any) -> Any:
        """As FloatArithmetic's, but a residual's memory is written over, and needs a ReLU after it."""
        if layer.packed is None:
            shape = list(_every(x if layer.is_dynamic else x.values, layer.steps).shape)
            packed = [
                torch.ops.onednn.qconv_prepack(part, layer.weight_scale, 1.0, 0, *layer.kernel_geometry, shape)
                for part in self.parts(layer)
            ]
            layer.packed = _Packed(packed, layer.weight_scale, torch.zeros(len(layer.bias), dtype=torch.int8))
        geometry = (layer.steps, *layer.kernel_geometry)
        weights = (*layer.packed, layer.bias, *geometry, "relu" if layer.activation else "none", residual)
        if layer.is_dynamic:
            return self._clip(layer, _scripted(_convolve_image)(x, *weights))
        if not layer.gives_codes or len(layer.packed.weights) > 1:  # float is what several kernels can add to
            y = self._clip(layer, _scripted(_convolve_codes)(*x, *weights, 1.0, 0, torch.float32))
            return self.quantize(layer, y) if layer.gives_codes else y
        # Codes of a ReLU6 reach no further than 6 already: their scale was chosen so.
        numbers = self.numbers(layer)
        return Codes(_scripted(_convolve_codes)(*x, *weights, *numbers, torch.uint8), *numbers)

    def _clip(self, layer: Any, y: Tensor) -> Tensor:
        """What a ReLU6 asks for beyond the ReLU that the kernel has computed."""
        return y.clamp_(max=6) if layer.activation == "relu6" else y

    def linear(self, layer: Any, x: Any) -> Tensor:
        """As FloatArithmetic's. Scaled by the kernel, sums would be rounded in ways that differ with the batch size."""
        if not layer.is_dynamic and layer.weight_shape[1] <= EXACT_INPUTS:
            return super().linear(layer, x)  # as exact, and a kernel for int8 takes longer to start than this to end
        if layer.packed is None:
            outputs = len(layer.bias)
            packed = [torch.ops.onednn.qlinear_prepack(part, None) for part in self.parts(layer)]
            layer.packed = _Packed(packed, torch.ones(outputs), torch.zeros(outputs, dtype=torch.int8))
        weights = (*layer.packed, layer.weight_scale, layer.bias)
        if layer.is_dynamic:
            return _scripted(_linear_image)(x, *weights)  # type: ignore[no-any-return]
        return _scripted(_linear_codes)(*x, *weights)  # type: ignore[no-any-return]


class QuantizedTensorKernels(Int8Kernels):
    """The same kernels behind PyTorch's quint8 tensors, for what is static.

    Their primitives are kept from call to call, so they start sooner. PyTorch announced that quint8 will go; then
    Int8Kernels serve.
    """

    def quantize(self, layer: Any, x: Tensor) -> Any:
        """Float -> quint8."""
        return torch.quantize_per_tensor(x, *self.numbers(layer), torch.quint8)

    def real(self, x: Any) -> Tensor:
        """quint8 -> float; what is float already stays."""
        return x.dequantize() if x.is_quantized else x  # type: ignore[no-any-return]

    def convolve(self, layer: Any, x: Any, residual: Any) -> Any:
        """As in Int8Kernels."""
        if layer.packed is None and layer.gives_codes and len(self.parts(layer)) == 1:
            zero_points = torch.zeros(len(layer.bias), dtype=torch.long)
            weight = torch._make_per_channel_quantized_tensor(layer.weight_codes(), layer.weight_scale, zero_points, 0)
            layer.packed = torch.ops.quantized.conv2d_prepack(weight, layer.bias, *layer.kernel_geometry)
        if layer.packed is None or isinstance(layer.packed, _Packed):
            return super().convolve(layer, x if layer.is_dynamic else _codes_of(x), residual)
        operator = torch.ops.quantized.conv2d_relu if layer.activation else torch.ops.quantized.conv2d
        return operator.new(_every(x, layer.steps), layer.packed, *self.numbers(layer))

    def linear(self, layer: Any, x: Any) -> Tensor:
        """As in Int8Kernels."""
        return super().linear(layer, x if layer.is_dynamic else _codes_of(x))

    def add(self, layer: Any, x: Any, y: Any) -> Any:
        """quint8 of two scales -> quint8 of the layer's."""
        if not (x.is_quantized and y.is_quantized and x.shape == y.shape):
            return super().add(layer, x, y)
        operator = torch.ops.quantized.add_relu if layer.activation else torch.ops.quantized.add
        return operator(x, y, *self.numbers(layer))

    def rearrange(self, layer: Any, inputs: Any) -> Any:
        """quint8 -> quint8; float, or some float -> float."""
        if not all(x.is_quantized for x in inputs):
            return layer.call([self.real(x) for x in inputs])
        return _quint8_of(super().rearrange(layer, [_codes_of(x) for x in inputs]))

    def max_pool(self, layer: Any, x: Any) -> Any:
        """quint8 -> quint8; float -> float."""
        return layer.call([x])


def _every(x: Tensor, steps: list[int]) -> Tensor:
    """Of [n, c, h, w] every so many rows and columns."""
    return x[:, :, :: steps[0], :: steps[1]] if max(steps) > 1 else x


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _codes_of(x: Tensor) -> Codes:
    """A view of a quint8 tensor: its own memory, no copy. A copy in a trace, which knows no such views."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # not exported, yet documented
        return Codes(x.int_repr(), x.q_scale(), x.q_zero_point())
    values = torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage(), x.storage_offset(), x.shape, x.stride())
    return Codes(values, x.q_scale(), x.q_zero_point())


def _quint8_of(x: Codes) -> Tensor:
    """The reverse of _codes_of."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # not exported, yet documented
        return torch._make_per_tensor_quantized_tensor(x.values, x.scale, x.zero_point)
    empty = torch._empty_affine_quantized([0], scale=x.scale, zero_point=x.zero_point, dtype=torch.quint8)
    return empty.set_(x.values.untyped_storage(), x.values.storage_offset(), x.values.shape, x.values.stride())


# What follows up to _scripted is TorchScript: one call each, and what depends on the image stays so in a trace.


def _convolve_codes(
    values: Tensor,
    scale: float,
    zero_point: int,
    weights: list[Tensor],
    weight_scale: Tensor,
    weight_zero_point: Tensor,
    bias: Tensor,
    steps: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    residual: Tensor | None,
    output_scale: float,
    output_zero_point: int,
    dtype: torch.dtype,
) -> Tensor:
    values = values[:, :, :: steps[0], :: steps[1]].contiguous(memory_format=torch.channels_last)
    rest: Tensor | None = bias  # is added but once
    result = residual if residual is None else residual.contiguous(memory_format=torch.channels_last)
    for index, weight in enumerate(weights):
        unary = activation if index == len(weights) - 1 else "none"
        if result is None:
            result = torch.ops.onednn.qconv2d_pointwise(
                values, scale, zero_point, weight, weight_scale, weight_zero_point, rest, stride, padding, dilation,
                groups, output_scale, output_zero_point, dtype, unary, [], "",
            )  # fmt: skip
        else:
            result = torch.ops.onednn.qconv2d_pointwise(
                values, scale, zero_point, weight, weight_scale, weight_zero_point, result, rest, stride, padding,
                dilation, groups, output_scale, output_zero_point, dtype, 1.0, 0, "sum", 1.0, unary, [], "",
            )  # fmt: skip
        rest = None
    assert result is not None
    return result


def _convolve_image(
    x: Tensor,
    weights: list[Tensor],
    weight_scale: Tensor,
    weight_zero_point: Tensor,
    bias: Tensor,
    steps: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    values, scale, zero_point = _image_codes(x)
    return _convolve_codes(
        values, scale, zero_point, weights, weight_scale, weight_zero_point, bias, steps, stride, padding, dilation,
        groups, activation, residual, 1.0, 0, torch.float32,
    )  # fmt: skip


def _linear_codes(
    values: Tensor,
    scale: float,
    zero_point: int,
    weights: list[Tensor],
    ones: Tensor,
    weight_zero_point: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
) -> Tensor:
    result = bias
    for weight in weights:
        sums = torch.ops.onednn.qlinear_pointwise(
            values, 1.0, zero_point, weight, ones, weight_zero_point, None, 1.0, 0, torch.float32, "none", [], ""
        )
        result = torch.addcmul(result, sums, scale * weight_scale)
    return result


def _linear_image(
    x: Tensor, weights: list[Tensor], ones: Tensor, weight_zero_point: Tensor, weight_scale: Tensor, bias: Tensor
) -> Tensor:
    values, scale, zero_point = _image_codes(x)
    return _linear_codes(values, scale, zero_point, weights, ones, weight_zero_point, weight_scale, bias)


def _image_codes(x: Tensor) -> tuple[Tensor, float, int]:
    """Float, one image -> the codes that span its range, their scale and their zero point."""
    low, high = torch.aminmax(_in_memory_order(x))
    bottom, top = min(float(low), 0.0), max(float(high), 0.0)
    scale = (top - bottom) / 255
    if scale == 0.0:
        scale = 1.0
    zero_point = int(round(-bottom / scale))  # noqa: RUF046  # TorchScript's round gives a float
    return _round_to_codes(x, scale, zero_point), scale, zero_point


def _round_in_one_pass(x: Tensor, scale: float, zero_point: int) -> Tensor:
    codes = torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)
    return _in_memory_of(codes, torch.empty(0, dtype=torch.uint8))


def _round_in_four(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return ((x / scale).round_() + zero_point).clamp_(0, 255).to(torch.uint8)


def _in_memory_of(source: Tensor, empty: Tensor) -> Tensor:
    """`empty`, of another dtype as wide, made to show the memory of `source`: no copy."""
    ordered = _in_memory_order(source)
    result: Tensor = torch.ops.aten.set_(empty, ordered, 0, ordered.size(), ordered.stride())
    return result.permute(0, 3, 1, 2) if _is_channels_last(source) else result


def _in_memory_order(x: Tensor) -> Tensor:
    """x, or [n, h, w, c] of a channels-last [n, c, h, w]: contiguous then without a copy."""
    return x.permute(0, 2, 3, 1) if _is_channels_last(x) else x.contiguous()


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


_round_to_codes = _round_in_one_pass if hasattr(torch, "quantize_per_tensor") else _round_in_four


@functools.cache
def _scripted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function in TorchScript; itself where a torch has none."""
    with warnings.catch_warnings(), contextlib.suppress(AttributeError, RuntimeError):
        warnings.simplefilter("ignore")  # that TorchScript is to go
        return torch.jit.script(function)  # type: ignore[no-any-return]
    return function


@contextlib.contextmanager
def _onednn_engine() -> Iterator[None]:
    """Have `torch.ops.quantized` use oneDNN: of the x86 engines only this one fuses a sum into a convolution."""
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"
    try:
        yield
    finally:
        torch.backends.quantized.engine = engine


@functools.cache
def cpu_arithmetic() -> FloatArithmetic:
    """The fastest arithmetic that this torch has and that is exact on this CPU."""
    for kind, saturates in itertools.product((QuantizedTensorKernels, Int8Kernels), (False, True)):
        kernels = kind(saturates=saturates)
        with warnings.catch_warnings(), contextlib.suppress(AttributeError, RuntimeError), _onednn_engine():
            warnings.simplefilter("ignore")  # that quint8 is to go: then we go on to the next
            if _is_exact(kernels, "static") and _is_exact(kernels, "dynamic"):
                return kernels
    return FloatArithmetic()


def can_saturate(codes: Tensor) -> bool:
    """Whether two of the int8 weights of some output channel, codes [out, ...], can saturate a sum of 16 bits.

    x86 CPUs without VNNI multiply and add by `vpmaddubsw`: two products of a uint8 and an int8 are added to one number
    of 16 bits, and what is above 32767 or below -32768 is cut to that, silently. Which two weights meet depends on the
    kernel, so any two of one output channel are taken to; and any activation may have the largest code, as calibration
    clips.
    """
    flat = codes.int().flatten(1)
    count = min(2, flat.shape[1])
    positive, negative = (part.clamp(min=0).topk(count).values.sum(1) for part in (flat, -flat))
    return bool((torch.maximum(positive, negative) > LARGEST_PAIR).any())


# What the kernels are tried on: input and output channels, kernel, stride, padding, groups.
PROBES = (
    (32, 32, 1, 1, 0, 1),
    (32, 16, 1, 2, 0, 1),
    (24, 8, 1, 2, 0, 1),
    (16, 16, 3, 1, 1, 1),
    (7, 9, 3, 1, 1, 1),
    (3, 16, 7, 2, 3, 1),
    (16, 16, 3, 1, 1, 16),
    (16, 16, 3, 2, 1, 16),
)
PROBE_ZERO_POINT = 93


def _is_exact(kernels: FloatArithmetic, scheme: str) -> bool:
    """Whether convolutions of many kinds come out right, with random weights and with the largest.

    On one thread, which other programs on the same cores don't hold up; but for strided 1x1 convolutions, where two
    threads have got in each other's way.
    """
    generator = torch.Generator().manual_seed(0)
    for probe in PROBES:
        layer = _probe_layer(scheme, *probe)
        layer.weight.copy_(torch.randint(-127, 128, layer.weight.shape, generator=generator))
        layer.weight[0], layer.weight[1] = 127, -127
        codes = torch.randint(0, 256, (1, probe[0], 12, 12), generator=generator)
        codes[:, 0, 0, 0], codes[..., 6:] = 0, 255
        _, _, kernel, stride, _, _ = probe
        with contextlib.nullcontext() if kernel < stride else _one_thread():
            result = _is_right(kernels, layer, codes)
        if not result:
            return False
    return True


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _probe_layer(
    scheme: str, in_channels: int, out_channels: int, kernel: int, stride: int, padding: int, groups: int
) -> Any:
    """A convolution whose weights have the scale 1."""
    pairs = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": 1}
    quantization = {"scheme": scheme, "output": "uint8 per tensor" if scheme == "static" else "float32"}
    entry: dict[str, Any] = {name: [size, size] for name, size in pairs.items()}
    entry |= {"in_channels": in_channels, "out_channels": out_channels, "groups": groups, "quantization": quantization}
    return QuantizedConv2d(entry)


def _is_right(kernels: FloatArithmetic, layer: Any, codes: Tensor) -> bool:
    """Whether the layer gives what float64 gives for the codes [1, c, h, w], which hold both 0 and 255.

    A code may be off by one, where a sum is a tie.
    """
    signal = codes - PROBE_ZERO_POINT  # a dynamic layer finds the scale 1 and this zero point in it
    sums = functional.conv2d(signal.double(), layer.weight.double(), None, *layer.geometry)
    if layer.is_dynamic:
        return torch.allclose(layer(kernels, _channels_last(signal.float())).double(), sums)
    scale = float(sums.abs().max()) / 127
    layer.output_scale.fill_(scale)
    layer.output_zero_point.fill_(128)
    quantize: Any = Quantize({"quantization": {"output": "uint8 per tensor"}})
    quantize.output_zero_point.fill_(PROBE_ZERO_POINT)
    result = layer(kernels, kernels.quantize(quantize, signal.float()))
    values = (result if isinstance(result, Codes) else _codes_of(result)).values
    return bool(((values - (sums / scale + 128).round()).abs() <= 1).all())


# ---- Coded weights ----
# An int8 network's state dict as one string of bytes, hardly longer than the entropy of its numbers.
#
# The numbers lie in matrices of bytes; a table says how often each byte is in a column, and rANS (Duda 2013,
# arXiv:1311.2540) spends on each the bits that it deserves. Its states are lanes that advance side by side (Giesen
# 2014, arXiv:1402.3392): a step takes a byte out of every lane, then fills those that run low with a word. The string:
#
#     CODED_HEADER   the mark, the CRC-32 of all that follows, that of the matrices, and how many lanes, words and
#                    bytes of tables there are
#     tables         UNIFORM, SAME or OWN for each column, all of them compressed by zlib
#     lanes          uint32, little-endian like every number here: the states to start from
#     words          uint16, in the order in which the lanes take them

CODED_KEY = "coded_weights"  # of the only tensor in the weights file, uint8 [bytes]
CODED_MARK = b"rANS"
CODED_HEADER = struct.Struct("<4s5I")
UNIFORM, SAME, OWN = b"\0", b"\1", b"\2"  # a table: all alike; as the column before; first and last byte, levels
PRECISION = 14  # bits of a frequency
TOTAL = 2**PRECISION  # the sum of the frequencies in a table
LOWEST, WORD = 2**16, 16  # what a state falls below before it is filled with so many bits
MOST_STEPS = 2**14  # through all that is coded: with fewer lanes, which need more, it would take too long
LEVELS = (0, *(math.isqrt(math.isqrt(math.isqrt(2 ** (n + 64)))) for n in range(8 * PRECISION + 1)))  # 8 to an octave
EVEN = bytes([1] * 256)  # the levels where all are alike
MOST_TAPS = 64  # of a kernel that has a column for each of them


def decode_weights(coded: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """The state dict of `network`, an int8 one, out of `coded`, uint8 [bytes]; it is not yet loaded.

    Names, shapes and types are the network's own: memory is taken for them, and for `coded` a few times. Raises
    ValueError for bytes that were damaged, or coded for another network.
    """
    if coded.dtype != torch.uint8 or coded.dim() != 1 or not isinstance(network, Int8Network):
        raise ValueError("coded weights are bytes in a row, and an int8 network's")
    groups = coded_groups(network)
    tables, lanes, checksum = _open_coded(_bytes_of(coded), groups)
    state: dict[str, Tensor] = {}
    found = 0
    with _one_thread():  # steps are too short for two, which would wait for each other
        for group in groups:
            matrix = torch.empty(group.columns, group.rows, dtype=torch.uint8)
            for column in matrix:
                lanes.take(_table(next(tables)), column)
            state |= group.tensors(matrix)
            found = zlib.crc32(_bytes_of(matrix), found)
    lanes.finish()
    if found != checksum:
        raise ValueError("the coded weights are not those that were coded: their checksum is another")
    return state


def _bytes_of(x: Tensor) -> bytes:
    x = x.contiguous()  # lives until its memory is read
    return ctypes.string_at(x.data_ptr(), x.nbytes)


class CodedGroup(NamedTuple):
    """Tensors that are coded together. A row of their matrix has the bytes of a number, or a kernel's int8 weights."""

    shapes: dict[str, Sequence[int]]  # of the tensors, by name
    dtype: torch.dtype
    columns: int
    is_packed: bool  # whether the network holds two codes to a byte

    @property
    def rows(self) -> int:
        """Of the matrix."""
        return sum(map(math.prod, self.shapes.values())) * self.dtype.itemsize // self.columns

    def matrix(self, state: Mapping[str, Tensor]) -> Tensor:
        """The bytes of these tensors in `state`, uint8 [columns, rows]: plus 128, so that -1 is beside 0."""
        parts = [unpack(state[name], shape) if self.is_packed else state[name] for name, shape in self.shapes.items()]
        values = torch.cat([part.flatten() for part in parts]).view(torch.uint8) ^ 128
        return values.view(-1, self.columns).T

    def tensors(self, matrix: Tensor) -> dict[str, Tensor]:
        """The reverse of `matrix`."""
        values = (matrix.T.flatten() ^ 128).view(self.dtype)
        parts = zip(self.shapes.items(), torch.split(values, [math.prod(s) for s in self.shapes.values()]), strict=True)
        return {name: pack(part) if self.is_packed else part.reshape(tuple(shape)) for (name, shape), part in parts}


def coded_groups(network: Int8Network) -> list[CodedGroup]:
    """How a state dict is coded: each int8 weight by itself, all other tensors with those of the same name."""
    layers = {f"{name}.weight": layer for name, layer in network.named_modules() if isinstance(layer, _Int8Weights)}
    groups = [
        CodedGroup({name: layer.weight_shape}, torch.int8, _taps(layer.weight_shape), layer.is_packed)
        for name, layer in layers.items()
    ]
    others: dict[tuple[str, torch.dtype], dict[str, Sequence[int]]] = defaultdict(dict)
    for name, tensor in network.state_dict().items():
        if name not in layers:
            others[name.rpartition(".")[2], tensor.dtype][name] = tensor.shape
    return groups + [CodedGroup(shapes, dtype, dtype.itemsize, False) for (_, dtype), shapes in others.items()]


def _taps(shape: Sequence[int]) -> int:
    taps = math.prod(shape[2:])
    return taps if taps <= MOST_TAPS else 1


def frequencies_of(levels: bytes) -> Tensor:
    """How often each of the 256 bytes is in TOTAL, int64, for its level: 0 for never, else its place in LEVELS.

    Computed in integers, so that it is the same on every machine.
    """
    weights = torch.tensor([LEVELS[level] for level in levels])
    present = weights > 0
    ends = weights.cumsum(0) * (TOTAL - int(present.sum())) // int(weights.sum()) + present.cumsum(0)
    frequencies: Tensor = ends.diff(prepend=ends.new_zeros(1))
    return frequencies


class _Table(NamedTuple):
    """What each of the TOTAL values says that the low bits of a state can have."""

    symbols: Tensor  # uint8: the byte that it stands for
    frequencies: Tensor  # int64, of that byte
    offsets: Tensor  # int64: how many lower values stand for the same byte


@functools.lru_cache(maxsize=1)
def _table(levels: bytes) -> _Table:
    frequencies = frequencies_of(levels)
    symbols = torch.arange(256).repeat_interleave(frequencies)
    starts = frequencies.cumsum(0) - frequencies
    return _Table(symbols.to(torch.uint8), frequencies[symbols], torch.arange(TOTAL) - starts[symbols])


class _Lanes:
    """The states, and the words that they are filled with."""

    def __init__(self, states: Tensor, words: Tensor) -> None:
        """states: int64 [lanes], below 2^32; words: int64, each below 2^16."""
        self._states, self._words, self._place = states, words, 0

    def take(self, table: _Table, column: Tensor) -> None:
        """Fill `column`, uint8 [rows], with as many bytes."""
        for row in torch.split(column, len(self._states)):
            states = self._states[: len(row)]
            low_bits = states & (TOTAL - 1)
            torch.index_select(table.symbols, 0, low_bits, out=row)
            states >>= PRECISION
            states *= table.frequencies.index_select(0, low_bits)
            states += table.offsets.index_select(0, low_bits)
            self._fill(states)

    def _fill(self, states: Tensor) -> None:
        """Give each state below LOWEST the next word."""
        are_low = states < LOWEST
        start, self._place = self._place, self._place + int(are_low.sum())
        if self._place > len(self._words):
            raise ValueError("the coded weights have too few words")
        states <<= are_low * WORD
        states += torch.zeros_like(states).masked_scatter_(are_low, self._words[start : self._place])

    def finish(self) -> None:
        """Raise ValueError unless every lane is as the first byte found it, and no word is left."""
        if self._place < len(self._words) or (self._states != LOWEST).any():
            raise ValueError("the coded weights are another network's: they don't end where they should")


def _open_coded(content: bytes, groups: Sequence[CodedGroup]) -> tuple[Iterator[bytes], _Lanes, int]:
    """The levels of each column, the lanes before the first step, and the checksum of the matrices."""
    if len(content) < CODED_HEADER.size:
        raise ValueError("the coded weights end within their header")
    mark, checksum, checksum_of_matrices, lanes, words, tables = CODED_HEADER.unpack_from(content)
    ends = list(itertools.accumulate([CODED_HEADER.size, tables, 4 * lanes, 2 * words]))
    if mark != CODED_MARK or ends[-1] != len(content):
        raise ValueError("the coded weights don't have the parts that their header tells of")
    if zlib.crc32(content[8:]) != checksum:
        raise ValueError("the coded weights were damaged: they have another checksum")
    if sum(group.rows * group.columns for group in groups) > MOST_STEPS * lanes:
        raise ValueError(f"the coded weights have too few lanes: {lanes}")
    columns = sum(group.columns for group in groups)
    stored, states, rest = (content[start:end] for start, end in itertools.pairwise(ends))
    steps = _Lanes(_numbers(states, torch.int32).long() & 0xFFFFFFFF, _numbers(rest, torch.int16).long() & 0xFFFF)
    return _read_levels(stored, columns), steps, checksum_of_matrices


def _numbers(content: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _read_levels(stored: bytes, columns: int) -> Iterator[bytes]:
    """For each column the levels of all 256 bytes."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(stored, columns * (3 + 256) + 1)
    except zlib.error as error:
        raise ValueError(f"the tables of the coded weights were damaged: {error}") from None
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("the tables of the coded weights don't end where they should")
    stream, found = io.BytesIO(content), [EVEN]
    for _ in range(columns):
        found.append(_read_table(stream, found[-1]))
    if stream.read(1):
        raise ValueError("the coded weights have more tables than there are columns")
    return iter(found[1:])


def _read_table(stream: IO[bytes], before: bytes) -> bytes:
    """The levels of one column; before: those of the last one."""
    kind = stream.read(1)
    if kind in (UNIFORM, SAME):
        return EVEN if kind == UNIFORM else before
    low, high = stream.read(1), stream.read(1)
    levels = stream.read(max(0, high[0] - low[0] + 1)) if low and high else b""
    if kind != OWN or not any(levels) or max(levels) >= len(LEVELS) or len(levels) <= high[0] - low[0]:
        raise ValueError("the coded weights have a table that can't be")
    return bytes(low[0]) + levels + bytes(255 - high[0])
