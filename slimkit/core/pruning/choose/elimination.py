"""The importance `error`: what the loss of a channel costs once the layers that read it are solved anew.

A layer that reads channels is a linear map of them. Channels are taken out of a group from the least costly on; each
time the weights of the rest are changed so that the outputs of all readers move the least, which the inverse of the
inputs' second moments gives in closed form: the optimal brain surgeon (Hassibi & Stork 1992) on whole channels (Kurtic
et al. 2023, ZipLM, arXiv:2302.04089). So of two channels that say the same, the first is cheap and the second is dear.
The cost is the error that is left, as a share of the variance of a reader's outputs, summed over the readers: one unit
for all groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from slimkit.core.data import Batches
from slimkit.core.graph import Graph
from slimkit.core.progress import Progress, silent
from slimkit.core.pruning.channels.filters import filters, input_weights
from slimkit.core.pruning.channels.groups import Group, Grouping, Member
from slimkit.core.regression.least_squares import MAX_UNKNOWNS, Moments, damped_cholesky
from slimkit.core.regression.rows import Sampler, SolvableLayer, input_rows, solvable_layers, weight_matrix

BATCHES = 32  # at most
ROWS = 32768  # output positions that each reader is seen at, where there are as many
RIDGE = 1e-3  # of the mean of the moments' diagonal
STEPS = 64  # in which a group is taken apart


def error(grouping: Grouping, batches: Batches, progress: Progress = silent, seed: int = 0) -> tuple[Tensor, ...]:
    """What each channel costs when it is taken out in its turn, after all cheaper ones: float [width] each."""
    network = grouping.graph.network(copy=False)
    layers = solvable_layers(network)
    readers = [_readers(layers, group) for group in grouping.groups]
    names = {member.layer.name for members in readers for member in members}
    moments = _input_moments({name: layers[name] for name in names}, network, batches, progress, seed)
    scores = []
    with progress("score channels", len(grouping.groups)) as advance:
        for group, members in zip(grouping.groups, readers, strict=True):
            readings: list[_Reading] = [
                _reading(layers[m.layer.name], m.positions, moments[m.layer.name]) for m in members
            ]
            scores.append(_take_apart(readings or [_by_weights(grouping.graph, group)], group.width))
            advance(1)
    return tuple(scores)


class _Reading(Protocol):
    """What one layer makes of a group's channels, as far as they are not taken out yet."""

    def costs(self) -> Tensor:
        """What it costs to take out each channel alone: [channels]."""

    def take_out(self, lost: Tensor, kept: Tensor) -> Tensor:
        """Take channels out (lost and kept: int64 positions) and let the others make up for them; gives the cost."""


@dataclass
class _Joint:
    """A reading of q inputs for each channel, in which the other channels make up for those that go."""

    inverse: Tensor  # of the second moments of the inputs: [channels * q, channels * q]
    weights: Tensor  # [channels * q, outputs], in units of the standard deviation of all outputs together
    q: int

    def costs(self) -> Tensor:
        channels = len(self.inverse) // self.q
        blocks = self.inverse.reshape(channels, self.q, channels, self.q).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weights = self.weights.reshape(channels, self.q, -1)
        return torch.sum(weights * torch.linalg.solve(blocks, weights), (1, 2))

    def take_out(self, lost: Tensor, kept: Tensor) -> Tensor:
        lost, kept = _spread(lost, self.q), _spread(kept, self.q)
        across = self.inverse[kept[:, None], lost]  # [kept, lost]
        weights = self.weights[lost]
        solved = torch.linalg.solve(self.inverse[lost[:, None], lost], torch.cat([across.mT, weights], 1))
        self.inverse = self.inverse[kept[:, None], kept].addmm_(across, solved[:, : len(kept)], alpha=-1)
        self.weights = self.weights[kept].addmm_(across, solved[:, len(kept) :], alpha=-1)
        return torch.sum(weights * solved[:, len(kept) :])


@dataclass
class _Separate:
    """A reading in which nothing makes up for what goes: that of a grouped convolution, or one of too many inputs."""

    each: Tensor  # [channels]

    def costs(self) -> Tensor:
        return self.each

    def take_out(self, lost: Tensor, kept: Tensor) -> Tensor:
        cost = torch.sum(self.each[lost])
        self.each = self.each[kept]
        return cost


