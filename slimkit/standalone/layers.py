"""The operations of a graph that are whole layers of torch.nn, as such layers.

What looks at the modules of a network (hooks, optimizers, whoever freezes BatchNorm) finds in a graph's network the
convolutions, linear layers and norms that the original had, at their paths.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

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
