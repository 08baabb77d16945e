"""The search for a cut that keeps to a budget, on one classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from slimkit.core.architecture import with_detail
from slimkit.core.data import Batches, CalibrationBatches, Images, ImageSet, label_map
from slimkit.core.errors import UsageError
from slimkit.core.folder import Classifier
from slimkit.core.measure.accuracy import evaluate
from slimkit.core.options import PruneOptions
from slimkit.core.progress import Progress
from slimkit.core.pruning.channels.groups import Grouping
from slimkit.core.pruning.choose.allocation import Scope, allocate, least_important
from slimkit.core.pruning.choose.budgets import (
    MOST,
    Budget,
    Chosen,
    Point,
    fit_accuracy,
    fit_latency,
    fit_severity,
    missed,
    spend_rest,
)
from slimkit.core.pruning.choose.importance import BY_IMAGES, score_groups
from slimkit.core.pruning.choose.kept_scores import kept_scores
from slimkit.core.pruning.choose.latencies import FINAL_RUNS, Latencies
from slimkit.core.pruning.choose.narrowing import narrow_down, score_lost
from slimkit.core.pruning.choose.sensitivity import accuracy_lost, read_sensitivity
from slimkit.core.pruning.cost.shapes import Cost, Shapes, Widths
from slimkit.core.pruning.cost.width_rounding import steps_of
from slimkit.core.pruning.cut.fit import fit_classifier
from slimkit.core.pruning.cut.surgery import cut_channels
from slimkit.core.pruning.prune import Plan, Repair, carry_out, group_classifier, require_groups
from slimkit.core.pruning.report import Pruned

SEARCH_RUNS = 100  # timed runs of a network on the way
MILDER = 20  # severities below the one that just fits, at which what is left of a budget is spent

Finetune = Callable[[Classifier], Classifier]  # trains in place and records it


@dataclass(frozen=True)
class Search:
    """A classifier, and what the searches for a budget ask of it."""

    classifier: Classifier
    data: ImageSet
    options: PruneOptions
    finetune: Finetune | None
    progress: Progress
    reference: Search | None = None  # on the network from which blocks went before; None: this one is whole

    @cached_property
    def grouping(self) -> Grouping:
        """What can be cut. Raises ModelError where that is nothing."""
        grouping = group_classifier(self.classifier)
        require_groups(grouping)
        return grouping

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one image."""
        return self.classifier.architecture.input_shape

    @cached_property
    def shapes(self) -> Shapes:
        """The costs of all widths."""
        return Shapes(self.grouping, self.input_shape)

    @cached_property
    def latencies(self) -> Latencies:
        """The latencies of all widths."""
        reference = self.reference.latencies if self.reference else None
        return Latencies(self.classifier, self.shapes, self.options, self.progress, reference)

    @property
    def whole(self) -> Cost:
        """Of the uncut network."""
        return self.shapes.cost(self.shapes.full)

    @cached_property
    def batches(self) -> Batches:
        """The training images of the repair."""
        return self.repair_images(len(self.data.train))

    def repair_images(self, most: int) -> Batches:
        """Those of the training images on which a cut is repaired, or `most` of them."""
        options = self.options
        count = options.reconstruction_images if options.reconstruct else options.calibration_images
        return CalibrationBatches(self.data.train, self.data.preprocessing, min(count, most), options.seed)

    @cached_property
    def scores(self) -> tuple[Tensor, ...]:
        """Of the channels of each group."""
        grouping, importance, seed = self.grouping, self.options.importance, self.options.seed

        def measure() -> tuple[Tensor, ...]:
            return score_groups(grouping, importance, self.batches, self.progress, seed=seed)

        return kept_scores(grouping, importance, self.batches, seed, measure) if importance in BY_IMAGES else measure()

    @cached_property
    def steps(self) -> list[int]:
        """What the width of each group is a multiple of."""
        machine = self.latencies.machine
        step = machine.steps[self.options.target] if machine else None
        return steps_of(self.options.round_to, self.shapes.full, self.options.target, step)

    @property
    def scope(self) -> Scope:
        """A rate is what every group loses; any other budget is spent where it costs least, unless told otherwise."""
        options = self.options
        return options.scope or ("local" if options.budgets in ([], ["rate"]) else "global")

    def choose(self, severity: float, *, rounded: bool = True) -> Chosen:
        """The channels that go at a severity; none at 0."""
        if severity == 0:
            return tuple(torch.empty(0, dtype=torch.int64) for _ in self.grouping.groups)
        if self.options.use_sensitivity is not None:
            return self._narrowed(self._macs_path[int(severity / MOST * (len(self._macs_path) - 1))])
        by_error = self.options.importance == "error"
        return allocate(
            self.grouping.groups,
            self.scores,
            severity,
            scope=self.scope,
            max_rate=self.options.max_rate,
            round_to=self.steps if rounded else None,
            costs=self._channel_macs if by_error else None,
        )

    def cost(self, chosen: Chosen) -> Cost:
        """Of what is left."""
        return self.shapes.cost(self.widths(chosen))

    def widths(self, chosen: Chosen) -> Widths:
        """Of what is left."""
        return tuple(full - len(lost) for full, lost in zip(self.shapes.full, chosen, strict=True))

    # The searches

    def to_size(self, budget: Budget) -> Pruned:
        """What keeps to a budget of channels, MACs or parameters."""
        return self.finish(budget, self.to_rate(budget.amount) if budget.kind == "rate" else self.to_cost(budget))

    def to_rate(self, rate: float) -> Chosen:
        """What has no more parameters and no more MACs than the network that loses so many channels unrounded."""
        exact = self.choose(rate, rounded=False)
        if set(self.steps) == {1}:
            return exact
        limit = self.cost(exact)

        def share(chosen: Chosen) -> float:
            cost = self.cost(chosen)
            return max(cost.parameters / limit.parameters, cost.macs / limit.macs)

        smallest = self.choose(MOST)
        if share(smallest) > 1:  # a rate is no promise: the rounding keeps what it must
            return smallest
        return self._fit(share, 1.0, "parameters and MACs")

    def to_cost(self, budget: Budget) -> Chosen:
        """What has no more MACs or parameters than a budget."""
        what = "MACs" if budget.kind == "macs" else "parameters"
        return self._fit(lambda chosen: int(getattr(self.cost(chosen), budget.kind)), budget.amount, what)

    def _fit(self, cost: Callable[[Chosen], float], limit: float, what: str) -> Chosen:
        chosen, milder = fit_severity(self.choose, cost, limit, what=what)
        severity = sum(len(lost) for lost in milder) / sum(self.shapes.full)
        for part in range(MILDER, 0, -1):  # where the next group to grow is too dear, others may still be affordable
            chosen = spend_rest(chosen, milder, cost, limit)
            milder = tuple(
                min(pair, key=len) for pair in zip(chosen, self.choose(severity * part / MILDER), strict=True)
            )
        return chosen

    def to_latency(self, budget: Budget) -> Pruned:
        """Narrow groups by what they lose for a ms saved, until the whole network, measured, is fast enough."""
        latencies, timings = self.latencies, list[float]()
        table, told, measured = latencies.table, latencies.told, latencies.measure

        def measure(point: Point) -> float:
            timings.append(told(point.widths) or measured(self._cut(point.widths), SEARCH_RUNS))
            return timings[-1]

        path = [Point(widths, table.ms(widths)) for widths in self._path(table.ms_saved)]
        point = fit_latency(path, measure, budget.amount)
        pruned = self.finish(budget, self._narrowed(point.widths))
        before = self.reference.latencies.uncut if self.reference else timings[0]
        if after := told(point.widths):
            return dataclasses.replace(pruned, latency=(before, after), machine=latencies.machine)
        after = measured(pruned.result.classifier, FINAL_RUNS)
        if after > budget.amount:  # a passing load on the machine is no reason to throw the repair away
            after = measured(pruned.result.classifier, FINAL_RUNS)
        if after > budget.amount:
            raise missed("ms", budget.amount, min(timings), timings[0], after)
        return dataclasses.replace(pruned, latency=(before, after))

    def keeps_to(self, budget: Budget) -> bool:
        """Whether the network needs no cut for a budget of MACs, parameters or latency."""
        if budget.kind == "latency":
            return self.latencies.uncut <= budget.amount
        return budget.kind in ("macs", "parameters") and getattr(self.whole, budget.kind) <= budget.amount

    def _path(self, saved: Callable[[int, Widths, int], float]) -> tuple[Widths, ...]:
        return narrow_down(self.shapes.full, self.steps, max_rate=self.options.max_rate, lost=self._loss(), saved=saved)

    @cached_property
    def _macs_path(self) -> tuple[Widths, ...]:
        macs = self._channel_macs
        return self._path(lambda group, widths, narrower: macs[group] * (widths[group] - narrower))

    @cached_property
    def _channel_macs(self) -> tuple[float, ...]:
        return self.shapes.channel_macs()

    def _loss(self) -> Callable[[int, int], float]:
        """What is lost by the time that a group has so many channels: accuracy where it was measured, or scores."""
        if self.options.use_sensitivity is not None:
            names = [group.name for group in self.grouping.groups]
            return accuracy_lost(read_sensitivity(self.options.use_sensitivity), names, self.shapes.full)
        return score_lost(self.scores, one_unit=self.options.importance == "error")

    def to_accuracy(self, budget: Budget) -> Pruned:
        """The most severe cut that, repaired and fine-tuned, loses no more than the budget on held-out images."""
        wanted = self.accuracy((self.reference or self).classifier) - budget.amount

        def try_out(chosen: Chosen) -> tuple[Pruned | None, float]:
            if not any(len(lost) for lost in chosen):
                return None, float("inf")
            pruned = self.finish(budget, chosen)
            return pruned, self.accuracy(pruned.result.classifier)

        return fit_accuracy(self.choose, try_out, wanted, self.progress)

    # Networks

    def finish(self, budget: Budget, chosen: Chosen) -> Pruned:
        """Cut, prove, repair, fine-tune and record. Raises UsageError where nothing is chosen."""
        lost = sum(len(channels) for channels in chosen)
        if not lost:
            raise UsageError(
                f"The {budget} takes no channel away: widths are made multiples of {sorted(set(self.steps))}.",
                "Ask for more, or give --round-to none.",
            )
        options = self.options
        asked = budget.amount if budget.kind == "rate" else lost / sum(self.shapes.full)
        plan = Plan(self.grouping, chosen, asked, step=f"prune ({options.importance}, {budget})")
        repair = Repair(self.batches, options.reconstruct, options.seed, self.progress)
        result = carry_out(self.classifier, plan, repair)
        architecture = result.classifier.architecture
        detail = {"stage": "prune", "budget": str(budget), "reached": result.report.reached}
        detail |= dataclasses.asdict(result.report)
        made = Classifier(result.classifier.module, with_detail(architecture, detail))
        if self.finetune is not None:
            made = self.finetune(made)
        return Pruned(dataclasses.replace(result, classifier=made), budget, None)

    def accuracy(self, classifier: Classifier, images: Images | None = None) -> float:
        """Top-1 % on images; None: all that are held out of the training data."""
        classes = label_map(classifier.architecture.class_names, self.data.class_names)
        held_out = self.data.holdout if images is None else images
        return evaluate(classifier.module, held_out, self.data.preprocessing, label_map=classes).top1

    def _narrowed(self, widths: Sequence[int]) -> Chosen:
        return tuple(
            least_important(scores, len(scores) - width) for scores, width in zip(self.scores, widths, strict=True)
        )

    def _cut(self, widths: Sequence[int]) -> Classifier:
        """A network of these widths, for its time alone: neither proven nor repaired."""
        cut = cut_channels(self.grouping, self._narrowed(widths))
        return fit_classifier(self.classifier, cut, self.grouping.trace.random_images())
