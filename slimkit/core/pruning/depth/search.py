"""How many residual blocks go before channels do: as many as bring the answers nearer to the uncut network's.

Blocks go one by one, each time the one that harms least for what it saves, and channels are cut to the budget anew.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from torch import Tensor, nn

from slimkit.core.data import CalibrationBatches
from slimkit.core.errors import MissedError, ModelError, UsageError
from slimkit.core.graph import capture
from slimkit.core.measure.divergence import divergence, log_probabilities
from slimkit.core.pruning.channels.groups import Grouping, find_groups
from slimkit.core.pruning.choose.budgets import Budget
from slimkit.core.pruning.choose.search import Search
from slimkit.core.pruning.cost.shapes import graph_cost
from slimkit.core.pruning.depth.blocks import Block, find_blocks, without_blocks
from slimkit.core.pruning.depth.shorten import remove_blocks, shorten
from slimkit.core.pruning.prune import Repair
from slimkit.core.pruning.report import Pruned, join_cuts

log = logging.getLogger("slimkit")

JUDGED = 1000  # held-out images by which a network that keeps to the budget is judged
RANKED = 256  # images on which BatchNorm is measured, and held-out ones by which a block is judged, without a solution

Cut = Callable[[Search, Budget], Pruned]


def cut_depth(search: Search, budget: Budget, cut: Cut) -> Pruned:
    """The best of what `cut` makes of the search's network without some of its blocks.

    Best is what is nearest to the uncut network's answers to held-out images; for a budget of accuracy, which all keep
    to, what has the fewest MACs.
    Raises what `cut` raises where no such network keeps to the budget, UsageError where there is no block to remove.
    """
    return _Depth(search, budget, cut).best()


class _Depth:
    def __init__(self, search: Search, budget: Budget, cut: Cut) -> None:
        self._budget, self._cut, self._classifier, self._options = budget, cut, search.classifier, search.options
        self._finetune = None if budget.kind == "max_drop" else search.finetune  # of the best alone
        self._search = dataclasses.replace(search, finetune=None) if self._finetune else search

    def best(self) -> Pruned:
        """The blocks go one by one, until a network is worse than the one before."""
        best, least, failure = None, float("inf"), None
        for gone in self._ways():
            try:
                tried = self._without(gone)
            except (MissedError, ModelError, UsageError) as error:
                log.info("%s: %s", _say_way(gone), error)
                if best is not None:
                    break
                failure = failure or error
                continue
            loss = self._loss(tried)
            log.info("%s: %s", _say_way(gone), self._say(loss))
            if loss >= least:
                break
            best, least = tried, loss
        if best is None:
            assert failure is not None  # the network with all its blocks was tried
            raise failure
        return self._tuned(best)

    @cached_property
    def _grouping(self) -> Grouping:
        """Of the network as its graph, whatever class it is built by."""
        return find_groups(capture(self._classifier.module, self._search.input_shape))

    def _ways(self) -> Iterator[tuple[Block, ...]]:
        """None of the blocks, and then one more each time."""
        blocks = find_blocks(self._grouping.graph)
        if not blocks:
            raise UsageError("No block can be removed: nothing of this network is added to its own input.", _WITHOUT)
        gone: tuple[Block, ...] = ()
        yield gone
        while left := [block for block in blocks if not any(block.sum in {b.sum, *b.inside} for b in gone)]:
            gone = self._with_least_harm(gone, left)
            yield gone

    def _with_least_harm(self, gone: Sequence[Block], left: Sequence[Block]) -> tuple[Block, ...]:
        """`gone`, and the block of those left that changes the answers least for the multiply-adds that go with it."""
        images = self._search.repair_images(RANKED)
        repair = Repair(images, reconstruct=False, seed=self._options.seed)
        graph = self._grouping.graph
        macs = graph_cost(without_blocks(graph, gone), graph.input_shape).macs
        harm: dict[tuple[Block, ...], float] = {}
        with self._search.progress("rank blocks", len(left)) as advance:
            for block in left:
                way = (*(other for other in gone if other.sum not in block.inside), block)
                short = remove_blocks(graph, way, repair).graph
                lost = self._divergence(short.network(copy=False), RANKED)
                harm[way] = lost / (macs - graph_cost(short, graph.input_shape).macs)
                advance(1)
        return min(harm, key=harm.__getitem__)

    def _without(self, gone: Sequence[Block]) -> Pruned:
        """What keeps to the budget without these blocks."""
        search = self._search
        if not gone:
            return self._cut(search, self._budget)
        repair = Repair(search.batches, self._options.reconstruct, self._options.seed, search.progress)
        shorter = shorten(self._classifier, self._grouping, gone, repair)
        left = dataclasses.replace(search, classifier=shorter.classifier, reference=search)
        if left.keeps_to(self._budget):
            before, after = search.latencies, left.latencies
            latency = (before.uncut, after.uncut) if self._budget.kind == "latency" else None
            return Pruned(shorter, self._budget, latency, before.machine)
        return join_cuts([Pruned(shorter, self._budget, None), self._cut(left, self._budget)])

    def _loss(self, pruned: Pruned) -> float:
        if self._budget.kind == "max_drop":
            return pruned.result.report.after.macs
        return self._divergence(pruned.result.classifier.module, JUDGED)

    def _say(self, loss: float) -> str:
        if self._budget.kind == "max_drop":
            return f"{loss:,.0f} multiply-adds"
        return f"{loss:.4f} nats per image from the uncut network's answers to {len(self._wanted)} held-out images"

    def _divergence(self, network: nn.Module, images: int) -> float:
        given = log_probabilities(network, self._judged(images))
        return divergence(given, self._wanted[: len(given)])

    @cached_property
    def _wanted(self) -> Tensor:
        return log_probabilities(self._classifier.module, self._judged(JUDGED))

    def _judged(self, images: int) -> CalibrationBatches:
        """So many of the held-out images, always the same ones first."""
        data = self._search.data
        return CalibrationBatches(data.holdout, data.preprocessing, images, self._options.seed)

    def _tuned(self, best: Pruned) -> Pruned:
        if self._finetune is None:
            return best
        tuned = self._finetune(best.result.classifier)
        return dataclasses.replace(best, result=dataclasses.replace(best.result, classifier=tuned))


def _say_way(gone: Sequence[Block]) -> str:
    return f"without {', '.join(block.name for block in gone)}" if gone else "with all blocks"


_WITHOUT = "Leave out --depth: channels can still be cut."
