"""Products of activations with each other, or with a bare matrix: attention, and what is written as a matmul."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from slimkit.core.graph import Node
from slimkit.core.pruning.channels.atoms import broadcast
from slimkit.core.pruning.channels.trace import Tracer, spans

Rule = Callable[[Tracer, Node], Tensor]


def product(first: str, second: str) -> Rule:
    """[..., m, k] times [..., k, n]: what lies along k is summed."""

    def rule(tracer: Tracer, node: Node) -> Tensor:
        a, b = tracer.value(node, first), tracer.value(node, second)
        if a is not None and b is not None:
            result = contract(tracer, node, a, b)
        elif a is not None and tracer.weight(node, second) is not None:
            result = _with_matrix(tracer, node, a, str(node.weight(second)))
        else:
            result = tracer.opaque(node)
        return _added(tracer, node, result)

    return rule


def _added(tracer: Tracer, node: Node, result: Tensor) -> Tensor:
    """What addmm and baddbmm add."""
    if node.operation not in ("addmm", "baddbmm"):
        return result
    more, bias = tracer.value(node, "self"), node.weight("self")
    if more is not None:
        tracer.atoms.freeze(more, f"{node.operation} mixes channels")
        tracer.atoms.freeze(result, f"{node.operation} mixes channels")
    elif bias is not None and result.dim() and tracer.graph.tensors[bias].shape == result.shape[-1:]:
        tracer.mark((bias, 0), result.reshape(-1, result.shape[-1])[0])
    else:
        tracer.atoms.freeze(result, f"{node.operation} mixes channels")
    return result


def _with_matrix(tracer: Tracer, node: Node, atoms: Tensor, weight: str) -> Tensor:
    """[..., k] times a matrix [k, n] of the network: a linear layer, its weight the other way round."""
    matrix = tracer.graph.tensors[weight]
    if matrix.dim() != 2 or atoms.dim() < 2:
        return tracer.opaque(node)
    inputs = tracer.along(atoms, atoms.dim() - 1)
    outputs = tracer.record(node, weight, inputs, matrix.shape[1])
    tracer.mark((weight, 0), inputs)
    tracer.mark((weight, 1), outputs)
    tracer.mixes(node, node.inputs[0])
    return outputs.expand(tracer.shape(node))


def contract(tracer: Tracer, node: Node, a: Tensor, b: Tensor) -> Tensor:
    """The value of a product of two activations [..., m, k] and [..., k, n]."""
    if a.dim() < 2 or b.dim() < 2:
        return tracer.opaque(node)
    rows, summed = a.dim() - 2, a.dim() - 1
    if summed in spans(a) or b.dim() - 2 in spans(b):
        return _summed(tracer, node, a, b)
    left, right = a.narrow(summed, 0, 1), b.narrow(b.dim() - 2, 0, 1)  # [..., m, 1], [..., 1, n]
    if rows in spans(a) and b.dim() - 1 in spans(b):
        return tracer.opaque(node)
    shape = tracer.shape(node)
    left, right = left.expand(shape), right.expand(shape)
    if rows in spans(a):
        left, right = right, left
    if any(dim < len(shape) - 2 for dim in (*spans(left), *spans(right))):
        tracer.atoms.unite(left.narrow(-1, 0, 1).narrow(-2, 0, 1), right)
    return right


def _summed(tracer: Tracer, node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Channels lie along what is summed: those of both operands go together, and there are none in the result."""
    turned = b.transpose(-1, -2)  # [..., n, k]
    left, right = a.narrow(-2, 0, 1), turned.narrow(-2, 0, 1)
    tracer.atoms.unite(a, left)
    tracer.atoms.unite(turned, right)
    tracer.atoms.unite(left, right)
    both = broadcast(left, right)[0]
    if any(dim < both.dim() - 2 for dim in spans(both)):  # in several dimensions at once: heads, say
        first = both[(0,) * (both.dim() - 2)]
        tracer.atoms.unite(both, first.expand(both.shape))
    tracer.mixes(node, node.inputs[0])
    return tracer.still(node)


def attention(tracer: Tracer, node: Node) -> Tensor:
    """Queries and keys are summed over their channels; values keep theirs."""
    query, key, value = (tracer.value(node, name) for name in ("query", "key", "value"))
    if query is None or key is None or value is None or tracer.value(node, "attn_mask") is not None:
        return tracer.opaque(node)
    if {query.dim() - 2} & {*spans(query), *spans(key), *spans(value)}:
        return tracer.opaque(node)
    tokens = query.dim() - 2
    heads = [dim for dim in {*spans(query), *spans(key), *spans(value)} if dim < tokens]
    if heads:
        return _by_heads(tracer, node, query, key, value)
    tracer.atoms.unite(query.narrow(tokens, 0, 1), key.narrow(tokens, 0, 1))
    tracer.mixes(node, node.inputs[0])
    return value.narrow(tokens, 0, 1)


def _by_heads(tracer: Tracer, node: Node, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Whole heads go: of queries, keys and values alike."""
    if tracer.weight(node, "attn_mask") is not None:
        return tracer.opaque(node)
    parts = [part.narrow(-2, 0, 1) for part in (query, key, value)]
    heads = [part.narrow(-1, 0, 1) for part in parts]
    for part, head in zip(parts, heads, strict=True):
        tracer.atoms.unite(part, head)
    tracer.atoms.unite(heads[0], heads[1])
    tracer.atoms.unite(heads[0], heads[2])
    return heads[2]


PRODUCTS: dict[str, Rule] = {
    "matmul": product("self", "other"),
    "bmm": product("self", "mat2"),
    "mm": product("self", "mat2"),
    "addmm": product("mat1", "mat2"),
    "baddbmm": product("batch1", "batch2"),
    "scaled_dot_product_attention": attention,
}
