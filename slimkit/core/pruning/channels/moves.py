"""Operations that move values: what they do to numbers they do to channels too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from slimkit.core.graph import Node, Size
from slimkit.core.graph.node import IMAGE
from slimkit.core.graph.run import arguments_of
from slimkit.core.pruning.channels.trace import Tracer, spans
from slimkit.standalone.model import call

Rule = Callable[[Tracer, Node], Tensor]


def moves(tracer: Tracer, node: Node) -> Tensor:
    """The operation moves atoms as it moves numbers; what comes from tensors of the network has no channels."""
    still = tracer.still(node).flatten()[:1]
    return _moved(tracer, node, {name: still.expand(tracer.graph.tensors[name].shape) for name in node.weights})


def _moved(tracer: Tracer, node: Node, tensors: Mapping[str, Tensor]) -> Tensor:
    result: Tensor = call(node.operation, arguments_of(node, tracer.values, tensors, tracer.shapes[IMAGE]))
    return result


def one_dimension(argument: str) -> Rule:
    """Moves whose position along one dimension means something: where channels lie along it, they stay."""

    def rule(tracer: Tracer, node: Node) -> Tensor:
        given = node.arguments[argument]
        dims = [dim for dim in (given if isinstance(given, tuple) else [given]) if isinstance(dim, int)]
        for atoms in tracer.inputs(node):
            if any(dim % max(atoms.dim(), 1) in spans(atoms) for dim in dims):
                return tracer.opaque(node)
        return moves(tracer, node)

    return rule


def slices(tracer: Tracer, node: Node) -> Tensor:
    """Steps and sizes of images can't follow a cut; bounds given as numbers can."""
    atoms, dim = tracer.value(node, "self"), node.arguments["dim"]
    assert atoms is not None
    assert isinstance(dim, int)
    bounds = [node.arguments.get(name) for name in ("start", "end", "index")]
    if dim in spans(atoms) and (node.arguments.get("step", 1) != 1 or any(isinstance(b, Size) for b in bounds)):
        return tracer.opaque(node, f"{node.operation} picks channels by their number")
    return moves(tracer, node)


def select(tracer: Tracer, node: Node) -> Tensor:
    """One of several channels, by its number: it stays."""
    atoms, dim = tracer.value(node, "self"), node.arguments["dim"]
    assert atoms is not None
    result = slices(tracer, node)
    if isinstance(dim, int) and dim in spans(atoms):
        tracer.atoms.freeze(result, "its channels are picked by their number")
    return result


def scatter(tracer: Tracer, node: Node) -> Tensor:
    """What takes the place of a part is tied to that part; then all is as it was."""
    atoms, source = tracer.value(node, "self"), tracer.value(node, "src")
    if atoms is None or source is None or node.arguments.get("step", 1) != 1:
        return tracer.opaque(node)
    part = "slice" if node.operation == "slice_scatter" else "select"
    keep = {name: node.arguments[name] for name in ("dim", "start", "end", "index") if name in node.arguments}
    if any(isinstance(value, Size) for value in keep.values()) and node.arguments["dim"] in spans(atoms):
        return tracer.opaque(node)
    arguments = arguments_of(node, tracer.values, tracer.graph.tensors, tracer.shapes[IMAGE])
    taken = call(part, {"self": atoms, **{n: arguments[n] for n in keep}, **({"step": 1} if part == "slice" else {})})
    tracer.atoms.unite(taken, source)
    if part == "select" and node.arguments["dim"] in spans(atoms):
        tracer.atoms.freeze(taken, "its channels are picked by their number")
    return atoms


