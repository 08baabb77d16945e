"""The residual blocks of a graph, and the graph without some of them.

A block computes something of a value and adds it to that value: x + f(x). Without it the value passes through (Veit et
al. 2016, arXiv:1605.06431: residual networks bear that far better than others would).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from slimkit.core.graph import Graph, Input, Node
from slimkit.core.graph.node import IMAGE
from slimkit.core.graph.shapes import value_shapes


@dataclass(frozen=True)
class Block:
    """What is computed of the value of a node, and then added to it."""

    name: str  # the path that its layers have in common
    sum: str  # the node that adds
    skip: str  # the node whose value passes through
    branch: str  # the node whose value is added
    inside: frozenset[str]  # the nodes that nothing else needs


def find_blocks(graph: Graph) -> tuple[Block, ...]:
    """All residual blocks that hold a convolution or a linear layer, in the order that they run; they may be nested."""
    shapes = value_shapes(graph, (1, *graph.input_shape))
    ancestors = _ancestors(graph)
    found = []
    for node in graph.nodes[:-1]:
        if not _is_plain_sum(node) or len({shapes[name] for name in (*node.inputs, node.name)}) != 1:
            continue
        for skip, branch in (node.inputs, node.inputs[::-1]):
            if skip in ancestors.get(branch, ()) and (block := _block(graph, node.name, skip, branch)):
                found.append(block)
    return tuple(found)


def without_blocks(graph: Graph, blocks: Iterable[Block]) -> Graph:
    """The graph in which the values of the blocks' skips pass through; the tensors that are left are the very same."""
    return _pruned(graph, {block.sum: block.skip for block in blocks})


def bypassing(graph: Graph, blocks: Iterable[Block]) -> Graph:
    """The same function with the nodes of `graph`: each sum gives its skip, and nothing reads the branch."""
    skips = {block.sum: block.skip for block in blocks}

    def changed(node: Node) -> Node:
        if node.name not in skips:
            return node
        return dataclasses.replace(node, inputs=(skips[node.name],), arguments={"self": Input(0), "other": 0})

    return dataclasses.replace(graph, nodes=tuple(map(changed, graph.nodes)))


def _is_plain_sum(node: Node) -> bool:
    two = len(node.inputs) == 2 and not node.weights
    return node.operation == "add" and two and node.arguments.get("alpha", 1) == 1


def _ancestors(graph: Graph) -> dict[str, set[str]]:
    """For each node: all that it is computed of, IMAGE too."""
    found: dict[str, set[str]] = {IMAGE: set()}
    for node in graph.nodes:
        found[node.name] = set(node.inputs).union(*(found[name] for name in node.inputs))
    return found


def _block(graph: Graph, total: str, skip: str, branch: str) -> Block | None:
    left = _pruned(graph, {total: skip}).by_name
    inside = [node for node in graph.nodes if node.name not in left and node.name != total]
    layers = [node.weights[0].rpartition(".")[0] for node in inside if _is_layer(node)]
    if not layers:
        return None
    return Block(_common_path(layers), total, skip, branch, frozenset(node.name for node in inside))


def _is_layer(node: Node) -> bool:
    return bool(node.weights) and (node.operation == "linear" or node.operation.startswith("conv"))


def _common_path(layers: Sequence[str]) -> str:
    """That of what contains all the layers, such as layer1.0; a single layer's own."""
    parts = [layer.split(".") for layer in layers]
    shared = [same[0] for same in zip(*parts, strict=False) if len(set(same)) == 1]
    return ".".join(shared) or " + ".join(dict.fromkeys(layers))


def _pruned(graph: Graph, passed: Mapping[str, str]) -> Graph:
    """The graph with one node's value for another's, without the nodes and tensors that the logits don't need then."""
    sources = dict(passed)
    for name in passed:
        while sources[name] in passed:
            sources[name] = passed[sources[name]]
    nodes = [node.replaced(sources) for node in graph.nodes if node.name not in sources]
    needed = {nodes[-1].name}
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs)
    nodes = [node for node in nodes if node.name in needed]
    read = {name for node in nodes for name in node.weights}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in read}
    return dataclasses.replace(graph, nodes=tuple(nodes), tensors=tensors)
