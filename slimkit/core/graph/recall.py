"""Graphs that were captured before: what is captured of a network again differs in nothing but its tensors.

Commands look at a network many times, at copies with other weights among others. torch.export takes a second or more
for each. What is recalled is compared with the network, as what is captured is, so a network that only looks like one
from before is captured anew.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import nn

from slimkit.core.graph.node import Graph

MOST = 8  # graphs, without their tensors

_TENSORS_AND_MODULES = {"_parameters", "_buffers", "_modules", "training"}

_graphs: OrderedDict[Hashable, tuple[Graph, tuple[str, ...]]] = OrderedDict()


@dataclass(frozen=True, eq=False)
class _Very:
    """An object that is equal to nothing but itself, and is kept, so that no other gets its identity."""

    value: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Very) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def likeness_of(module: nn.Module, *options: Hashable) -> Hashable:
    """What two networks of which one graph may be captured have in common: all but the values of their tensors.

    options: of the capture.
    """
    tensors = (*module.named_parameters(), *module.named_buffers())
    shapes = tuple((name, tuple(t.shape), t.dtype, isinstance(t, nn.Parameter)) for name, t in tensors)
    parts = tuple((path, type(part), _settings(part)) for path, part in module.named_modules())
    return parts, shapes, options


def _settings(part: nn.Module) -> Hashable:
    """The attributes of a module, and its hooks."""
    kept = {key: value for key, value in vars(part).items() if key not in _TENSORS_AND_MODULES}
    return tuple((key, _frozen(value)) for key, value in kept.items())


def _frozen(value: object) -> Hashable:
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return type(value), value
    if isinstance(value, list | tuple | set):
        return type(value), tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return type(value), tuple((_frozen(key), _frozen(item)) for key, item in value.items())
    return _Very(value)


def remember(likeness: Hashable, graph: Graph, module: nn.Module) -> None:
    """Keep a graph, if all of its tensors are the network's own."""
    own = {name: id(tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    if any(own.get(name) != id(tensor) for name, tensor in graph.tensors.items()):
        return
    _graphs[likeness] = dataclasses.replace(graph, tensors={}), tuple(graph.tensors)
    if len(_graphs) > MOST:
        _graphs.popitem(last=False)


def recall(likeness: Hashable, module: nn.Module) -> Graph | None:
    """The graph of a network of that likeness, with the tensors of this one."""
    if likeness not in _graphs:
        return None
    graph, names = _graphs[likeness]
    own = dict((*module.named_parameters(), *module.named_buffers()))
    return dataclasses.replace(graph, tensors={name: own[name] for name in names})


def forget(likeness: Hashable) -> None:
    """Drop a graph that was not right."""
    _graphs.pop(likeness, None)
