"""The arguments of a node that must follow when channels go: sizes, bounds, counts of groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slimkit.core.graph import Argument, Input, Node, Size
from slimkit.core.pruning.channels.trace import Trace, spans

SHAPES = {"reshape": "shape", "expand": "size", "full": "size"}  # operations that give the shape of their value


@dataclass(frozen=True)
class Kept:
    """Which places of the values are left."""

    trace: Trace
    atoms: Tensor  # bool [atoms]

    def along(self, atoms: Tensor, dim: int) -> Tensor:
        """Which of the places along a dimension are left, bool [size]: those at which anything is."""
        mask = self.atoms[atoms]
        others = [other for other in range(mask.dim()) if other != dim]
        return mask.amax(others) if others else mask

    def of_input(self, node: Node, argument: str, dim: int) -> Tensor:
        """The same for an input of a node."""
        given = node.arguments[argument]
        assert isinstance(given, Input)
        return self.along(self.trace.values[node.inputs[given.index]], dim)

    def of_value(self, node: Node, dim: int) -> Tensor:
        """The same for its value."""
        return self.along(self.trace.values[node.name], dim)


def rewritten(node: Node, kept: Kept) -> Node:
    """The node as it is to be once the other channels are gone."""
    change = _CHANGES.get(node.operation)
    return node if change is None else replace(node, arguments={**node.arguments, **change(node, kept)})


def follows_channels(node: Node, values: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """The atoms for which an argument of the node would change if some of them went."""
    if node.operation not in _CHANGES or node.operation.startswith("conv"):
        return
    for atoms in (values[node.name], *(values[name] for name in node.inputs)):
        channels = spans(atoms)
        if node.operation in SHAPES:
            channels = [dim for dim in channels if dim in spans(values[node.name])]
        elif isinstance(node.arguments.get("dim"), int):
            channels = [dim for dim in channels if dim == node.arguments["dim"]]
        if channels:
            yield atoms


def _shape(node: Node, kept: Kept) -> dict[str, Argument]:
    name = SHAPES[node.operation]
    sizes = node.arguments[name]
    assert isinstance(sizes, tuple)
    atoms = kept.trace.values[node.name]
    channels = spans(atoms)
    return {name: tuple(_resized(s, kept.along(atoms, d)) if d in channels else s for d, s in enumerate(sizes))}


def _resized(size: Argument, left: Tensor) -> Argument:
    """A size, or a multiple of it that follows the images, of which so much is left."""
    before, after = len(left), int(left.sum())
    if before == after:
        return size
    if isinstance(size, int):
        return after
    assert isinstance(size, Size)
    return Size("mul", (Size("floordiv", (size, before)), after))


def _bounds(node: Node, kept: Kept) -> dict[str, Argument]:
    dim = node.arguments["dim"]
    assert isinstance(dim, int)
    left = kept.of_input(node, "self", dim)
    names = [name for name in ("start", "end", "index") if isinstance(node.arguments.get(name), int)]
    return {name: _place(node.arguments[name], left) for name in names} if not left.all() else {}


def _place(bound: Argument, left: Tensor) -> int:
    """Where a place among all channels is among those that are left."""
    assert isinstance(bound, int)
    return int(left[: bound if bound >= 0 else len(left) + bound].sum())


def _pad(node: Node, kept: Kept) -> dict[str, Argument]:
    sides = node.arguments["pad"]
    assert isinstance(sides, tuple)
    changed = list(sides)
    atoms = kept.trace.values[node.name]
    for pair in range(len(sides) // 2):
        dim, (before, after) = atoms.dim() - 1 - pair, sides[2 * pair : 2 * pair + 2]
        if dim in spans(atoms) and isinstance(before, int) and isinstance(after, int) and (before or after):
            left = kept.along(atoms, dim)
            changed[2 * pair] = int(left[:before].sum())
            changed[2 * pair + 1] = int(left[len(left) - after :].sum())
    return {"pad": tuple(changed)}


def _groups(node: Node, kept: Kept) -> dict[str, Argument]:
    """Of a grouped convolution either whole groups go, or the same offsets of each."""
    groups = node.arguments["groups"]
    assert isinstance(groups, int)
    by_group = kept.of_input(node, "input", 1).view(groups, -1)
    return {"groups": int(by_group.any(1).sum())}


def _norm_groups(node: Node, kept: Kept) -> dict[str, Argument]:
    groups = node.arguments["num_groups"]
    assert isinstance(groups, int)
    return {"num_groups": int(kept.of_input(node, "input", 1).view(groups, -1).any(1).sum())}


def _scale(node: Node, kept: Kept) -> dict[str, Argument]:
    """Attention divides by the root of the number of channels, unless it is told by what."""
    given = node.arguments["query"]
    assert isinstance(given, Input)
    size = kept.trace.values[node.inputs[given.index]].shape[-1]
    return {"scale": 1 / math.sqrt(size)} if node.arguments.get("scale") is None else {}


Change = Callable[[Node, Kept], dict[str, Argument]]
_CHANGES: dict[str, Change] = {
    **dict.fromkeys(SHAPES, _shape),
    **dict.fromkeys(("slice", "select", "slice_scatter", "select_scatter"), _bounds),
    **{f"conv{transposed}{n}d": _groups for n in (1, 2, 3) for transposed in ("", "_transpose")},
    "pad": _pad,
    "group_norm": _norm_groups,
    "scaled_dot_product_attention": _scale,
}


def renumbered(node: Node, numbers: Tensor, kept: Kept) -> Tensor:
    """An order of channels by their numbers, as it is among those that are left."""
    atoms = kept.trace.values[node.inputs[0]]
    (dim,) = spans(atoms)
    left = kept.along(atoms, dim)
    places = torch.cumsum(left.long(), 0) - 1
    return places[numbers % len(left)]
