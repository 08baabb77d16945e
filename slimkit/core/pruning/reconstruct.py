"""Reconstruction: after a cut, every layer is solved anew by least squares to give what the original layer gave.

In execution order, each convolution and linear layer of the cut network gets the weights for which its outputs, from
what the cut network now feeds it, are nearest to those of the original layer, among the channels that are left, as far
as what follows can tell (`targets.py`). So each layer makes good what the ones before it lost (He et al. 2017, Channel
Pruning, arXiv:1707.06168, solve a layer that way; here all of them, in turn). It takes images without labels, no
gradients and no training.
"""

from collections import Counter
from collections.abc import Container, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.fx import Node, symbolic_trace
from torch.nn.modules.batchnorm import _BatchNorm

from slimkit.core.data import Batches
from slimkit.core.measure.modes import evaluating
from slimkit.core.models.flow import Flow
from slimkit.core.progress import Progress, silent
from slimkit.core.pruning.groups import Cut
from slimkit.core.pruning.least_squares import Equations
from slimkit.core.pruning.recalibrate import Pool, has_statistics
from slimkit.core.pruning.rows import (
    Sampler,
    SolvableLayer,
    input_rows,
    is_solvable,
    output_rows,
    set_weight_matrix,
    weight_matrix,
)
from slimkit.core.pruning.targets import Tail, Targets, tail_of

ROWS = 32768  # output positions that a layer is solved on, where there are as many
RIDGE = 1e-3  # see least_squares.py
CLIPPED_PASSES = 4  # solutions in which what is clipped counts as right; the first brings half of what more could


def reconstruct(
    original: nn.Module,
    cut: nn.Module,
    cuts: Mapping[str, Cut],
    batches: Batches,
    *,
    only: Container[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> int:
    """Solve every convolution and linear layer of `cut` anew, in place; gives the number of images that were used.

    cut: what `cut_layers(original, cuts)` gave. batches: normalized images [n, channels, height, width].
    only: the names of the layers to be solved, where it is not all of them. seed: of the positions that are sampled.
    A layer that is called more than once keeps its weights. A BatchNorm that follows no layer that is solved gets the
    means and variances of its inputs changed as they changed by the cut. Memory is bounded whatever the layer
    (`flow.MEMORY_LIMIT`, `least_squares.MAX_UNKNOWNS`): what doesn't fit is solved on fewer images.
    """
    with evaluating(original), evaluating(cut), torch.no_grad():
        layers = {
            name: layer for name, layer in cut.named_modules() if is_solvable(layer) and (only is None or name in only)
        }
        flow = Flow(symbolic_trace(original), symbolic_trace(cut), batches, layers)
        calls = Counter(node.target for node in flow.changed.nodes)
        norms = {name: norm for name, norm in cut.named_modules() if has_statistics(norm) and calls[name] == 1}
        solved: set[_BatchNorm | None] = set()  # the norms of layers that are solved, as far as they are
        with progress("reconstruct", len(layers)) as advance:
            for position, node in enumerate(flow.changed.nodes):
                flow.seek(position)
                name = str(node.target)
                if name in norms and norms[name] not in solved:
                    _follow(flow, position, norms[name], _kept_outputs(original, name, cuts))
                flow.step_original(position)
                if name in layers and calls[name] == 1:
                    tail = tail_of(flow.original.nodes[position], cut, norms)
                    problem = _Problem(flow, position, layers[name], _kept_outputs(original, name, cuts), tail, seed)
                    _store(layers[name], tail.norm, *problem.solve())
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


def _follow(flow: Flow, position: int, norm: _BatchNorm, kept: Tensor) -> None:
    """Change a norm's statistics as those of its inputs have changed."""
    before, after = Pool(), Pool()
    source, changed = (nodes.nodes[position].all_input_nodes[0] for nodes in (flow.original, flow.changed))
    for batch in flow.held:
        before.add(batch.original[source].index_select(1, kept))
        after.add(batch.changed[changed])
    if after.count < 2:  # no variance
        return
    (old_mean, old_variance), (mean, variance) = before.statistics(), after.statistics()
    running_mean, running_variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    running_mean.add_((mean - old_mean).to(running_mean))
    running_variance.mul_(((variance + norm.eps) / (old_variance + norm.eps)).to(running_variance))


class _Problem:
    """One layer to be solved: the one at node `position`, with the channels `kept` (int64) of the original's."""

    def __init__(self, flow: Flow, position: int, layer: SolvableLayer, kept: Tensor, tail: Tail, seed: int) -> None:
        self._seed, self._flow, self._layer, self._kept = seed, flow, layer, kept
        self._node, self._source = flow.original.nodes[position], flow.changed.nodes[position].all_input_nodes[0]
        self._other = _known_summand(flow, tail, self._node)
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
                before, after = self._of_kept(batch.original[self._other[0]]), batch.changed[self._other[1]]
                others = (output_rows(self._layer, before, positions), output_rows(self._layer, after, positions))
            yield inputs, output_rows(self._layer, outputs, positions), others

    def _of_kept(self, outputs: Tensor) -> Tensor:
        return outputs.index_select(-1 if isinstance(self._layer, nn.Linear) else 1, self._kept)


def _known_summand(flow: Flow, tail: Tail, like: Node) -> tuple[Node, Node] | None:
    """What the output is added to, in the original and the changed network, if both have computed it by now.

    It has the shape of what the node `like` gives, or it is left out.
    """
    known = flow.held[0].original
    if tail.other is None or getattr(known.get(tail.other), "shape", None) != known[like].shape:
        return None
    return tail.other, flow.changed.nodes[flow.original.nodes.index(tail.other)]


def _kept_outputs(original: nn.Module, name: str, cuts: Mapping[str, Cut]) -> Tensor:
    """The outputs that the layer of that name keeps: int64."""
    layer = original.get_submodule(name)
    values = layer.get_buffer("running_mean") if has_statistics(layer) else layer.get_parameter("weight")
    kept = torch.ones(len(values), dtype=torch.bool)
    if name in cuts:
        kept[cuts[name].outputs] = False
    return kept.nonzero().flatten().to(values.device)
