"""Groups: the channels that must be cut together, derived from the trace of a graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slimkit.core.graph import Graph
from slimkit.core.pruning.channels.atoms import distinct
from slimkit.core.pruning.channels.means import means_as_sums
from slimkit.core.pruning.channels.rules import trace_channels
from slimkit.core.pruning.channels.trace import ChannelLayer, Place, Trace
from slimkit.core.pruning.cut.arguments import follows_channels

Side = Literal["inputs", "outputs"]


@dataclass(frozen=True)
class Member:
    """What a group's channels are in one layer."""

    layer: ChannelLayer
    side: Side
    positions: Tensor  # int64 [width, k]: channel i of the group is these k channels of the layer


@dataclass(frozen=True)
class Group:
    """Channels of which any can be cut: channel i with row i of each member's positions."""

    roots: Tensor  # of the atoms that go with each channel: int64 [width]
    members: tuple[Member, ...]
    tensors: Mapping[Place, int]  # how many entries along a dimension of a tensor go with a channel

    @property
    def width(self) -> int:
        """How many channels there are to choose from."""
        return len(self.roots)

    @property
    def makers(self) -> tuple[Member, ...]:
        """Those members that make the channels: weights, not what only scales."""
        return tuple(m for m in self.members if m.side == "outputs" and m.layer.kind == "weighted")

    @property
    def readers(self) -> tuple[Member, ...]:
        """Those members whose weights read the channels."""
        return tuple(m for m in self.members if m.side == "inputs")

    @property
    def name(self) -> str:
        """The first layer that makes the channels."""
        return (self.makers or self.members)[0].layer.name


@dataclass(frozen=True)
class Grouping:
    """All that can be cut, in the order that it runs, and for each layer that can't (or not wholly) be cut: why."""

    trace: Trace
    roots: Tensor  # of each atom: int64 [atoms]
    groups: tuple[Group, ...]
    whole: dict[str, str]

    @property
    def graph(self) -> Graph:
        """The network."""
        return self.trace.graph

    def left(self, chosen: Sequence[Tensor]) -> Tensor:
        """Which atoms are left when group i loses its channels `chosen[i]` (int64): bool [atoms]."""
        kept = torch.ones(len(self.roots), dtype=torch.bool)
        for group, channels in zip(self.groups, chosen, strict=True):
            kept[group.roots[channels]] = False
        return kept[self.roots]


def find_groups(graph: Graph, *, fixed_arguments: bool = False) -> Grouping:
    """The groups of a network.

    fixed_arguments: keep whole what can be cut only where the sizes that the network's code gives change too.
    """
    trace = trace_channels(graph)
    if fixed_arguments:
        for node in graph.nodes:
            for atoms in follows_channels(node, trace.values):
                trace.atoms.freeze(atoms, "its width is written in the network's code")
    elif (summed := means_as_sums(trace)) is not graph:
        trace = trace_channels(summed)
    roots, reasons = trace.atoms.roots(), trace.atoms.reasons()
    frozen = torch.zeros(len(roots), dtype=torch.bool)
    frozen[list(reasons)] = True
    whole: dict[str, str] = {}
    for layer in trace.layers.values():
        channels = roots[layer.outputs]
        if layer.kind == "weighted" and frozen[channels].any():
            whole[layer.name] = reasons[int(channels[frozen[channels]][0])]
    groups = []
    for group in _alike(trace, roots, frozen):
        if group.width > 1:
            groups.append(group)
        else:
            alone = {maker.layer.name: "its channels could only go all together" for maker in group.makers}
            whole = alone | whole
    order = [name for name in trace.layers if name in whole]
    return Grouping(trace, roots, tuple(groups), {name: whole[name] for name in order})


def _sides(trace: Trace) -> Iterator[tuple[ChannelLayer, Side, Tensor]]:
    """For each side of each layer, in execution order: its atoms."""
    for layer in trace.layers.values():
        if layer.kind == "weighted":
            yield layer, "inputs", layer.inputs
        yield layer, "outputs", layer.outputs


def _alike(trace: Trace, roots: Tensor, frozen: Tensor) -> list[Group]:
    """The groups: those roots belong together that are found as often as each other in every place.

    frozen: bool [roots], which of them must stay.
    """
    sides = [(layer, side, roots[atoms]) for layer, side, atoms in _sides(trace)]
    marks = _marks([*(atoms for _, _, atoms in sides), *_places(trace, roots)], len(roots))
    members: dict[int, list[Member]] = defaultdict(list)
    for layer, side, channels in sides:
        for mark, positions in _rows(channels, marks, frozen):
            members[mark].append(Member(layer, side, positions))
    tensors: dict[int, dict[Place, int]] = defaultdict(dict)
    for place, atoms in trace.tensors.items():
        for mark, positions in _rows(roots[atoms], marks, frozen):
            tensors[mark][place] = positions.shape[1]
    return [
        Group(_roots_of(own[0], roots), tuple(own), tensors[mark])
        for mark, own in members.items()
        if any(member.layer.kind == "weighted" for member in own)
    ]


def _roots_of(member: Member, roots: Tensor) -> Tensor:
    atoms = member.layer.outputs if member.side == "outputs" else member.layer.inputs
    return roots[atoms][member.positions[:, 0]]


def _rows(channels: Tensor, marks: Tensor, frozen: Tensor) -> Iterator[tuple[int, Tensor]]:
    """For each group with channels in a place, its mark and where they are: int64 [width, k], by root."""
    by_root = channels.argsort(stable=True)
    by_root = by_root[~frozen[channels[by_root]]]
    found = marks[channels[by_root]]
    for mark in distinct(found):
        positions = by_root[found == mark]
        width = len(channels[positions].unique())  # type: ignore[no-untyped-call]  # torch lacks the annotation
        yield mark, positions.view(width, -1)


def _places(trace: Trace, roots: Tensor) -> Iterator[Tensor]:
    """The roots of what lies in each tensor and each value; what a value repeats over space counts once."""
    for atoms in trace.tensors.values():
        yield roots[atoms]
    for atoms in trace.values.values():
        for dim in range(atoms.dim()):
            if atoms.stride(dim) == 0:
                atoms = atoms.narrow(dim, 0, 1)
        yield roots[atoms].flatten()


def _marks(places: Sequence[Tensor], roots: int) -> Tensor:
    """A number for each root, the same for two that are found as often as each other in every place: int64 [roots].

    It is a sum over places of that count times a random 64-bit number, so it differs where the counts do.
    """
    generator = torch.Generator().manual_seed(0)
    marks = torch.zeros(roots, dtype=torch.int64)
    for channels in places:
        factor = torch.randint(-(2**62), 2**62, (1,), generator=generator)
        marks += factor * torch.bincount(channels, minlength=roots)  # int64 wraps around
    return marks