def index(tracer: Tracer, node: Node) -> Tensor:
    """An order of channels by their numbers can follow a cut where it is a tensor of the network."""
    atoms = tracer.value(node, "self")
    places = node.arguments.get("indices", node.arguments.get("index"))
    listed = places if isinstance(places, tuple) else (places,)
    dims = [i for i, place in enumerate(listed) if place is not None]
    if node.operation == "index_select":
        dims = [d for d in [node.arguments["dim"]] if isinstance(d, int)]
    if atoms is None or len(node.inputs) > 1:
        return tracer.opaque(node)
    channels = spans(atoms)
    if not set(dims) & set(channels):
        return _moved(tracer, node, tracer.graph.tensors)
    if dims != channels[:1] or len(channels) > 1:
        return tracer.opaque(node, "its channels are picked by their number")
    numbers = tracer.graph.tensors[node.weights[0]]
    if numbers.dim() != 1 or numbers.dtype == torch.bool:
        return tracer.opaque(node, "its channels are picked by their number")
    result = _moved(tracer, node, tracer.graph.tensors)
    tracer.mark((node.weights[0], 0), tracer.along(result, dims[0]))
    return result


def pad(tracer: Tracer, node: Node) -> Tensor:
    """Zeros beside the channels are channels themselves; what mirrors channels lets them stay."""
    (atoms,) = tracer.inputs(node)
    sides = node.arguments["pad"]
    assert isinstance(sides, tuple)
    channels = spans(atoms)
    for pair in range(len(sides) // 2):
        dim = atoms.dim() - 1 - pair
        before, after = sides[2 * pair : 2 * pair + 2]
        if before == after == 0:
            continue
        if dim not in channels:
            atoms = atoms.narrow(dim, 0, 1)
            continue
        if node.arguments.get("mode", "constant") != "constant" or not (
            isinstance(before, int) and isinstance(after, int) and before >= 0 and after >= 0
        ):
            return tracer.opaque(node)
        atoms = _extended(tracer, atoms, dim, before, after)
    return atoms


def _extended(tracer: Tracer, atoms: Tensor, dim: int, before: int, after: int) -> Tensor:
    sizes = [-1 if d == dim else 1 for d in range(atoms.dim())]
    ends = [tracer.fresh(count).view(sizes) if count else None for count in (before, after)]
    shape = list(atoms.shape)
    parts = []
    for end in (ends[0], atoms, ends[1]):
        if end is not None:
            shape[dim] = end.shape[dim]
            parts.append(end.expand(shape))
    return torch.cat(parts, dim)


def full(tracer: Tracer, node: Node) -> Tensor:
    """A constant: its channels are those of what it is joined with."""
    sizes = node.arguments["size"]
    assert isinstance(sizes, tuple)
    numbers = [dim for dim, size in enumerate(sizes) if isinstance(size, int) and size > 1]
    if len(numbers) != 1:
        return tracer.still(node)
    shape = [-1 if dim == numbers[0] else 1 for dim in range(len(sizes))]
    return tracer.fresh(tracer.shape(node)[numbers[0]]).view(shape)


def pixel_shuffle(tracer: Tracer, node: Node) -> Tensor:
    """The channels that become the pixels of one go together."""
    result = moves(tracer, node)
    for dim in (result.dim() - 2, result.dim() - 1):
        tracer.atoms.unite(result, result.narrow(dim, 0, 1))
    return result


def reshape(tracer: Tracer, node: Node) -> Tensor:
    """Dimensions are split or become one; what is cut into other parts than it was made of stays."""
    (atoms,) = tracer.inputs(node)
    shape = tracer.shape(node)
    result = atoms.reshape(shape)
    channels = spans(result)
    for before, after in matching_dimensions(atoms.shape, shape):
        parts = [dim for dim in after if dim in channels]
        if len(parts) > 1 and sum(atoms.shape[dim] > 1 for dim in before) > 1:
            return tracer.opaque(node)
    return result


def matching_dimensions(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The dimensions that become one another in a reshape, in the smallest runs of which the products are the same."""
    first, second = 0, 0
    while first < len(before) or second < len(after):
        one, other = [first] if first < len(before) else [], [second] if second < len(after) else []
        first, second = first + len(one), second + len(other)
        while math.prod(before[d] for d in one) != math.prod(after[d] for d in other):
            if math.prod(before[d] for d in one) < math.prod(after[d] for d in other):
                one.append(first)
                first += 1
            else:
                other.append(second)
                second += 1
        yield one, other
