"""How much each channel of a group matters: the least important are cut.

Every importance is summed over the whole group: over all layers that make its channels.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from slimkit.core.data import Batches
from slimkit.core.data.randomness import uniform
from slimkit.core.errors import ModelError, UsageError
from slimkit.core.graph import Graph
from slimkit.core.progress import Progress, silent
from slimkit.core.pruning.channels.filters import filters
from slimkit.core.pruning.channels.groups import Group, Grouping, Member
from slimkit.core.pruning.choose.elimination import error

ByWeights = Callable[[Graph, Group], Tensor]
ByImages = Callable[[Grouping, Batches, Progress, int], tuple[Tensor, ...]]


def score_groups(
    grouping: Grouping,
    importance: str,
    batches: Batches | None = None,
    progress: Progress = silent,
    *,
    seed: int = 0,
) -> tuple[Tensor, ...]:
    """How much each channel of each group matters, by an importance of IMPORTANCES: float [width] each, 0 or more.

    batches: normalized images for those that look at more than weights; no labels are needed.
    seed: of what those draw that draw anything.
    Raises UsageError for an importance that isn't known or wants images where there are none, ModelError where the
    network lacks what it looks at.
    """
    by_weights = _BY_WEIGHTS | {"random": partial(random, seed=seed)}
    if importance in by_weights:
        scores = (by_weights[importance](grouping.graph, group) for group in grouping.groups)
        return tuple(score / score.mean().clamp_min(1e-30) for score in scores)  # layers differ in scale
    if importance not in BY_IMAGES:
        raise UsageError(f"There is no importance called {importance}.", f"Choose one of {', '.join(IMPORTANCES)}.")
    if batches is None:
        raise UsageError(f"The importance {importance} is measured on images.", "Give data, or choose another: l1.")
    return BY_IMAGES[importance](grouping, batches, progress, seed)


def l1(graph: Graph, group: Group) -> Tensor:
    """The sum of the absolute weights of each filter (Li et al. 2017, arXiv:1608.08710)."""
    return _over_filters(graph, group, lambda filters: filters.abs().sum(1))


def l2(graph: Graph, group: Group) -> Tensor:
    """The Euclidean norm of each filter (He et al. 2018, arXiv:1808.06866)."""
    return _over_filters(graph, group, lambda filters: filters.norm(dim=1))


def fpgm(graph: Graph, group: Group) -> Tensor:
    """The distance of each filter to all others of its layer: those near the geometric median can be told by the rest.

    He et al. 2019, Filter Pruning via Geometric Median, arXiv:1811.00250.
    """
    return _over_filters(graph, group, lambda filters: torch.cdist(filters, filters).sum(1))


def bn_scale(graph: Graph, group: Group) -> Tensor:
    """The absolute scale that BatchNorm gives each channel (Liu et al. 2017, Network Slimming, arXiv:1708.06519)."""
    norms = [m for m in group.members if m.layer.operation == "batch_norm" and m.layer.weight.endswith("weight")]
    if not norms:
        raise ModelError(
            f"{group.name} is followed by no BatchNorm whose scale could tell its importance.",
            "Choose another importance, such as l1.",
        )
    return _sum(norms, lambda member: graph.tensors[member.layer.weight].detach().abs())


def random(graph: Graph, group: Group, seed: int = 0) -> Tensor:
    """Numbers of no meaning, the same for the same group and seed: the control that every importance has to beat."""
    names = ",".join(member.layer.name for member in group.members).encode()
    return uniform(torch.arange(group.width), (seed, zlib.crc32(names)), draws=1).flatten()


def taylor(grouping: Grouping, batches: Batches, progress: Progress, seed: int = 0) -> tuple[Tensor, ...]:
    """The squared change of the loss, to first order, when a channel's weights go: the mean over batches.

    Molchanov et al. 2019, arXiv:1906.10771. There are no labels, so the loss is that of answers drawn by the network's
    own probabilities: its squared gradient is the Fisher information.
    """
    graph, groups = grouping.graph, grouping.groups
    network = graph.network(copy=False)
    layers = {maker.layer.weight: maker.layer for group in groups for maker in group.makers}
    weights = {name: graph.tensors[name].detach().requires_grad_() for name in layers}
    totals = [torch.zeros(group.width) for group in groups]
    draws = torch.Generator().manual_seed(seed)
    with progress("score channels", len(batches)) as advance:
        for images in batches:
            logits = torch.func.functional_call(network, weights, (images.float().cpu(),))
            gradients = torch.autograd.grad(own_loss(logits, draws), list(weights.values()))
            changes = {
                name: filters(layers[name], weight.detach() * gradient).sum(1)
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
            for group, total in zip(groups, totals, strict=True):
                total += _sum(group.makers, partial(_change_of, changes)).square()
            advance(1)
    return tuple(total / len(batches) for total in totals)


def _change_of(changes: Mapping[str, Tensor], maker: Member) -> Tensor:
    return changes[maker.layer.weight]


def own_loss(logits: Tensor, draws: torch.Generator) -> Tensor:
    """The mean cross entropy of logits [n, classes] to classes that are drawn by the probabilities they give."""
    classes = torch.multinomial(logits.detach().float().cpu().softmax(1), 1, generator=draws).flatten()
    return F.cross_entropy(logits.float(), classes.to(logits.device))


def _over_filters(graph: Graph, group: Group, score: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum of `score(filters)` ([out, weights of one] -> [out]) over all layers that make the group's channels."""
    return _sum(
        group.makers, lambda maker: score(filters(maker.layer, graph.tensors[maker.layer.weight].detach().float()))
    )


def _sum(members: Sequence[Member], score: Callable[[Member], Tensor]) -> Tensor:
    """Of each channel of a group, the sum of the scores ([channels of a layer]) at all its positions: [width]."""
    return torch.stack([score(member)[member.positions].sum(1) for member in members]).sum(0)


_BY_WEIGHTS: dict[str, ByWeights] = {"l1": l1, "l2": l2, "fpgm": fpgm, "bn_scale": bn_scale, "random": random}
BY_IMAGES: dict[str, ByImages] = {"taylor": taylor, "error": error}
IMPORTANCES = (*_BY_WEIGHTS, *BY_IMAGES)
