"""Reconstruction: after a cut, every layer is solved anew by least squares to give what the original layer gave.

In execution order, each convolution and linear layer of the cut network gets the weights for which its outputs, from
what the cut network now feeds it, are nearest to those of the original layer, among the channels that are left. So
each layer makes good what the ones before it lost (He et al. 2017, Channel Pruning, arXiv:1707.06168, solve a layer
that way; here all of them, in turn). It takes images without labels, no gradients and no training.
"""

from collections import Counter
from collections.abc import Container, Mapping

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
from slimkit.core.pruning.rows import (
    Sampler,
    SolvableLayer,
    input_rows,
    is_solvable,
    output_rows,
    set_weight_matrix,
    weight_matrix,
)

ROWS = 32768  # output positions that a layer is solved on, where there are as many
RIDGE = 1e-3  # see least_squares.py


def reconstruct(
    original: nn.Module,
    cut: nn.Module,
    cuts: Mapping[str, Cut],
    batches: Batches,
    *,
    only: Container[str] | None = None,
    progress: Progress = silent,
) -> int:
    """Solve every convolution and linear layer of `cut` anew, in place; gives the number of images that were used.

    cut: what `cut_layers(original, cuts)` gave. batches: normalized images [n, channels, height, width].
    only: the names of the layers to be solved, where it is not all of them.
    BatchNorm's variances stay; they are best measured anew afterwards (`recalibrate`). Memory is bounded whatever the
    layer (`flow.MEMORY_LIMIT`, `least_squares.MAX_UNKNOWNS`): what doesn't fit is solved on fewer images. A layer that
    is called more than once keeps its weights.
    """
    with evaluating(original), evaluating(cut), torch.no_grad():
        layers = {
            name: layer for name, layer in cut.named_modules() if is_solvable(layer) and (only is None or name in only)
        }
        flow = Flow(symbolic_trace(original), symbolic_trace(cut), batches, layers)
        calls = Counter(node.target for node in flow.changed.nodes)
        with progress("reconstruct", len(layers)) as advance:
            for position, node in enumerate(flow.changed.nodes):
                flow.seek(position)
                flow.step_original(position)
                name = str(node.target)
                if name in layers and calls[name] == 1:
                    kept = _kept_outputs(original, name, cuts)
                    _solve(flow, position, layers[name], kept, _norm_after(node, cut))
                    advance(1)
                flow.step_changed(position)
        return flow.images


def _solve(flow: Flow, position: int, layer: SolvableLayer, kept: Tensor, norm: _BatchNorm | None) -> None:
    """Give the layer at node `position` its new weight, and what is to be added to its outputs: its bias, or `norm`.

    kept: the channels of the original layer's outputs that the cut layer makes, int64.
    """
    matrix = weight_matrix(layer)
    equations = Equations(matrix.shape[1], offset=layer.bias is not None or norm is not None)
    sampler = Sampler(ROWS / len(flow.held))
    source = flow.changed.nodes[position].all_input_nodes[0]
    for batch in flow.held:
        outputs = batch.original[flow.original.nodes[position]]
        outputs = outputs.index_select(-1 if isinstance(layer, nn.Linear) else 1, kept)
        positions = sampler.positions(layer, outputs)
        equations.add(input_rows(layer, batch.changed[source], positions), output_rows(layer, outputs, positions))
    solution, constant = equations.solve(matrix, RIDGE)
    set_weight_matrix(layer, solution)
    if layer.bias is not None:
        layer.bias.copy_(constant.flatten())
    elif norm is not None:
        norm.get_buffer("running_mean").sub_(constant.flatten())


def _kept_outputs(original: nn.Module, name: str, cuts: Mapping[str, Cut]) -> Tensor:
    """The outputs that the layer of that name keeps: int64."""
    weight = original.get_parameter(f"{name}.weight")
    kept = torch.ones(len(weight), dtype=torch.bool)
    if name in cuts:
        kept[cuts[name].outputs] = False
    return kept.nonzero().flatten().to(weight.device)


def _norm_after(node: Node, module: nn.Module) -> _BatchNorm | None:
    """The BatchNorm with running statistics that alone reads what `node` gives, if it is so."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    norm = module.get_submodule(str(users[0].target))
    return norm if isinstance(norm, _BatchNorm) and norm.running_mean is not None else None
