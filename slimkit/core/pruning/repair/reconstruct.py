"""Reconstruction: after a cut, every layer is solved anew by least squares to give what the original layer gave.

In execution order, each convolution and linear layer of the cut network gets the weights for which its outputs, from
what the cut network now feeds it, are nearest to those of the original layer, among the channels that are left, as far
as what follows can tell (`targets.py`). So each layer makes good what the ones before it lost (He et al. 2017, Channel
Pruning, arXiv:1707.06168, solve a layer that way; here all of them, in turn). It takes images without labels, no
gradients and no training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimkit.core.data import Batches
from slimkit.core.graph import Graph
from slimkit.core.graph.lockstep import GraphRunner, Lockstep
from slimkit.core.progress import Progress, silent
from slimkit.core.pruning.repair.recalibrate import Pool, has_statistics
from slimkit.core.pruning.repair.targets import Tail, Targets, tail_of
from slimkit.core.regression.least_squares import Equations
from slimkit.core.regression.rows import (
    Sampler,
    SolvableLayer,
    input_rows,
    output_rows,
    set_weight_matrix,
    solvable_layers,
    weight_matrix,
)
from slimkit.standalone.model import GraphNetwork, layer_path

ROWS = 32768  # output positions that a layer is solved on, where there are as many
RIDGE = 1e-3  # see least_squares.py
CLIPPED_PASSES = 4  # solutions in which what is clipped counts as right; the first brings half of what more could


def reconstruct(
    original: Graph,
    cut: GraphNetwork,
    kept: Mapping[str, Tensor],
    batches: Batches,
    *,
    only: Container[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> int:
    """Solve every convolution and linear layer of `cut` anew, in place; gives the number of images that were used.

    cut: the network of `original` without some channels. kept: the outputs that are left (int64) of each layer that
        lost some, by its path. batches: normalized images [n, channels, height, width].
    only: the names of the layers to be solved, where it is not all of them. seed: of the positions that are sampled.
    A layer that is called more than once keeps its weights. A BatchNorm that follows no layer that is solved gets the
    means and variances of its inputs changed as they changed by the cut. Memory is bounded whatever the layer
    (`lockstep.MEMORY_LIMIT`, `least_squares.MAX_UNKNOWNS`): what doesn't fit is solved on fewer images.
    """
    paths = [layer_path(node.to_json()) for node in original.nodes]
    calls = Counter(paths)
    layers = {p: layer for p, layer in solvable_layers(cut).items() if calls[p] == 1 and (only is None or p in only)}
    norms = {p: n for p, n in cut.named_modules() if has_statistics(n) and calls[p] == 1}
    norms_by_node = {node.name: norms[p] for node, p in zip(original.nodes, paths, strict=True) if p in norms}
    solved: set[_BatchNorm | None] = set()  # the norms of layers that are solved, as far as they are
    with torch.no_grad(), progress("reconstruct", len(layers)) as advance:
        runners = GraphRunner(original.network(copy=False)), GraphRunner(cut)
        flow = Lockstep(*runners, batches, {i for i, path in enumerate(paths) if path in layers})
        for position, (node, path) in enumerate(zip(original.nodes, paths, strict=True)):
            flow.seek(position)
            if path in norms and norms[path] not in solved:
                _follow(flow, node.inputs[0], norms[path], kept.get(str(path)))
            flow.step_original(position)
            if path in layers:
                tail = tail_of(node, original, norms_by_node)
                problem = _Problem(flow, node.name, node.inputs[0], layers[path], kept.get(path), tail, seed)
                _store(layers[path], tail.norm, *problem.solve())
                solved.add(tail.norm)
                advance(1)
            flow.step_changed(position)
    return flow.images


def _store(layer: SolvableLayer, norm: _BatchNorm | None, solution: Tensor, constant: Tensor) -> None:
    """Give a layer its new weight, and what is to be added to its outputs: in its bias, or in the norm after it."""
    set_weight_matrix(layer, solution)
    if layer.bias is not None:
        layer.bias.copy_(constant.flatten())
    elif norm is not None:
        norm.get_buffer("running_mean").sub_(constant.flatten())


def _follow(flow: Lockstep, source: str, norm: _BatchNorm, kept: Tensor | None) -> None:
    """Change a norm's statistics as those of its inputs, the values of `source`, have changed."""
    before, after = Pool(), Pool()
    for batch in flow.held:
        before.add(_of(kept, batch.original[source], 1))
        after.add(batch.changed[source])
    if after.count < 2:  # no variance
        return
    (old_mean, old_variance), (mean, variance) = before.statistics(), after.statistics()
    running_mean, running_variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    running_mean.add_((mean - old_mean).to(running_mean))
    running_variance.mul_(((variance + norm.eps) / (old_variance + norm.eps)).to(running_variance))


