"""A call of an operation, as the readers of `functions.py` see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from slimkit.core.errors import ModelError
from slimkit.core.graph import Node, Size
from slimkit.core.quantization.lowering.traced import OPERATION


@dataclass(frozen=True)
class Call:
    """One call of a function without weights."""

    type: str  # of the standalone layer, or "Identity"
    sources: tuple[fx.Node, ...]  # the tensors that it reads
    options: dict[str, Any]  # "function" and "arguments", in which {"input": i} stands for sources[i]


class Reading:
    """A node, as the readers of this page see it."""

    def __init__(self, traced: fx.Node) -> None:
        self.node: Node = traced.meta[OPERATION]
        self.traced = traced
        self.sources = tuple(n for n in traced.all_input_nodes if "shape" in n.meta)
        self.shape: tuple[int, ...] = traced.meta["shape"]

    def __getitem__(self, name: str) -> Any:
        """An argument as JSON has it: {"input": i} for a tensor."""
        if any(self._follows_batch(name)):
            raise self.refuse("takes a number that follows the number of images")
        return self._encoded(self.traced.kwargs.get(name))

    def tensor(self, name: str) -> Tensor:
        """A tensor of the network's own."""
        network = self.traced.graph.owning_module
        assert network is not None  # it was made for one
        path, _, attribute = name.rpartition(".")
        found: Tensor = getattr(network.get_submodule(path), attribute)
        return found

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the sources."""
        return [source.meta["shape"] for source in self.sources]

    @property
    def sizes(self) -> list[int]:
        """The shape of the value, in which -1 stands for what follows the number of images."""
        name = {"reshape": "shape", "expand": "size"}.get(self.node.operation)
        follows = self._follows_batch(name) if name else [True]
        if sum(follows) > 1:
            raise self.refuse("gives several dimensions that follow the number of images")
        return [-1 if i < len(follows) and follows[i] else size for i, size in enumerate(self.shape)]

    @property
    def repeats_images(self) -> bool:
        """Whether what is the same for all images is repeated for each, and along no other dimension."""
        times = self.node.arguments["repeats"]
        assert isinstance(times, tuple)
        is_each = times[0] == Size("image", (0,)) and set(times[1:]) <= {1}
        return is_each and len(times) == len(self.shapes[0]) and self.shapes[0][0] == 1

    def call(self, kind: str, function: str, *arguments: Any, **keywords: Any) -> Call:
        """What calls a function of `model.CALLS`."""
        options = {"function": function, "arguments": list(arguments)}
        return Call(kind, self.sources, options | ({"keywords": keywords} if keywords else {}))

    def refuse(self, what: str = "has no form in an int8 network") -> ModelError:
        """The error for what can't be written down."""
        where = f" at {self.node.source}" if self.node.source else ""
        message = f"{self.node.name!r} ({self.node.operation}{where}) {what}."
        return ModelError(message, "Keep this model in float.")

    def _follows_batch(self, name: str) -> list[bool]:
        """Of an argument, or of each of its parts."""
        given = self.node.arguments.get(name)
        parts = given if isinstance(given, tuple) else (given,)
        return [isinstance(part, Size) and part.follows_batch for part in parts]

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return {"input": self.sources.index(value)} if value in self.sources else value.meta["value"]
        return [self._encoded(part) for part in value] if isinstance(value, list | tuple) else value
