"""Pruning: find the groups, choose channels, cut them out, prove it, measure BatchNorm anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimkit.core.architecture import Architecture, PruningRate
from slimkit.core.data import Batches
from slimkit.core.errors import ModelError, UsageError
from slimkit.core.folder import Classifier
from slimkit.core.graph import Graph, capture
from slimkit.core.graph.capture import unwrap
from slimkit.core.progress import Progress, silent
from slimkit.core.pruning.channels.groups import Group, Grouping, find_groups
from slimkit.core.pruning.choose.allocation import MAX_RATE, Scope, allocate
from slimkit.core.pruning.choose.importance import score_groups
from slimkit.core.pruning.cost.shapes import Shapes, graph_cost
from slimkit.core.pruning.cut.fit import fit_classifier
from slimkit.core.pruning.cut.surgery import cut_channels
from slimkit.core.pruning.cut.verify import verify_cut
from slimkit.core.pruning.repair.recalibrate import recalibrate
from slimkit.core.pruning.repair.reconstruct import reconstruct
from slimkit.core.pruning.report import GroupCut, PrunedModule, PruneReport, PruneResult
from slimkit.standalone.model import GraphNetwork


@dataclass(frozen=True)
class Choice:
    """How the channels that go are chosen."""

    rate: float  # share of the channels
    importance: str | None = None  # a name in `importance.IMPORTANCES`; None: `error` with images, `l1` without
    scope: Scope = "local"  # see `allocation.allocate`, as for the next two
    max_rate: float = MAX_RATE
    round_to: Sequence[int] | None = None


@dataclass(frozen=True)
class Repair:
    """How a cut network is repaired."""

    batches: Batches | None = None  # normalized images [n, channels, height, width]; None: it is not repaired
    reconstruct: bool = True  # whether every layer is solved anew, and not BatchNorm's statistics alone
    seed: int = 0  # of everything that is drawn
    progress: Progress = silent


@dataclass(frozen=True)
class Plan:
    """Which channels are to go, and what was asked for that led to them."""

    grouping: Grouping
    chosen: tuple[Tensor, ...]  # the channels that each group loses: int64
    asked: float  # share of the channels
    step: str  # as it is recorded in the architecture's compression_steps


@dataclass(frozen=True)
class Cut:
    """A graph that was cut and repaired, the proof of the cut, and the images of the repair (0: there was none)."""

    graph: Graph
    difference: float  # between the logits of the cut network and the masked original, relative; before the repair
    reconstructed_images: int
    recalibrated_images: int


def prune(
    classifier: Classifier,
    *,
    rate: float,
    importance: str | None = None,
    scope: Scope = "local",
    max_rate: float = MAX_RATE,
    round_to: Sequence[int] | None = None,
    batches: Batches | None = None,
    reconstruct: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> PruneResult:
    """Cut the share `rate` of its channels out of `classifier`; see `prune_module`."""
    repair = Repair(batches, reconstruct, seed, progress)
    plan = plan_rate(group_classifier(classifier), Choice(rate, importance, scope, max_rate, round_to), repair)
    return carry_out(classifier, plan, repair)


def prune_module(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    rate: float,
    importance: str | None = None,
    scope: Scope = "local",
    max_rate: float = MAX_RATE,
    round_to: Sequence[int] | None = None,
    batches: Batches | None = None,
    reconstruct: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> PrunedModule:
    """Cut the share `rate` of its channels out of a network; `module` itself stays as it is.

    input_shape: (channels, height, width) of one image.
    importance: a name in `importance.IMPORTANCES`; None: `error` with images, `l1` without.
    scope, max_rate, round_to: how the share is spread over the groups, see `allocation.allocate`.
    batches: normalized images [n, *input_shape] on which the network is repaired, if any.
    reconstruct: whether that repair solves every layer anew (`reconstruct.py`), and not BatchNorm's statistics alone.
    seed: of everything that is drawn: positions that are sampled, answers for `taylor`, scores for `random`.

    The result has the tensors of `module` under their names, and its mode, dtype and device.
    Raises UsageError for a rate that can't be used, ModelError for a network that can't be captured or has nothing to
    cut, MissedError where the cut network does not compute what the masked original does.
    """
    check_rate(rate)
    repair = Repair(batches, reconstruct, seed, progress)
    grouping = find_groups(capture(module, input_shape))
    plan = plan_rate(grouping, Choice(rate, importance, scope, max_rate, round_to), repair)
    cut = cut_and_repair(grouping, plan.chosen, repair)
    return PrunedModule(_as_it_was(cut.graph.network(), module), report_of(plan, cut))


def _as_it_was(network: nn.Module, module: nn.Module) -> nn.Module:
    """The network, with the modes, the dtype and the device of the one that it was captured of."""
    modes = {name: part.training for name, part in unwrap(module).named_modules()}
    for name, part in network.named_modules():
        part.training = modes.get(name, module.training)
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    return network.to(like.device, like.dtype)


def group_classifier(classifier: Classifier) -> Grouping:
    """The groups of a classifier. Where it is rebuilt from a class, the sizes in that class's code stay."""
    is_graph = classifier.architecture.is_graph
    graph = capture(classifier.module, classifier.architecture.input_shape, fixed_size=not is_graph)
    return find_groups(graph, fixed_arguments=not is_graph)


