"""What a layer that is solved anew is to give: outputs after which the network goes on as the original does.

What matters of a layer's outputs is what comes of them: BatchNorm scales them, a residual is added, and a ReLU makes
everything below zero alike. So the other summand's error is made good in the same solution (He et al. 2017, Channel
Pruning, arXiv:1707.06168, for whole branches), and a value that the original clips may lie anywhere on the clipped side
(Zhang et al. 2015, arXiv:1505.06798). The latter is no linear problem, but a row of them, none of which makes the
error larger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from slimkit.core.graph import Graph, Node

# The activations outside of whose range all inputs give the same
FLAT_OUTSIDE = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0), "hardswish": (-3.0, math.inf)}
SMALLEST_SCALE = 0.1  # of the mean: what BatchNorm makes smaller than that can't make good what others lost


@dataclass(frozen=True)
class Tail:
    """What alone reads a layer's output, in this order, each where it is there."""

    norm: _BatchNorm | None = None
    other: str | None = None  # the node whose value it is added to
    range: tuple[float, float] = (-math.inf, math.inf)  # outside of which the activation is flat

    @property
    def is_clipped(self) -> bool:
        """Whether there is an activation that makes some values alike."""
        return self.range != Tail.range


def tail_of(node: Node, graph: Graph, norms: Mapping[str, _BatchNorm]) -> Tail:
    """What follows the layer at `node`; norms: those that are called once, by the names of their nodes."""
    reader, other = _only_reader(node, graph), None
    norm = None if reader is None else norms.get(reader.name)
    if reader is not None and norm is not None:
        node, reader = reader, _only_reader(reader, graph)
    if reader is not None and reader.operation == "add" and reader.arguments.get("alpha", 1) == 1:
        others = [summand for summand in reader.inputs if summand != node.name]
        if len(others) != 1:
            return Tail(norm)
        other, reader = others[0], _only_reader(reader, graph)
    return Tail(norm, other, Tail.range if reader is None else FLAT_OUTSIDE.get(reader.operation, Tail.range))


class Targets:
    """What a layer is to give, in rows: values [g, n, o] of g groups of o channels, at n places."""

    def __init__(self, tail: Tail, weight: Tensor, groups: int) -> None:
        """weight: the layer's, [channels, ...]."""
        scale, shift = _affine(tail.norm, weight)
        self._range = tail.range
        self._scale, self._shift = scale.view(groups, 1, -1), shift.view(groups, 1, -1)
        self._smallest = SMALLEST_SCALE * float(scale.abs().mean())

    def first(self, outputs: Tensor, others: tuple[Tensor, Tensor] | None) -> Tensor:
        """Targets that come to the original's value after the sum.

        outputs: of the original layer. others: the other summand in the original and in the cut network, if any.
        """
        return outputs if others is None else self._changed(outputs, others[0] - others[1])

    def clipped(self, outputs: Tensor, others: tuple[Tensor, Tensor] | None, now: Tensor) -> Tensor:
        """The same, save that what is clipped in the original, and is so by what the layer gives `now`, is right."""
        original, changed = (0.0, 0.0) if others is None else others
        low, high = self._range
        before = self._scale * outputs + self._shift
        wanted, given = before + original, self._scale * now + self._shift + changed
        wanted = torch.where(wanted <= low, given.clamp_max(low), wanted)
        wanted = torch.where(wanted >= high, given.clamp_min(high), wanted)
        return self._changed(outputs, wanted - changed - before)

    def _changed(self, outputs: Tensor, change: Tensor) -> Tensor:
        """The outputs whose normalized values differ by `change`, as far as the norm lets through what is changed."""
        size = self._scale.abs().clamp_min(self._smallest)
        return outputs + torch.where(size > 0, change / torch.where(self._scale < 0, -size, size), 0)


def _affine(norm: _BatchNorm | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What a norm multiplies each channel of a layer by and then adds to it: float32 [channels] both."""
    if norm is None:
        ones = torch.ones(len(weight), device=weight.device)
        return ones, torch.zeros_like(ones)
    scale = (norm.get_buffer("running_var").float() + norm.eps).rsqrt()
    scale = scale * norm.weight if norm.affine else scale
    return scale, (norm.bias if norm.affine else 0) - norm.get_buffer("running_mean") * scale


def _only_reader(node: Node, graph: Graph) -> Node | None:
    readers = graph.consumers[node.name]
    return readers[0] if len(readers) == 1 and node is not graph.nodes[-1] else None
