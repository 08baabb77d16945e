"""Layers: what reads channels through a weight, and what has a number for each."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from slimkit.core.graph import Node
from slimkit.core.pruning.channels.trace import Tracer

Rule = Callable[[Tracer, Node], Tensor]


def convolution(tracer: Tracer, node: Node) -> Tensor:
    """Also transposed ones, whose weight has its inputs first."""
    atoms, weight, groups = tracer.value(node, "input"), tracer.weight(node, "weight"), node.arguments.get("groups", 1)
    if atoms is None or weight is None or not isinstance(groups, int) or atoms.dim() != weight.dim():
        return tracer.opaque(node)
    transposed = "transpose" in node.operation
    inputs = tracer.along(_over_space(tracer, atoms), 1)
    count = weight.shape[1] * groups if transposed else weight.shape[0]
    name = str(node.weight("weight"))
    outputs = tracer.record(node, name, inputs, count, groups)
    if groups > 1:
        _tie_groups(tracer, inputs.view(groups, -1), outputs.view(groups, -1))
    within = _within_groups(outputs if transposed else inputs, groups)
    for dim, channels in enumerate((inputs, within) if transposed else (outputs, within)):
        if channels is not None:
            tracer.mark((name, dim), channels)
    _mark_bias(tracer, node, outputs)
    tracer.mixes(node, node.inputs[0])
    return outputs.view(1, -1, *[1] * (atoms.dim() - 2))


def _over_space(tracer: Tracer, atoms: Tensor) -> Tensor:
    """What a kernel sees at all places goes together."""
    for dim in range(2, atoms.dim()):
        first = atoms.narrow(dim, 0, 1)
        tracer.atoms.unite(atoms, first)
        atoms = first
    return atoms


def _tie_groups(tracer: Tracer, inputs: Tensor, outputs: Tensor) -> None:
    """Tie what a convolution's groups [groups, channels of one] need to stay alike.

    Many small groups (depthwise: of one channel) are cut as wholes, few large ones each lose the same offsets.
    """
    groups, size = inputs.shape
    if groups >= size:
        tracer.atoms.unite(inputs, inputs[:, :1])
        tracer.atoms.unite(outputs, inputs[:, :1])
    else:
        tracer.atoms.unite(inputs, inputs[:1])
        tracer.atoms.unite(outputs, outputs[:1])


def _within_groups(channels: Tensor, groups: int) -> Tensor | None:
    """The atoms along the weight's dimension that has the channels of one group; None where groups go as wholes."""
    by_group = channels.view(groups, -1)
    return by_group[0] if groups == 1 or groups < by_group.shape[1] else None


def _mark_bias(tracer: Tracer, node: Node, outputs: Tensor) -> None:
    bias = node.weight("bias")
    if bias is not None:
        tracer.mark((bias, 0), outputs)


def linear(tracer: Tracer, node: Node) -> Tensor:
    """The last dimension."""
    atoms, weight = tracer.value(node, "input"), tracer.weight(node, "weight")
    if atoms is None or weight is None or weight.dim() != 2:
        return tracer.opaque(node)
    name = str(node.weight("weight"))
    inputs = tracer.along(atoms, atoms.dim() - 1)
    outputs = tracer.record(node, name, inputs, weight.shape[0])
    tracer.mark((name, 0), outputs)
    tracer.mark((name, 1), inputs)
    _mark_bias(tracer, node, outputs)
    tracer.mixes(node, node.inputs[0])
    return outputs


def normalizes_each(tracer: Tracer, node: Node) -> Tensor:
    """BatchNorm, instance norm and PReLU: numbers for each channel."""
    atoms = tracer.inputs(node)[0]
    if len(node.inputs) > 1 or atoms.dim() < 2:
        return tracer.opaque(node)
    weights = [name for name in node.weights if tracer.graph.tensors[name].numel() == atoms.shape[1] > 1]
    if weights:
        tracer.scale(node, weights, tracer.along(atoms, 1))
    elif node.operation == "instance_norm":
        tracer.along(atoms, 1)
    return atoms


def group_norm(tracer: Tracer, node: Node) -> Tensor:
    """Groups are cut as wholes."""
    (atoms,) = tracer.inputs(node)
    groups = node.arguments["num_groups"]
    assert isinstance(groups, int)
    channels = tracer.along(atoms, 1)
    by_group = channels.view(groups, -1)
    tracer.atoms.unite(by_group, by_group[:, :1])
    if node.weights:
        tracer.scale(node, node.weights, channels)
    return channels.view(1, -1, *[1] * (atoms.dim() - 2))


_CONVOLUTIONS = [f"conv{transposed}{n}d" for n in (1, 2, 3) for transposed in ("", "_transpose")]
LAYERS: dict[str, Rule] = {
    **dict.fromkeys(_CONVOLUTIONS, convolution),
    "linear": linear,
    **dict.fromkeys(("batch_norm", "instance_norm", "prelu"), normalizes_each),
    "group_norm": group_norm,
}