def plan_rate(grouping: Grouping, choice: Choice, repair: Repair) -> Plan:
    """Choose channels. Raises as `prune_module` does."""
    check_rate(choice.rate)
    importance = choice.importance or ("error" if repair.batches is not None else "l1")
    scores = score_groups(grouping, importance, repair.batches, repair.progress, seed=repair.seed)
    chosen = allocate(
        grouping.groups,
        scores,
        choice.rate,
        scope=choice.scope,
        max_rate=choice.max_rate,
        round_to=choice.round_to,
        costs=Shapes(grouping, grouping.graph.input_shape).channel_macs() if importance == "error" else None,
    )
    _require_channels(grouping, chosen, choice.rate)
    return Plan(grouping, chosen, asked=choice.rate, step=f"prune ({importance}, rate {choice.rate:g})")


def carry_out(classifier: Classifier, plan: Plan, repair: Repair) -> PruneResult:
    """Cut what `plan` says out of a classifier, prove it, repair it, and record it in the architecture."""
    cut = cut_and_repair(plan.grouping, plan.chosen, repair)
    report = report_of(plan, cut)
    fitted = fit_classifier(classifier, cut.graph, plan.grouping.trace.random_images())
    return PruneResult(Classifier(fitted.module, with_step(fitted.architecture, report, plan.step)), report)


def with_step(architecture: Architecture, report: PruneReport, step: str) -> Architecture:
    """The architecture of what was cut, with the cut recorded."""
    earlier = architecture.pruning_rate
    rate = PruningRate(_together(earlier.asked, report.asked), _together(earlier.reached, report.reached))
    return dataclasses.replace(
        architecture, pruning_rate=rate, compression_steps=(*architecture.compression_steps, step)
    )


def cut_and_repair(
    grouping: Grouping, chosen: Sequence[Tensor], repair: Repair, *, only: Container[str] | None = None
) -> Cut:
    """Cut the channels `chosen[i]` (int64) out of group i, prove it on random input, and repair the rest.

    only: the layers that are reconstructed, where it is not all of them.
    Raises MissedError where the cut network does not compute what the masked original does.
    """
    cut = cut_channels(grouping, chosen)
    proven = Cut(cut, verify_cut(grouping, chosen, cut), 0, 0)
    return repaired(grouping.graph, proven, cut.network(), kept_outputs(grouping, chosen), repair, only=only)


def repaired(
    original: Graph,
    cut: Cut,
    network: GraphNetwork,
    kept: Mapping[str, Tensor],
    repair: Repair,
    *,
    only: Container[str] | None = None,
) -> Cut:
    """`cut` with the tensors that `network`, which has those of its graph, comes to by `repair`.

    kept, only: as for `reconstruct`, for which `network` has the nodes of `original`.
    """
    if repair.batches is None:
        return cut
    solved, batches, progress = 0, repair.batches, repair.progress
    if repair.reconstruct:
        solved = reconstruct(original, network, kept, batches, only=only, seed=repair.seed, progress=progress)
    recalibrated = recalibrate(network, batches, keep_answers=repair.reconstruct, progress=progress)
    graph = dataclasses.replace(cut.graph, tensors={name: network.tensor(name) for name in cut.graph.tensors})
    return Cut(graph, cut.difference, solved, recalibrated)


def kept_outputs(grouping: Grouping, chosen: Sequence[Tensor]) -> dict[str, Tensor]:
    """The outputs that are left (int64) of each layer that loses some, by its path."""
    left = grouping.left(chosen)
    masks = {layer.name: left[layer.outputs] for layer in grouping.trace.layers.values()}
    return {name: mask.nonzero().flatten() for name, mask in masks.items() if not mask.all()}


def check_rate(rate: float) -> None:
    """Raise UsageError for what is no share of the channels."""
    if not 0 < rate < 1:  # NaN fails this too
        raise UsageError(f"The pruning rate {rate:g} is not 0 < rate < 1.", "Give a share such as 0.3.")


def require_groups(grouping: Grouping) -> None:
    """Raise ModelError where there is nothing that could be cut."""
    if not grouping.groups:
        layer, reason = next(iter(grouping.whole.items()), ("The network", "it has no layers of channels"))
        raise ModelError(f"Nothing can be cut out of this network. {layer}: {reason}.", "Prune another network.")


def _require_channels(grouping: Grouping, chosen: Sequence[Tensor], rate: float) -> None:
    require_groups(grouping)
    if not any(len(lost) for lost in chosen):
        widest = max(group.width for group in grouping.groups)
        raise UsageError(
            f"The rate {rate:g} is less than one channel of the widest group, which has {widest}.",
            f"Give a rate of at least {0.5 / widest:.2g}.",
        )


def report_of(plan: Plan, cut: Cut) -> PruneReport:
    """What was asked for, what was done, and the proof of it."""
    graph = plan.grouping.graph
    pairs = zip(plan.grouping.groups, plan.chosen, strict=True)
    return PruneReport(
        asked=plan.asked,
        before=graph_cost(graph, graph.input_shape),
        after=graph_cost(cut.graph, graph.input_shape),
        groups=tuple(_summary(group, lost) for group, lost in pairs),
        whole=plan.grouping.whole | dict.fromkeys(_unreached(graph), "inference does not reach it"),
        difference=cut.difference,
        reconstructed_images=cut.reconstructed_images,
        recalibrated_images=cut.recalibrated_images,
    )


def _summary(group: Group, lost: Tensor) -> GroupCut:
    return GroupCut(tuple(maker.layer.name for maker in group.makers), group.width, group.width - len(lost))


def _unreached(graph: Graph) -> list[str]:
    """The layers whose weights inference does not reach."""
    return [name.removesuffix(".weight") for name in graph.unused if name.endswith(".weight")]


def _together(earlier: float, now: float) -> float:
    """The share that two cuts, one after the other, took away."""
    return 1 - (1 - earlier) * (1 - now)
