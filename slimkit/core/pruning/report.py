"""What a pruning did: the cut network with the figures and the proof of it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from slimkit.core.folder import Classifier
from slimkit.core.pruning.choose.budgets import Budget
from slimkit.core.pruning.cost.machine import Machine
from slimkit.core.pruning.cost.shapes import Cost

FEW_MACS = 2 / 3  # of the share of the channels that was to go; of a convolution's MACs nearly twice as much goes


@dataclass(frozen=True)
class GroupCut:
    """What became of one group."""

    layers: tuple[str, ...]  # those that make its channels
    width_before: int
    width: int


@dataclass(frozen=True)
class PruneReport:
    """What was asked for, what was done, and the proof of it."""

    asked: float  # share of the channels that was to go
    before: Cost
    after: Cost
    groups: tuple[GroupCut, ...]
    whole: dict[str, str]  # each layer that keeps all its channels, or some by force: why
    difference: float  # between the logits of the cut network and the masked original, relative; before the repair
    reconstructed_images: int  # 0: the layers have the weights of the uncut network
    recalibrated_images: int  # 0: BatchNorm has the statistics of the uncut network
    blocks: tuple[str, ...] = ()  # that are gone as a whole: what they added to passes through

    @property
    def reached(self) -> float:
        """The share of the channels that went, of all groups together."""
        return 1 - sum(group.width for group in self.groups) / sum(group.width_before for group in self.groups)

    @property
    def shortfall(self) -> str | None:
        """What to warn of where much less went than was asked for."""
        if self.reached < self.asked / 2:
            return (
                f"Only {self.reached:.1%} of the channels went, less than half of the {self.asked:.1%} asked for: "
                "widths are rounded, and each group keeps what it must."
            )
        went = 1 - self.after.macs / self.before.macs
        if went < FEW_MACS * self.asked:
            return (
                f"Only {went:.1%} of the multiply-adds went with {self.reached:.1%} of the channels that can be cut: "
                "most are in layers that stay whole."
            )
        return None

    @property
    def repair(self) -> str:
        """What was done about the error of the cut, as a sentence."""
        if self.reconstructed_images:
            return f"Every layer was solved anew, and BatchNorm measured anew, on {self.recalibrated_images} images."
        if self.recalibrated_images:
            return f"BatchNorm was measured anew on {self.recalibrated_images} images; the weights are the old ones."
        return "Nothing was repaired, for want of images: weights and BatchNorm's statistics are the old ones."


@dataclass(frozen=True)
class PrunedModule:
    """A user's own network, cut."""

    module: nn.Module
    report: PruneReport


@dataclass(frozen=True)
class PruneResult:
    """A classifier, cut."""

    classifier: Classifier
    report: PruneReport

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of it, a sentence each."""
        return (
            f"Proof: the logits differ by {self.report.difference:.1e} (relative) from the original with the same "
            "channels masked.",
            *((f"These blocks went as a whole: {', '.join(self.report.blocks)}.",) if self.report.blocks else ()),
            self.report.repair,
            *((self.report.shortfall,) if self.report.shortfall else ()),
            *(f"{layer} stays whole: {reason}." for layer, reason in self.report.whole.items()),
        )


@dataclass(frozen=True)
class Pruned:
    """A classifier that was pruned to a budget."""

    result: PruneResult
    budget: Budget
    latency: tuple[float, float] | None  # ms before and after, where the budget is one
    machine: Machine | None = None  # on which the ms are predicted; None: they were measured here

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of it, a sentence each."""
        if self.machine is None:
            return self.result.notes
        told = f"The latency is that of {self.machine.cpu} with {self.machine.threads} threads, told from the times of"
        return (*self.result.notes, f"{told} single layers there. It was not measured.")

    @property
    def figures(self) -> dict[str, Any]:
        """What was asked for and reached, as flat JSON values."""
        report = self.result.report
        latency = {"latency_before": self.latency[0], "latency": self.latency[1]} if self.latency else {}
        return {
            "budget": str(self.budget),
            "rate_asked": report.asked,
            "rate_reached": report.reached,
            "parameters_before": report.before.parameters,
            "macs_before": report.before.macs,
            "bytes_before": report.before.bytes,
            "bytes": report.after.bytes,
            "proof_difference": report.difference,
            **latency,
            **({"latency_machine": self.machine.cpu} if self.machine else {}),
        }


def join_cuts(cuts: Sequence[Pruned]) -> Pruned:
    """Cuts that were made one after the other, reported as one: from the first one's network to the last one's."""
    first, last = cuts[0].result.report, cuts[-1].result.report
    report = replace(
        last,
        asked=1 - math.prod(1 - cut.result.report.asked for cut in cuts),
        before=first.before,
        groups=tuple(_joined_groups(first.groups, last.groups)),
        difference=max(cut.result.report.difference for cut in cuts),
        blocks=tuple(block for cut in cuts for block in cut.result.report.blocks),
    )
    return replace(cuts[-1], result=replace(cuts[-1].result, report=report))


def _joined_groups(before: Sequence[GroupCut], after: Sequence[GroupCut]) -> Iterator[GroupCut]:
    """Those of `after` with the widths that they had before, and those whose layers are all gone."""
    first_of = {layer: group for group in before for layer in group.layers}
    found = set[GroupCut]()
    for group in after:
        origin = next((first_of[layer] for layer in group.layers if layer in first_of), group)
        found.add(origin)
        yield replace(group, width_before=origin.width_before)
    for group in before:
        if group not in found:
            yield replace(group, width=0)
