"""Torch-Pruning at its best: every importance and scope that it has for CNNs, at a given share of the MACs."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from slimkit.core.measure.macs import count_macs

Labelled = list[tuple[Tensor, Tensor]]  # normalized images [n, 3, h, w], labels [n]

IMPORTANCES: dict[str, Callable[[], Any]] = {
    "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "lamp": lambda: tp.importance.LAMPImportance(),
    "fpgm": lambda: tp.importance.FPGMImportance(),
    "bn_scale": lambda: tp.importance.BNScaleImportance(),
    "taylor": lambda: tp.importance.GroupTaylorImportance(),
    "hessian": lambda: tp.importance.GroupHessianImportance(),
}
SCOPES = {
    "local": {},
    "global": {"global_pruning": True},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
}
MAX_RATE = 0.9
TOLERANCE = 0.01  # of the MACs asked for, at which the search ends
FARTHEST = 0.05  # what counts as there: widths that are rounded down come no nearer in some scopes
WIDTH_STEP = 16  # channels, as slimkit has it in this benchmark


def settings() -> Iterator[tuple[str, str]]:
    """All pairs of an importance and a scope."""
    return ((importance, scope) for importance in IMPORTANCES for scope in SCOPES)


def prune_to_macs(
    module: nn.Module, input_shape: tuple[int, ...], importance: str, scope: str, macs: float, labelled: Labelled
) -> nn.Module | None:
    """`module` cut to the share `macs` of its MACs by Torch-Pruning, in eval mode; None where no ratio leads there."""
    whole, low, high = sum(count_macs(module, input_shape).values()), 0.0, 1.0
    best, nearest = None, FARTHEST
    for _ in range(12):
        ratio = (low + high) / 2
        cut = prune(module, input_shape, importance, scope, ratio, labelled, round_to=WIDTH_STEP)
        share = sum(count_macs(cut, input_shape).values()) / whole
        if abs(share / macs - 1) <= nearest:
            best, nearest = cut, abs(share / macs - 1)
        if nearest <= TOLERANCE:
            break
        low, high = (ratio, high) if share > macs else (low, ratio)
    return best


def prune(
    module: nn.Module,
    input_shape: tuple[int, ...],
    importance: str,
    scope: str,
    ratio: float,
    labelled: Labelled = (),
    round_to: int | None = None,
) -> nn.Module:
    """`module` cut by Torch-Pruning at a pruning ratio in one step, in eval mode; the classifier keeps its outputs."""
    cut = copy.deepcopy(module).eval()
    scorer = IMPORTANCES[importance]()
    if importance in ("taylor", "hessian"):
        _accumulate_gradients(cut, scorer, labelled)
    last = [layer for layer in cut.modules() if isinstance(layer, nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
        cut,
        torch.randn(1, *input_shape),
        importance=scorer,
        pruning_ratio=ratio,
        max_pruning_ratio=MAX_RATE,
        round_to=round_to,
        ignored_layers=[last],
        **SCOPES[scope],
    )
    pruner.step()
    cut.zero_grad()
    return cut


def _accumulate_gradients(module: nn.Module, scorer: Any, labelled: Labelled) -> None:
    """The gradients that Torch-Pruning's Taylor and Hessian importances read, as its examples make them."""
    if isinstance(scorer, tp.importance.GroupTaylorImportance):
        for images, labels in labelled:
            F.cross_entropy(module(images), labels).backward()
        return
    images, labels = labelled[0]
    for loss in F.cross_entropy(module(images), labels, reduction="none"):
        module.zero_grad()
        loss.backward(retain_graph=True)
        scorer.accumulate_grad(module)
