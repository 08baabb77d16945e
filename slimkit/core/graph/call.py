"""One call of an exported program, as the readers of spellings see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, fx

from slimkit.core.errors import ModelError
from slimkit.core.graph.node import Weight
from slimkit.core.graph.source import source_line


class Emitter(Protocol):
    """What reads the calls, see `normalize.py`."""

    def add(self, node: fx.Node, operation: str, arguments: Mapping[str, object]) -> Name:
        """Append a node; its name."""

    def result(self, value: object) -> Result:
        """What a call before gave."""


class Name(str):
    """The name of a node, told by its type from text that an operation takes: "tanh" may be either."""

    __slots__ = ()


@dataclass(frozen=True)
class Parts:
    """The results of one call, each made when it is read."""

    takers: tuple[Callable[[], Result], ...]

    def __len__(self) -> int:
        return len(self.takers)

    def take(self, index: int) -> Result:
        """The result at `index`."""
        return self.takers[index]()


Result = Name | Weight | Parts  # a node (IMAGE too), a tensor, or several


@dataclass(frozen=True)
class Call:
    """One call of the exported program, its arguments bound to the names of the schema."""

    emitter: Emitter
    node: fx.Node
    arguments: Mapping[str, object]

    def __getitem__(self, name: str) -> object:
        return self.arguments[name]

    def emit(self, operation: str, arguments: Mapping[str, object] | None = None) -> Name:
        """Append a node of this call, with its own arguments or others."""
        return self.emitter.add(self.node, operation, self.arguments if arguments is None else arguments)

    def renamed(self, operation: str, *keep: str, **more: object) -> Name:
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


def dimension(call: Call, dim: object) -> int:
    """A dimension of the call's input, counted from 0."""
    assert isinstance(dim, int)
    return dim % max(call.own_input.dim(), 1)


def dimensions(call: Call, dims: object) -> list[int]:
    """The dimensions, from 0 on: all where none are given."""
    if dims is None or dims == []:
        return list(range(call.own_input.dim()))
    return [dimension(call, dim) for dim in ([dims] if isinstance(dims, int) else dims)]  # type: ignore[attr-defined]


def unread(call: Call, count: int) -> tuple[Callable[[], Result], ...]:
    """Takers of results that have no normal form: they raise ModelError, if they are read."""

    def refuse() -> Result:
        raise call.refuse(
            f"The network uses a second result of {call.node.target}, which slimkit can't write down,",
            "Use its first result alone.",
        )

    return (refuse,) * count


def traced_parts(call: Call) -> Sequence[Tensor]:
    """The traced values of a call that gives several."""
    parts: Sequence[Tensor] = call.node.meta["val"]
    return parts
