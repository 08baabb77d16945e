"""How each operation carries channels: a rule for every operation of the normal form.

A rule gets the tracer and a node, and gives the atoms of the node's value: int64, of the value's shape for one image.
To add an operation, say here which rule it follows; one that is listed nowhere lets its channels stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from slimkit.core.graph import Graph, Node
from slimkit.core.pruning.channels.atoms import broadcast, is_spread_over_channels
from slimkit.core.pruning.channels.layers import LAYERS
from slimkit.core.pruning.channels.moves import (
    full,
    index,
    moves,
    one_dimension,
    pad,
    pixel_shuffle,
    reshape,
    scatter,
    select,
    slices,
)
from slimkit.core.pruning.channels.products import PRODUCTS
from slimkit.core.pruning.channels.trace import Trace, Tracer, spans
from slimkit.standalone.model import OPERATIONS

Rule = Callable[[Tracer, Node], Tensor]


def trace_channels(graph: Graph) -> Trace:
    """Follow the channels of a graph."""
    tracer = Tracer(graph)
    for node in graph.nodes:
        tracer.follow(node, RULES[node.operation])
    return tracer.done()


def elementwise(tracer: Tracer, node: Node) -> Tensor:
    """Operands are tied position by position, but for one that is spread over the channels of the others: it stays."""
    whole = broadcast(*tracer.inputs(node))
    whole = tuple(part.expand(tracer.shape(node)) for part in whole)
    spread = [is_spread_over_channels(operand, whole) for operand in tracer.inputs(node)]
    result = whole[spread.index(False) if False in spread else 0]
    for operand, over_channels in zip(tracer.inputs(node), spread, strict=True):
        if over_channels:
            tracer.atoms.freeze(operand, f"{node.operation} spreads it over other channels")
        else:
            tracer.atoms.unite(operand, result)
    for name in dict.fromkeys(node.weights):
        _read_tensor(tracer, node, name, result)
    return result


def _read_tensor(tracer: Tracer, node: Node, name: str, result: Tensor) -> None:
    """Note a bare parameter: it has numbers for the channels that lie along its dimensions."""
    shape = tracer.graph.tensors[name].shape
    offset = result.dim() - len(shape)
    channels = spans(result)
    own = [dim for dim in channels if dim >= offset and shape[dim - offset] > 1]
    if len(own) == 1 and channels == own:
        (dim,) = own
        tracer.mark((name, dim - offset), tracer.along(result, dim))
    elif own:
        tracer.atoms.freeze(result, f"the parameter {name} spans several of its dimensions")


def reduces(tracer: Tracer, node: Node) -> Tensor:
    """Over space it keeps the channels apart; a sum over channels leaves those out that are gone, no other does."""
    atoms = tracer.value(node, "self")
    given = node.arguments.get("dim")
    if atoms is None:
        return tracer.opaque(node)
    dims = [d % max(atoms.dim(), 1) for d in (given if isinstance(given, tuple) else [given]) if isinstance(d, int)]
    over = set(dims or range(atoms.dim())) & set(spans(atoms))
    if over and (node.operation != "sum" or set(spans(atoms)) - over):
        return tracer.opaque(node)
    if over:
        tracer.mixes(node, node.inputs[0])
        return tracer.still(node)
    kept = node.arguments.get("keepdim", False)
    for dim in sorted(dims or range(atoms.dim()), reverse=True):
        atoms = atoms.narrow(dim, 0, 1)
        atoms = atoms if kept else atoms.squeeze(dim)
    return atoms


def along_dimension(tracer: Tracer, node: Node) -> Tensor:
    """What looks along a dimension and keeps it (softmax, cumsum): channels along it stay."""
    (atoms,) = tracer.inputs(node)
    dim = node.arguments["dim"]
    assert isinstance(dim, int)
    return tracer.opaque(node) if dim % atoms.dim() in spans(atoms) else atoms


def over_space(dimensions: int) -> Rule:
    """Pools and the like over the last dimensions: what comes before keeps apart."""

    def rule(tracer: Tracer, node: Node) -> Tensor:
        (atoms,) = tracer.inputs(node)
        if node.weights:
            return tracer.opaque(node)
        for dim in range(atoms.dim() - dimensions, atoms.dim()):
            first = atoms.narrow(dim, 0, 1)
            tracer.atoms.unite(atoms, first)
            atoms = first
        return atoms

    return rule


def normalizes(tracer: Tracer, node: Node) -> Tensor:
    """layer_norm and rms_norm: what is normalized over channels changes with their number."""
    (atoms,) = tracer.inputs(node)
    shape = node.arguments["normalized_shape"]
    assert isinstance(shape, tuple)
    first = atoms.dim() - len(shape)
    if any(dim >= first for dim in spans(atoms)):
        tracer.atoms.freeze(atoms, f"{node.operation} mixes channels")
    return atoms


def opaque(tracer: Tracer, node: Node) -> Tensor:
    """Channels meet in ways that are not told apart."""
    return tracer.opaque(node)


def still(tracer: Tracer, node: Node) -> Tensor:
    """Numbers that come of no channels."""
    return tracer.still(node)


def im2col(tracer: Tracer, node: Node) -> Tensor:
    """Windows: each channel becomes a row for every pixel of the kernel."""
    atoms = over_space(2)(tracer, node)
    channels = tracer.along(atoms, atoms.dim() - 3)
    rows = channels.repeat_interleave(tracer.shape(node)[-2] // len(channels))
    return rows.view(-1, 1)


def _table(*rules: tuple[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in rules for name in names.split()}


RULES: Mapping[str, Rule] = (
    dict.fromkeys(OPERATIONS, opaque)
    | _table(
        (
            elementwise,
            "relu relu6 hardswish hardsigmoid silu sigmoid tanh gelu elu selu celu leaky_relu mish softplus "
            "log_sigmoid hardshrink softshrink abs exp expm1 log log1p sqrt rsqrt square neg reciprocal sin cos erf "
            "sign floor ceil round trunc clamp clamp_min clamp_max logical_not add sub rsub mul div div_rounded pow "
            "pow_tensor addcmul maximum minimum where masked_fill eq ne lt le gt ge remainder to dropout "
            "feature_dropout contiguous",
        ),
        (over_space(1), "max_pool1d avg_pool1d adaptive_avg_pool1d upsample_nearest1d"),
        (
            over_space(2),
            "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d "
            "upsample_bicubic2d",
        ),
        (over_space(3), "max_pool3d avg_pool3d adaptive_avg_pool3d"),
        (pad, "pad"),
        (im2col, "im2col"),
        (pixel_shuffle, "pixel_shuffle"),
        (reduces, "mean sum amax amin argmax prod var std norm logsumexp"),
        (along_dimension, "softmax log_softmax cumsum"),
        (normalizes, "layer_norm rms_norm"),
        (moves, "permute transpose squeeze unsqueeze expand repeat cat stack pixel_unshuffle unfold"),
        (one_dimension("dims"), "roll flip"),
        (one_dimension("dim"), "repeat_interleave"),
        (reshape, "reshape flatten"),
        (slices, "slice"),
        (select, "select"),
        (scatter, "slice_scatter select_scatter"),
        (index, "index index_select"),
        (full, "full"),
        (still, "arange"),
    )
    | LAYERS
    | PRODUCTS
)
