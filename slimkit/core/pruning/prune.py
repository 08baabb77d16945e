"""Pruning: find the groups, choose channels, cut them out, prove it, measure BatchNorm anew."""

import dataclasses
from collections.abc import Container, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from slimkit.core.architecture import PruningRate
from slimkit.core.data import Batches
from slimkit.core.errors import ModelError, UsageError
from slimkit.core.folder import Classifier
from slimkit.core.measure.macs import count_macs, count_network
from slimkit.core.models.describe import describe_layers
from slimkit.core.progress import Progress, silent
from slimkit.core.pruning.allocation import MAX_RATE, Scope, allocate, channel_macs
from slimkit.core.pruning.groups import Group, Grouping, find_groups, merge_cuts
from slimkit.core.pruning.importance import score_groups
from slimkit.core.pruning.recalibrate import recalibrate
from slimkit.core.pruning.reconstruct import reconstruct as reconstruct_layers
from slimkit.core.pruning.report import Extent, GroupCut, PrunedModule, PruneReport, PruneResult
from slimkit.core.pruning.surgery import cut_layers
from slimkit.core.pruning.verify import verify_cut


@dataclass(frozen=True)
class Plan:
    """Which channels are to go, and what was asked for that led to them."""

    grouping: Grouping
    chosen: tuple[Tensor, ...]  # the channels that each group loses: int64
    asked: float  # share of the channels
    step: str  # as it is recorded in the architecture's compression_steps


