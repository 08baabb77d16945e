"""This machine described by a file, so that networks can be pruned for it on another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slimkit.core.environment import describe_environment
from slimkit.core.folder import Classifier
from slimkit.core.measure.layer_times import TimedLayer, time_layers
from slimkit.core.options import BenchmarkOptions, PruneOptions, Target
from slimkit.core.progress import Progress
from slimkit.core.pruning.channels.groups import Grouping
from slimkit.core.pruning.cost.latency_table import LatencyTable
from slimkit.core.pruning.cost.machine import TARGETS, Machine, network_key
from slimkit.core.pruning.cost.shapes import Shapes
from slimkit.core.pruning.cost.timing import time_network
from slimkit.core.pruning.cost.width_rounding import kernel_step
from slimkit.core.pruning.prune import group_classifier, require_groups

RUNS = 100  # timed runs of a whole network


def describe_machine(classifiers: Sequence[Classifier], options: BenchmarkOptions, progress: Progress) -> Machine:
    """This machine, by what pruning float `classifiers` to a latency asks of it.

    Raises ModelError for what can't be cut or timed.
    """
    threads = torch.get_num_threads()
    layers: dict[Target, dict[str, float]] = {target: {} for target in TARGETS}
    networks: dict[str, dict[Target, float]] = {}
    for classifier in classifiers:
        grouping, own = group_classifier(classifier), networks.setdefault(network_key(classifier), {})
        require_groups(grouping)
        for target in TARGETS:
            how = PruneOptions(target=target, batch_size=options.batch_size, threads=threads)
            layers[target] |= _time_widths(grouping, classifier.architecture.input_shape, how, progress)
            own[target] = time_network(classifier, how, RUNS)
    steps = {target: kernel_step(target) for target in TARGETS}
    cpu = str(describe_environment()["cpu"]["model"])
    return Machine(cpu, threads, options.batch_size, steps, layers, networks)


def _time_widths(grouping: Grouping, shape: tuple[int, ...], how: PruneOptions, progress: Progress) -> dict[str, float]:
    """The ms of each layer at all widths that a table of latencies has, by `TimedLayer.key`."""
    found: dict[TimedLayer, float] = {}

    def time(layers: Sequence[TimedLayer]) -> dict[TimedLayer, float]:
        found.update(time_layers(layers, how.target, threads=how.threads, batch_size=how.batch_size, progress=progress))
        return found

    LatencyTable(grouping.graph.network(copy=False), Shapes(grouping, shape), shape, time)
    return {layer.key: ms for layer, ms in found.items()}
