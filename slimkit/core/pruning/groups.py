"""Groups: the layers whose channels must be cut together, derived from a traced graph."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from slimkit.core.measure.macs import COUNTED
from slimkit.core.pruning.atoms import distinct
from slimkit.core.pruning.network import computes_weight
from slimkit.core.pruning.trace import LayerChannels, trace_channels

Side = Literal["inputs", "outputs"]
Place = tuple[str, Side]  # one side of the layer of that name


@dataclass(frozen=True)
class Member:
    """What a group's channels are in one layer."""

    layer: str
    side: Side
    positions: Tensor  # int64 [width, k]: channel i of the group is these k channels of the layer


@dataclass(frozen=True)
class Group:
    """Layers whose channels are cut together: cutting channel i cuts row i of each member's positions."""

    members: tuple[Member, ...]

    @property
    def width(self) -> int:
        """How many channels there are to choose from."""
        return len(self.members[0].positions)

    def makers(self, module: nn.Module) -> tuple[Member, ...]:
        """Those members that make the channels: convolutions and linear layers, not those that only scale."""
        return tuple(
            member
            for member in self.members
            if member.side == "outputs" and isinstance(module.get_submodule(member.layer), COUNTED)
        )


@dataclass(frozen=True)
class Grouping:
    """All that can be cut, in execution order, and for each layer that can't (or not wholly) be cut: why."""

    groups: tuple[Group, ...]
    whole: dict[str, str]


@dataclass(frozen=True)
class Cut:
    """The channels that one layer loses: sorted positions, int64."""

    inputs: Tensor
    outputs: Tensor


def find_groups(module: nn.Module, input_shape: Sequence[int]) -> Grouping:
    """The groups of a network for images of `input_shape` (channels, ...). Raises ModelError if it can't be traced."""
    trace = trace_channels(module, input_shape)
    roots, reasons = trace.atoms.roots(), trace.atoms.reasons()
    places = _places(trace.layers, roots)
    frozen = torch.zeros(len(roots), dtype=torch.bool)
    frozen[list(reasons)] = True
    whole = _unreached(module, trace.layers)
    for (layer, side), channels in places.items():
        if side == "outputs" and isinstance(module.get_submodule(layer), COUNTED) and frozen[channels].any():
            whole.setdefault(layer, reasons[int(channels[frozen[channels]][0])])
    groups = []
    for group in _alike(places, frozen):
        if group.width > 1:
            groups.append(group)
        else:
            whole = {maker.layer: "its channels could only go all together" for maker in group.makers(module)} | whole
    return Grouping(tuple(groups), {name: whole[name] for name, _ in module.named_modules() if name in whole})


def merge_cuts(groups: Sequence[Group], chosen: Sequence[Tensor]) -> dict[str, Cut]:
    """What each layer loses when group i loses its channels `chosen[i]` (int64)."""
    lost: dict[Place, list[Tensor]] = defaultdict(list)
    for group, channels in zip(groups, chosen, strict=True):
        for member in group.members:
            lost[member.layer, member.side].append(member.positions[channels].flatten())
    nothing = [torch.empty(0, dtype=torch.int64)]
    return {
        layer: Cut(*(torch.cat(lost.get((layer, side), nothing)).sort().values for side in ("inputs", "outputs")))
        for layer in dict.fromkeys(layer for layer, _ in lost)
    }


def _places(layers: Mapping[str, LayerChannels], roots: Tensor) -> dict[Place, Tensor]:
    """For each side of each layer, in execution order: the root of each of its channels, int64 [channels]."""
    places: dict[Place, Tensor] = {}
    for name, channels in layers.items():
        if channels.inputs is not channels.outputs:
            places[name, "inputs"] = roots[channels.inputs]
        places[name, "outputs"] = roots[channels.outputs]
    return places


def _alike(places: Mapping[Place, Tensor], frozen: Tensor) -> list[Group]:
    """The groups: those roots belong together that have as many channels as each other in every place.

    frozen: bool [roots], which of them must stay.
    """
    members: dict[int, list[Member]] = defaultdict(list)
    marks = _marks(places, len(frozen))
    for (layer, side), roots in places.items():
        by_root = roots.argsort(stable=True)
        by_root = by_root[~frozen[roots[by_root]]]
        found = marks[roots[by_root]]
        for mark in distinct(found):
            positions = by_root[found == mark]
            width = len(roots[positions].unique())  # type: ignore[no-untyped-call]  # torch lacks the annotation
            members[mark].append(Member(layer, side, positions.view(width, -1)))
    return [Group(tuple(each)) for each in members.values()]


def _marks(places: Mapping[Place, Tensor], roots: int) -> Tensor:
    """A number for each root, the same for two that have as many channels as each other in every place: int64 [roots].

    It is a sum over places of that count times a random 64-bit number, so it differs where the counts do.
    """
    generator = torch.Generator().manual_seed(0)
    marks = torch.zeros(roots, dtype=torch.int64)
    for channels in places.values():
        factor = torch.randint(-(2**62), 2**62, (1,), generator=generator)
        marks += factor * torch.bincount(channels, minlength=roots)  # int64 wraps around
    return marks


def _unreached(module: nn.Module, reached: Mapping[str, LayerChannels]) -> dict[str, str]:
    return {
        name: "its weight is computed from others" if computes_weight(layer) else "it is not called by itself"
        for name, layer in module.named_modules()
        if isinstance(layer, COUNTED) and name not in reached
    }