def _reading(layer: SolvableLayer, positions: Tensor, moments: Tensor) -> _Reading:
    """positions: int64 [width, k], among the layer's inputs. moments: of its inputs, [d, d], or their variances [d]."""
    matrix = weight_matrix(layer).cpu()
    weights = matrix.flatten(0, 1)  # [inputs * weights of each, outputs of a group]
    per_input = len(weights) // (layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)
    rows = _spread(positions, per_input)  # [width, k * per_input]
    if moments.dim() == 1:
        energy = moments * weights.square().sum(1)
        return _Separate(energy[rows].sum(1) / energy.sum().clamp_min(1e-30))
    weights = weights / (weights * (moments @ weights)).sum().clamp_min(1e-30).sqrt()
    order = rows.flatten()
    factor = damped_cholesky(moments[order[:, None], order][None], RIDGE)[0]
    return _Joint(torch.cholesky_inverse(factor), weights[order], rows.shape[1])


def _take_apart(readings: Sequence[_Reading], width: int) -> Tensor:
    """The cost of each channel in the order in which they go, which never falls: float [width]."""
    scores = torch.full((width,), torch.inf)
    left, dearest = torch.arange(width), torch.tensor(0.0)
    while len(left) > 1:
        costs = torch.stack([reading.costs() for reading in readings]).sum(0)
        order = costs.argsort(stable=True)
        count = min(-(-width // STEPS), len(left) - 1)
        lost, kept = order[:count], order[count:].sort().values
        together = torch.stack([reading.take_out(lost, kept) for reading in readings]).sum()
        shares = (costs[lost] / costs[lost].sum().clamp_min(1e-30) * together).cummax(0).values.clamp_min(dearest)
        scores[left[lost]] = shares
        left, dearest = left[kept], shares[-1]
    scores[left] = 2 * dearest  # what the last one costs can't be told, but it goes last
    return scores


def _readers(layers: Mapping[str, SolvableLayer], group: Group) -> list[Member]:
    """The layers that read the group's channels: only those where others can make up for one, if there are such."""
    members = [member for member in group.readers if member.layer.name in layers]
    return [member for member in members if _is_joint(layers[member.layer.name])] or members


def _by_weights(graph: Graph, group: Group) -> _Separate:
    """Where no reader is a layer of torch: the share of the weights that read a channel, or that make it."""
    each = torch.zeros(group.width)
    for member in group.readers or group.makers:
        weight = graph.tensors[member.layer.weight].detach().float()
        by_channel = (input_weights if member.side == "inputs" else filters)(member.layer, weight).square().sum(1)
        each += (by_channel / by_channel.sum().clamp_min(1e-30))[member.positions].sum(1)
    return _Separate(each)


def _is_joint(layer: SolvableLayer) -> bool:
    groups, unknowns, _ = weight_matrix(layer).shape
    return groups == 1 and unknowns <= MAX_UNKNOWNS


def _input_moments(
    layers: Mapping[str, SolvableLayer], network: nn.Module, batches: Batches, progress: Progress, seed: int
) -> dict[str, Tensor]:
    """The covariances [d, d] of each layer's inputs, or where that is no use the variances [g * d]."""
    count = min(BATCHES, len(batches))
    collectors = {name: _Collector(layer, ROWS / count, seed) for name, layer in layers.items()}
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(collectors[name]).remove)
        stack.enter_context(torch.no_grad())
        advance = stack.enter_context(progress("collect activations", count))
        for images in islice(batches, count):
            network(images.float().cpu())
            advance(1)
    return {name: collector.moments() for name, collector in collectors.items()}


class _Collector:
    """A forward hook that sums up the moments of a layer's inputs."""

    def __init__(self, layer: SolvableLayer, rows_per_batch: float, seed: int) -> None:
        self._sampler = Sampler(rows_per_batch, seed)
        self._joint = Moments() if _is_joint(layer) else None
        self._sums = torch.zeros(3, 1)  # of ones, inputs and their squares

    def __call__(self, layer: SolvableLayer, inputs: tuple[Any, ...], outputs: Tensor) -> None:
        rows = input_rows(layer, inputs[0], self._sampler.positions(layer, outputs))  # [g, n, d]
        if self._joint:
            self._joint.add(rows, rows[..., :0])
            return
        sums = torch.stack([torch.ones_like(rows), rows, rows.square()]).sum(2).flatten(1)  # [3, g * d]
        self._sums = self._sums.to(sums.device) + sums

    def moments(self) -> Tensor:
        if self._joint:
            _, _, products, _ = self._joint.centred()
            covariance: Tensor = products[0].float().cpu() / self._joint.count
            return covariance
        count, first, second = self._sums.cpu()
        variance: Tensor = second / count - (first / count).square()
        return variance.clamp_min(0)


def _spread(positions: Tensor, size: int) -> Tensor:
    """The places of blocks of `size` where those of their numbers are wanted: [..., k] -> [..., k * size]."""
    return (positions[..., None] * size + torch.arange(size)).flatten(-2)
