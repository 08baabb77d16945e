"""Cutting channels out of a network's layers."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slimkit.core.pruning.atoms import distinct
from slimkit.core.pruning.groups import Cut
from slimkit.core.pruning.network import share_tensors
from slimkit.core.pruning.trace import CONVOLUTIONS, Convolution


def cut_layers(module: nn.Module, cuts: Mapping[str, Cut]) -> nn.Module:
    """A copy of the network without the channels named in `cuts`; everything else keeps its numbers."""
    result = share_tensors(module)  # most is cut below, and so never copied whole
    for name, cut in cuts.items():
        layer = result.get_submodule(name)
        if isinstance(layer, CONVOLUTIONS):
            _cut_convolution(layer, cut)
        elif isinstance(layer, nn.Linear):
            _cut_outputs(layer, cut)
            _keep(layer, "weight", 1, layer.in_features, cut.inputs)
            layer.in_features = layer.weight.shape[1]
            layer.out_features = layer.weight.shape[0]
        else:
            _cut_outputs(layer, cut)
            attribute = "num_parameters" if isinstance(layer, nn.PReLU) else "num_features"
            setattr(layer, attribute, getattr(layer, attribute) - len(cut.outputs))
    _unshare(result, module)
    return result


def _unshare(module: nn.Module, original: nn.Module) -> None:
    """Give `module` copies of the tensors that are still those of `original`."""
    shared = {id(tensor) for layer in original.modules() for _, tensor in _own_tensors(layer)}
    copies: dict[int, Tensor] = {}  # a tensor of two layers stays one
    for layer in module.modules():
        for name, tensor in _own_tensors(layer):
            if id(tensor) in shared:
                setattr(layer, name, copy.deepcopy(tensor, copies))


def _own_tensors(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of a layer."""
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]


def _cut_convolution(layer: Convolution, cut: Cut) -> None:
    """Of a grouped convolution either whole groups go, or the same offsets of each (see trace.py)."""
    kept = _others(layer.in_channels, cut.inputs)
    size = layer.in_channels // layer.groups
    groups = len(distinct(kept // size))
    offsets = kept[: len(kept) // groups] % size
    _cut_outputs(layer, cut)
    _keep(layer, "weight", 1, size, _others(size, offsets))
    layer.in_channels, layer.out_channels, layer.groups = len(kept), layer.weight.shape[0], groups


def _cut_outputs(layer: nn.Module, cut: Cut) -> None:
    """Shorten all of a layer's tensors that have an entry per output channel."""
    for name, value in _own_tensors(layer):
        if value.dim() > 0:
            _keep(layer, name, 0, len(value), cut.outputs)


def _keep(layer: nn.Module, name: str, dim: int, size: int, lost: Tensor) -> None:
    """Replace the tensor `name` by one without the entries `lost` along `dim`, which has `size` of them."""
    old = getattr(layer, name)
    if len(lost) == 0:
        return
    new = old.detach().index_select(dim, _others(size, lost).to(old.device))
    setattr(layer, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _others(size: int, positions: Tensor) -> Tensor:
    """The numbers below `size` that aren't in `positions`."""
    kept = torch.ones(size, dtype=torch.bool)
    kept[positions] = False
    return kept.nonzero().flatten()
