"""Reshapes: which dimensions become which."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from slimkit.core.graph import Node
from slimkit.core.pruning.channels.trace import Tracer, spans


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


def flatten(tracer: Tracer, node: Node) -> Tensor:
    """Dimensions become one."""
    (atoms,) = tracer.inputs(node)
    return atoms.reshape(tracer.shape(node))


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
