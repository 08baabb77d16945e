"""A classifier without some of its residual blocks: proven, repaired and recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from slimkit.core.architecture import with_detail
from slimkit.core.data import random_images
from slimkit.core.folder import Classifier
from slimkit.core.graph import Graph
from slimkit.core.models.describe import describe_graph, known_widths
from slimkit.core.pruning.channels.groups import Grouping
from slimkit.core.pruning.cost.shapes import graph_cost
from slimkit.core.pruning.cut.verify import verify_bypass
from slimkit.core.pruning.depth.blocks import Block, bypassing, without_blocks
from slimkit.core.pruning.prune import Cut, Repair, repaired, with_step
from slimkit.core.pruning.report import GroupCut, PruneReport, PruneResult
from slimkit.standalone.model import layer_path

IMAGES = 2  # of the proof


def shorten(classifier: Classifier, grouping: Grouping, blocks: Sequence[Block], repair: Repair) -> PruneResult:
    """`classifier` without `blocks` of its graph, which is that of `grouping`.

    The result is stored as its graph: its class has the blocks.
    Raises MissedError where it does not compute what the original does with the blocks' branches masked.
    """
    graph = grouping.graph
    cut = remove_blocks(graph, blocks, repair)
    report = _report(grouping, blocks, cut)
    earlier = classifier.architecture
    described = describe_graph(earlier, cut.graph, known_widths(earlier))
    recorded = with_step(described, report, f"remove blocks: {', '.join(report.blocks)}")
    architecture = with_detail(recorded, {"stage": "depth", **dataclasses.asdict(report)})
    return PruneResult(Classifier(cut.graph.network(), architecture), report)


def remove_blocks(graph: Graph, blocks: Sequence[Block], repair: Repair) -> Cut:
    """`graph` without `blocks`, proven and repaired. Raises MissedError as `shorten` does."""
    short = without_blocks(graph, blocks)
    branches = {block.sum: block.branch for block in blocks}
    difference = verify_bypass(graph, branches, short, random_images(graph.input_shape, IMAGES))
    proven = Cut(short, difference, 0, 0)
    network = (bypassing(graph, blocks) if repair.reconstruct else short).network()
    left = {path for node in short.nodes if (path := layer_path(node.to_json()))}
    return repaired(graph, proven, network, {}, repair, only=left)


def _report(grouping: Grouping, blocks: Sequence[Block], cut: Cut) -> PruneReport:
    """What was done; the channels that only the blocks had are gone."""
    graph, left = grouping.graph, {name for node in cut.graph.nodes for name in node.weights}
    groups = []
    for group in grouping.groups:
        is_left = any(maker.layer.weight in left for maker in group.makers)
        names = tuple(maker.layer.name for maker in group.makers)
        groups.append(GroupCut(names, group.width, group.width if is_left else 0))
    report = PruneReport(
        asked=0.0,
        before=graph_cost(graph, graph.input_shape),
        after=graph_cost(cut.graph, graph.input_shape),
        groups=tuple(groups),
        whole=grouping.whole,
        difference=cut.difference,
        reconstructed_images=cut.reconstructed_images,
        recalibrated_images=cut.recalibrated_images,
        blocks=tuple(block.name for block in blocks),
    )
    return dataclasses.replace(report, asked=report.reached)