@dataclass(frozen=True)
class Repaired:
    """A cut network, the proof of the cut, and the images that it was repaired on (0: it was not)."""

    module: nn.Module
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
    shape = classifier.architecture.input_shape
    plan = plan_rate(
        classifier.module,
        find_groups(classifier.module, shape),
        shape,
        rate=rate,
        importance=importance,
        scope=scope,
        max_rate=max_rate,
        round_to=round_to,
        batches=batches,
        seed=seed,
        progress=progress,
    )
    return carry_out(classifier, plan, batches=batches, reconstruct=reconstruct, seed=seed, progress=progress)


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

    Raises UsageError for a rate that can't be used, ModelError for a network that can't be traced or has nothing to
    cut, MissedError where the cut network does not compute what the masked original does.
    """
    grouping = find_groups(module, input_shape)
    plan = plan_rate(
        module,
        grouping,
        input_shape,
        rate=rate,
        importance=importance,
        scope=scope,
        max_rate=max_rate,
        round_to=round_to,
        batches=batches,
        seed=seed,
        progress=progress,
    )
    return carry_out_on_module(
        module, input_shape, plan, batches=batches, reconstruct=reconstruct, seed=seed, progress=progress
    )


def plan_rate(
    module: nn.Module,
    grouping: Grouping,
    input_shape: Sequence[int],
    *,
    rate: float,
    importance: str | None = None,
    scope: Scope = "local",
    max_rate: float = MAX_RATE,
    round_to: Sequence[int] | None = None,
    batches: Batches | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Plan:
    """Choose the share `rate` of the channels; the arguments are those of `prune_module`, and so is what it raises."""
    check_rate(rate)
    importance = importance or ("error" if batches is not None else "l1")
    scores = score_groups(module, grouping.groups, importance, batches, progress, seed=seed)
    chosen = allocate(
        module,
        grouping.groups,
        scores,
        rate,
        scope=scope,
        max_rate=max_rate,
        round_to=round_to,
        costs=channel_macs(module, grouping.groups, input_shape) if importance == "error" else None,
    )
    _require_channels(module, grouping, chosen, rate)
    return Plan(grouping, chosen, asked=rate, step=f"prune ({importance}, rate {rate:g})")


def carry_out(
    classifier: Classifier,
    plan: Plan,
    *,
    batches: Batches | None = None,
    reconstruct: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> PruneResult:
    """Cut what `plan` says out of a classifier, prove it, repair it, and record it in the architecture."""
    architecture = classifier.architecture
    shape = architecture.input_shape
    pruned = carry_out_on_module(
        classifier.module, shape, plan, batches=batches, reconstruct=reconstruct, seed=seed, progress=progress
    )
    earlier = architecture.pruning_rate
    module = pruned.module.eval()
    widths = {layer.name: layer.width_before or layer.out_channels or 0 for layer in architecture.layers}
    made = dataclasses.replace(
        architecture,
        layers=describe_layers(module, shape, widths),
        count=count_network(module, shape),
        pruning_rate=PruningRate(
            asked=_together(earlier.asked, plan.asked), reached=_together(earlier.reached, pruned.report.reached)
        ),
        compression_steps=(*architecture.compression_steps, plan.step),
    )
    return PruneResult(Classifier(module, made), pruned.report)


def carry_out_on_module(
    module: nn.Module,
    input_shape: Sequence[int],
    plan: Plan,
    *,
    batches: Batches | None = None,
    reconstruct: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> PrunedModule:
    """Cut what `plan` says out of a network, prove it and repair it on `batches`; `module` itself stays as it is."""
    repaired = cut_and_repair(
        module,
        plan.grouping,
        plan.chosen,
        input_shape=input_shape,
        batches=batches,
        reconstruct=reconstruct,
        seed=seed,
        progress=progress,
    )
    before, after = _extents(module, repaired.module, input_shape)
    pairs = zip(plan.grouping.groups, plan.chosen, strict=True)
    report = PruneReport(
        asked=plan.asked,
        before=before,
        after=after,
        groups=tuple(_summary(module, group, lost) for group, lost in pairs),
        whole=plan.grouping.whole,
        difference=repaired.difference,
        reconstructed_images=repaired.reconstructed_images,
        recalibrated_images=repaired.recalibrated_images,
    )
    return PrunedModule(repaired.module, report)


def cut_and_repair(
    module: nn.Module,
    grouping: Grouping,
    chosen: Sequence[Tensor],
    *,
    input_shape: Sequence[int],
    batches: Batches | None = None,
    reconstruct: bool = True,
    only: Container[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Repaired:
    """Cut the channels `chosen[i]` (int64) out of group i, prove it on random input, and repair the rest on `batches`.

    only: the layers that are reconstructed, where it is not all of them.
    Raises MissedError where the cut network does not compute what the masked original does.
    """
    cuts = merge_cuts(grouping.groups, chosen)
    cut = cut_layers(module, cuts)
    difference = verify_cut(module, cut, cuts, input_shape)
    solved = recalibrated = 0
    if batches is not None:
        if reconstruct:
            solved = reconstruct_layers(module, cut, cuts, batches, only=only, seed=seed, progress=progress)
        recalibrated = recalibrate(cut, batches, keep_answers=reconstruct, progress=progress)
    return Repaired(cut, difference, solved, recalibrated)


def check_rate(rate: float) -> None:
    """Raise UsageError for what is no share of the channels."""
    if not 0 < rate < 1:  # NaN fails this too
        raise UsageError(f"The pruning rate {rate:g} is not 0 < rate < 1.", "Give a share such as 0.3.")


def _require_channels(module: nn.Module, grouping: Grouping, chosen: Sequence[Tensor], rate: float) -> None:
    if not grouping.groups:
        layer, reason = next(iter(grouping.whole.items()), (type(module).__name__, "it has no layers of channels"))
        raise ModelError(f"Nothing can be cut out of this network. {layer}: {reason}.", "Prune another network.")
    if not any(len(lost) for lost in chosen):
        widest = max(group.width for group in grouping.groups)
        raise UsageError(
            f"The rate {rate:g} is less than one channel of the widest group, which has {widest}.",
            f"Give a rate of at least {0.5 / widest:.2g}.",
        )


def _summary(module: nn.Module, group: Group, lost: Tensor) -> GroupCut:
    return GroupCut(tuple(maker.layer for maker in group.makers(module)), group.width, group.width - len(lost))


def _extents(module: nn.Module, cut: nn.Module, input_shape: Sequence[int]) -> tuple[Extent, Extent]:
    """The sizes of a network and of what was cut out of it, for images of `input_shape`."""
    macs = count_macs(module, input_shape)
    # a layer is called as often and gives as many pixels as before, so its MACs go with its weights
    cut_macs = sum(n * _count_weights(cut, name) // _count_weights(module, name) for name, n in macs.items())
    whole, in_layers = count_network(module, input_shape).macs, sum(macs.values())
    if whole != in_layers:  # products of no layer, as in attention
        cut_macs = count_network(cut, input_shape).macs
    return _extent(module, whole), _extent(cut, cut_macs)


def _count_weights(module: nn.Module, layer: str) -> int:
    """How many weights the layer of that name has, be they computed or its own."""
    weight = module.get_submodule(layer).weight
    assert isinstance(weight, Tensor)  # as all layers have that are counted
    return weight.numel()


def _extent(module: nn.Module, macs: int) -> Extent:
    return Extent(
        macs=macs,
        parameters=sum(p.numel() for p in module.parameters()),
        bytes=sum(t.numel() * t.element_size() for t in module.state_dict().values()),
    )


def _together(earlier: float, now: float) -> float:
    """The share that two cuts, one after the other, took away."""
    return 1 - (1 - earlier) * (1 - now)
