"""Networks as graphs of ATen operations, and the interpreter that runs them.

A graph is data. Each entry of its layers names one operation of `operations.py`, the layers whose results it reads, and
the operation's arguments by the names of torch's own schemas.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimkit.standalone.layers import layer_path, set_tensor, torch_layers
from slimkit.standalone.operations import first_result, overload, plain_argument

SIZES: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "max": max,
    "min": min,
}

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

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies what is tied to these very tensors."""
        return {**self.__dict__, "_GraphNetwork__steps": []}


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
