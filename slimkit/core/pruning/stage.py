"""What `slimkit prune` does: a classifier cut to a budget, or the report on its groups' sensitivity."""

from __future__ import annotations

import dataclasses

import torch

from slimkit.core.checks import check_options
from slimkit.core.data import Images, ImageSet
from slimkit.core.folder import Classifier
from slimkit.core.options import DEFAULT_RATE, PruneOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.pruning.choose.budgets import Budget, absolute, parse_latency
from slimkit.core.pruning.choose.latencies import FINAL_RUNS
from slimkit.core.pruning.choose.search import Finetune, Search
from slimkit.core.pruning.choose.sensitivity import Sensitivity, measure_groups
from slimkit.core.pruning.cost.shapes import Cost
from slimkit.core.pruning.depth.search import cut_depth
from slimkit.core.pruning.prune import Repair
from slimkit.core.pruning.report import Pruned, join_cuts

SENSITIVITY_IMAGES, SENSITIVITY_REPAIR = 1000, 512  # for each group and rate


def prune_to_budget(
    classifier: Classifier,
    data: ImageSet,
    options: PruneOptions,
    finetune: Finetune | None = None,
    progress: Progress = silent,
) -> Pruned:
    """Cut `classifier` so that it keeps to the one budget of `options`, and record what was done.

    finetune: trains what was cut and repaired; with --max-drop every network that is tried.
    Raises UsageError for budgets that make no sense, MissedError for one that can't be kept.
    """
    search = Search(classifier, data, options, finetune, progress)
    budget = budget_of(options, search.whole)
    return cut_depth(search, budget, _cut) if options.depth else _cut(search, budget)


def _cut(search: Search, budget: Budget) -> Pruned:
    """Channels go until the budget is kept."""
    if budget.kind == "latency":
        return search.to_latency(budget)
    if budget.kind == "max_drop":
        return search.to_accuracy(budget)
    cuts = []
    for part in parts_of(budget, search.whole, search.options.steps):
        cuts.append(search.to_size(part))
        search = dataclasses.replace(search, classifier=cuts[-1].result.classifier)
    return dataclasses.replace(join_cuts(cuts), budget=budget)


def measure_sensitivity(
    classifier: Classifier, data: ImageSet, options: PruneOptions, progress: Progress = silent
) -> Sensitivity:
    """What each group alone would cost and save. Nothing is cut for good."""
    search = Search(classifier, data, options, None, progress)
    held_out = _sample(data.holdout, SENSITIVITY_IMAGES)
    table = search.latencies.table
    latency = search.latencies.measure(classifier, FINAL_RUNS)
    scale = latency / table.ms(search.shapes.full)
    entries = measure_groups(
        search.grouping,
        search.scores,
        search.shapes,
        ms=lambda widths: scale * table.ms(widths),
        accuracy=lambda graph: search.accuracy(
            Classifier(graph.network(copy=False), classifier.architecture), held_out
        ),
        repair=Repair(search.repair_images(SENSITIVITY_REPAIR), options.reconstruct, options.seed, progress),
    )
    return Sensitivity(
        model=options.model,
        accuracy=search.accuracy(classifier, held_out),
        reconstructed=options.reconstruct,
        images=len(held_out),
        latency=latency,
        target=options.target,
        macs=search.whole.macs,
        bytes=search.whole.bytes,
        entries=entries,
    )


def budget_of(options: PruneOptions, whole: Cost) -> Budget:
    """The one budget that `options` give for a network of the cost `whole`. Raises UsageError."""
    check_options(options)
    if options.macs is not None:
        return Budget("macs", absolute("macs", options.macs, whole.macs))
    if options.params is not None:
        return Budget("parameters", absolute("params", options.params, whole.parameters))
    if options.latency is not None:
        return Budget("latency", parse_latency(options.latency))
    if options.max_drop is not None:
        return Budget("max_drop", options.max_drop)
    return Budget("rate", DEFAULT_RATE if options.rate is None else options.rate)


def parts_of(budget: Budget, whole: Cost, steps: int) -> list[Budget]:
    """The budgets of the single steps, each of which keeps the same share of what the one before left."""
    if budget.kind == "rate":
        return [Budget("rate", 1 - (1 - budget.amount) ** (1 / steps))] * steps
    before = float(getattr(whole, budget.kind))
    shares = [(budget.amount / before) ** (step / steps) for step in range(1, steps)]
    return [*(Budget(budget.kind, before * share) for share in shares), budget]


def _sample(images: Images, count: int) -> Images:
    """Up to `count` of the images, evenly from all of them."""
    count = min(count, len(images))
    places = torch.arange(count) * len(images) // max(1, count)
    return dataclasses.replace(images, positions=images.positions[places])
