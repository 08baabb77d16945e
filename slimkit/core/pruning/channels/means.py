"""Means over channels as sums and factors: what a mean is divided by would change with a cut."""

from __future__ import annotations

import dataclasses
import math

from slimkit.core.graph import Graph, Input, Node
from slimkit.core.pruning.channels.trace import Trace, spans


def means_as_sums(trace: Trace) -> Graph:
    """The graph of a trace, in which each mean over channels alone is a sum and a factor; the very same without such.

    A channel that is cut then counts in the mean as one of zeros, as in the original where it is masked: the norms of
    ConvNeXt V2 (Woo et al., 2023, arXiv:2301.00808) go on to compare a channel with the mean of all.
    """
    nodes = [part for node in trace.graph.nodes for part in _parts(node, trace)]
    return dataclasses.replace(trace.graph, nodes=tuple(nodes)) if len(nodes) > len(trace.graph.nodes) else trace.graph


def _parts(node: Node, trace: Trace) -> tuple[Node, ...]:
    given = node.arguments.get("dim")
    if node.operation != "mean" or not isinstance(given, tuple):
        return (node,)
    atoms = trace.values[node.inputs[0]]
    dims = {dim % atoms.dim() for dim in given if isinstance(dim, int)}
    if dims != set(spans(atoms)):
        return (node,)
    total = dataclasses.replace(node, name=f"{node.name}_sum", operation="sum")
    factor = 1 / math.prod(atoms.shape[dim] for dim in dims)
    return total, dataclasses.replace(
        node, operation="mul", inputs=(total.name,), arguments={"self": Input(0), "other": factor}
    )
