"""Cutting channels out of a graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor, nn

from slimkit.core.graph import Graph
from slimkit.core.pruning.channels.groups import Grouping
from slimkit.core.pruning.channels.trace import spans
from slimkit.core.pruning.cut.arguments import Kept, renumbered, rewritten


def cut_channels(grouping: Grouping, chosen: Sequence[Tensor]) -> Graph:
    """The graph without the channels `chosen[i]` (int64) of group i; tensors that lose none are the very same."""
    kept = Kept(grouping.trace, grouping.left(chosen))
    graph = grouping.graph
    tensors = dict(graph.tensors)
    for node in graph.nodes:
        if (
            node.operation in ("index", "index_select")
            and node.weights
            and (node.weights[0], 0) in grouping.trace.tensors
        ):
            tensors[node.weights[0]] = renumbered(node, graph.tensors[node.weights[0]], kept)
    for (name, dim), atoms in grouping.trace.tensors.items():
        left = kept.atoms[atoms]
        if not left.all():
            tensors[name] = _selected(tensors[name], dim, left.nonzero().flatten())
    nodes = tuple(rewritten(node, kept) for node in graph.nodes)
    return dataclasses.replace(graph, nodes=nodes, tensors=tensors)


def _selected(tensor: Tensor, dim: int, places: Tensor) -> Tensor:
    selected = tensor.detach().index_select(dim, places)
    return nn.Parameter(selected, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else selected


def channel_masks(kept: Kept) -> dict[str, dict[str, Tensor]]:
    """For each node that adds up over channels, and each input of it that loses some: what to multiply it by."""
    masks: dict[str, dict[str, Tensor]] = {}
    for node, inputs in kept.trace.mixed.items():
        for name in inputs:
            mask = kept.atoms[_without_repeats(kept.trace.values[name])]
            if not mask.all():
                masks.setdefault(node, {})[name] = mask.float()
    return masks


def _without_repeats(atoms: Tensor) -> Tensor:
    """The first along each dimension in which nothing differs."""
    channels = spans(atoms)
    return atoms[tuple(slice(None) if dim in channels else slice(1) for dim in range(atoms.dim()))]
