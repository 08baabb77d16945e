"""How much each channel of a group matters: the least important are cut.

Every importance is summed over the whole group: over all layers that make its channels.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimkit.core.data import Batches
from slimkit.core.data.randomness import uniform
from slimkit.core.errors import ModelError, UsageError
from slimkit.core.measure.modes import evaluating
from slimkit.core.progress import Progress, silent
from slimkit.core.pruning.elimination import error
from slimkit.core.pruning.groups import Group, Member

ByWeights = Callable[[nn.Module, Group], Tensor]
ByImages = Callable[[nn.Module, Sequence[Group], Batches, Progress, int], tuple[Tensor, ...]]


def score_groups(
    module: nn.Module,
    groups: Sequence[Group],
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
        scores = (by_weights[importance](module, group) for group in groups)
        return tuple(score / score.mean().clamp_min(1e-30) for score in scores)  # layers differ in scale
    if importance not in _BY_IMAGES:
        raise UsageError(f"There is no importance called {importance}.", f"Choose one of {', '.join(IMPORTANCES)}.")
    if batches is None:
        raise UsageError(f"The importance {importance} is measured on images.", "Give data, or choose another: l1.")
    return _BY_IMAGES[importance](module, groups, batches, progress, seed)


def l1(module: nn.Module, group: Group) -> Tensor:
    """The sum of the absolute weights of each filter (Li et al. 2017, arXiv:1608.08710)."""
    return _over_filters(module, group, lambda filters: filters.abs().sum(1))


def l2(module: nn.Module, group: Group) -> Tensor:
    """The Euclidean norm of each filter (He et al. 2018, arXiv:1808.06866)."""
    return _over_filters(module, group, lambda filters: filters.norm(dim=1))


def fpgm(module: nn.Module, group: Group) -> Tensor:
    """The distance of each filter to all others of its layer: those near the geometric median can be told by the rest.

    He et al. 2019, Filter Pruning via Geometric Median, arXiv:1811.00250.
    """
    return _over_filters(module, group, lambda filters: torch.cdist(filters, filters).sum(1))


def bn_scale(module: nn.Module, group: Group) -> Tensor:
    """The absolute scale that BatchNorm gives each channel (Liu et al. 2017, Network Slimming, arXiv:1708.06519)."""
    norms = [member for member in group.members if _is_scaling_norm(module.get_submodule(member.layer))]
    if not norms:
        raise ModelError(
            f"{group.makers(module)[0].layer} is followed by no BatchNorm whose scale could tell its importance.",
            "Choose another importance, such as l1.",
        )
    return _sum(norms, lambda layer: weight_of(module, layer).abs().float().cpu())


def random(module: nn.Module, group: Group, seed: int = 0) -> Tensor:
    """Numbers of no meaning, the same for the same group and seed: the control that every importance has to beat."""
    names = ",".join(member.layer for member in group.members).encode()
    return uniform(torch.arange(group.width), (seed, zlib.crc32(names)), draws=1).flatten()


def taylor(
    module: nn.Module, groups: Sequence[Group], batches: Batches, progress: Progress, seed: int = 0
) -> tuple[Tensor, ...]:
    """The squared change of the loss, to first order, when a channel's weights go: the mean over batches.

    Molchanov et al. 2019, arXiv:1906.10771. There are no labels, so the loss is that of answers drawn by the network's
    own probabilities: its squared gradient is the Fisher information.
    """
    names = sorted({maker.layer for group in groups for maker in group.makers(module)})
    weights = {f"{name}.weight": weight_of(module, name).requires_grad_() for name in names}
    totals = [torch.zeros(group.width) for group in groups]
    draws = torch.Generator().manual_seed(seed)
    with evaluating(module), progress("score channels", len(batches)) as advance:
        for images in batches:
            logits = torch.func.functional_call(module, weights, (images.to(weights[f"{names[0]}.weight"]),))
            gradients = torch.autograd.grad(own_loss(logits, draws), list(weights.values()))
            changes = {
                name: (weight.detach() * gradient).flatten(1).sum(1).float().cpu()
                for name, weight, gradient in zip(names, weights.values(), gradients, strict=True)
            }
            for group, total in zip(groups, totals, strict=True):
                total += _sum(group.makers(module), changes.__getitem__).square()
            advance(1)
    return tuple(total / len(batches) for total in totals)


def own_loss(logits: Tensor, draws: torch.Generator) -> Tensor:
    """The mean cross entropy of logits [n, classes] to classes that are drawn by the probabilities they give."""
    classes = torch.multinomial(logits.detach().float().cpu().softmax(1), 1, generator=draws).flatten()
    return F.cross_entropy(logits.float(), classes.to(logits.device))


def _is_scaling_norm(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.affine


def weight_of(module: nn.Module, layer: str) -> Tensor:
    """The weight of the layer of that name, without its gradient."""
    return module.get_parameter(f"{layer}.weight").detach()


def _over_filters(module: nn.Module, group: Group, score: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum of `score(filters)` ([out, weights of one] -> [out]) over all layers that make the group's channels."""
    return _sum(group.makers(module), lambda layer: score(weight_of(module, layer).flatten(1).float().cpu()))


def _sum(members: Sequence[Member], score: Callable[[str], Tensor]) -> Tensor:
    """Of each channel of a group, the sum of the scores ([channels of a layer]) at all its positions: [width]."""
    return torch.stack([score(member.layer)[member.positions].sum(1) for member in members]).sum(0)


_BY_WEIGHTS: dict[str, ByWeights] = {"l1": l1, "l2": l2, "fpgm": fpgm, "bn_scale": bn_scale, "random": random}
_BY_IMAGES: dict[str, ByImages] = {"taylor": taylor, "error": error}
IMPORTANCES = (*_BY_WEIGHTS, *_BY_IMAGES)