def _of(kept: Tensor | None, values: Tensor, dim: int) -> Tensor:
    return values if kept is None else values.index_select(dim, kept)


class _Problem:
    """One layer to be solved: that of the node `name`, with the channels `kept` (int64) of the original's."""

    def __init__(
        self,
        flow: Lockstep,
        name: str,
        source: str,
        layer: SolvableLayer,
        kept: Tensor | None,
        tail: Tail,
        seed: int,
    ) -> None:
        self._seed, self._flow, self._layer, self._kept = seed, flow, layer, kept
        self._node, self._source = name, source
        self._other = tail.other if _is_known(flow, tail.other, name) else None
        self._matrix = weight_matrix(layer)
        self._targets = Targets(tail, layer.weight, groups=len(self._matrix))
        self._equations = Equations(self._matrix.shape[1], offset=layer.bias is not None or tail.norm is not None)
        # A clipped sum can't be told before both summands are known. Wide equations have no factor to solve by anew.
        # Grouped layers have too few weights to gain anything (mobilenet_v2's KL divergence stays, in half the time).
        is_told = self._other is not None or tail.other is None
        is_dense = len(self._matrix) == 1 and not self._equations.is_wide
        self._passes = CLIPPED_PASSES if tail.is_clipped and is_told and is_dense else 0

    def solve(self) -> tuple[Tensor, Tensor]:
        """The weights as a matrix, and what is to be added to the outputs."""
        for rows, outputs, others in self._rows():
            self._equations.add(rows, self._targets.first(outputs, others))
        solution, constant = self._equations.solve(self._matrix, RIDGE)
        for _ in range(self._passes):
            self._equations.renew_targets()
            for rows, outputs, others in self._rows():
                now = rows @ solution.float() + constant.float()
                self._equations.add(rows, self._targets.clipped(outputs, others, now))
            solution, constant = self._equations.solve(self._matrix, RIDGE)
        return solution, constant

    def _rows(self) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]]:
        """Of each batch: inputs, the original's outputs, and the other summand in both networks, if it is known."""
        sampler = Sampler(ROWS / len(self._flow.held), self._seed)
        for batch in self._flow.held:
            outputs = self._of_kept(batch.original[self._node])
            positions = sampler.positions(self._layer, outputs)
            inputs = input_rows(self._layer, batch.changed[self._source], positions)
            others = None
            if self._other:
                before, after = self._of_kept(batch.original[self._other]), batch.changed[self._other]
                others = (output_rows(self._layer, before, positions), output_rows(self._layer, after, positions))
            yield inputs, output_rows(self._layer, outputs, positions), others

    def _of_kept(self, outputs: Tensor) -> Tensor:
        return _of(self._kept, outputs, -1 if isinstance(self._layer, nn.Linear) else 1)


def _is_known(flow: Lockstep, other: str | None, like: str) -> bool:
    """Whether what an output is added to is computed by now, and has the shape of the value of `like`."""
    known = flow.held[0].original
    return other in known and other in flow.held[0].changed and known[other].shape == known[like].shape
