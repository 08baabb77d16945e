"""How long a network takes at any widths: measured here, or told of another machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from slimkit.core.folder import Classifier
from slimkit.core.measure.layer_times import TimedLayer, time_layers
from slimkit.core.options import PruneOptions
from slimkit.core.progress import Progress
from slimkit.core.pruning.cost.latency_table import LatencyTable
from slimkit.core.pruning.cost.machine import Machine, read_machine
from slimkit.core.pruning.cost.shapes import Shapes, Widths
from slimkit.core.pruning.cost.timing import time_network

FINAL_RUNS = 100  # timed runs of a network


@dataclass(frozen=True)
class Latencies:
    """Those of `classifier`, whose layers are `shapes`, in the target's arithmetic."""

    classifier: Classifier
    shapes: Shapes
    options: PruneOptions
    progress: Progress
    reference: Latencies | None = None  # of the network from which blocks went; None: this one is whole

    @cached_property
    def machine(self) -> Machine | None:
        """The one that the network is for; None: this one."""
        file = self.options.target_machine
        return read_machine(file, self.options.batch_size) if file else None

    @cached_property
    def table(self) -> LatencyTable:
        """Predictions for the target, on the machine that the network is for."""
        network, shape = self.shapes.graph.network(copy=False), self.classifier.architecture.input_shape
        return LatencyTable(network, self.shapes, shape, self._layer_times)

    def told(self, widths: Widths) -> float | None:
        """The ms of these widths on another machine, as is told from its layers; None: that can be measured here."""
        return self.table.ms(widths) * self._scale if self._scale else None

    @cached_property
    def uncut(self) -> float:
        """The ms of the network as it is."""
        return self.told(self.shapes.full) or self.measure(self.classifier, FINAL_RUNS)

    def measure(self, classifier: Classifier, runs: int) -> float:
        """The median latency in ms, in the target's arithmetic, alone in a process."""
        return time_network(classifier, self.options, runs)

    def _layer_times(self, layers: Sequence[TimedLayer]) -> dict[TimedLayer, float]:
        options = self.options
        if self.machine:
            return self.machine.times(layers, options.target)
        return time_layers(
            layers, options.target, threads=options.threads, batch_size=options.batch_size, progress=self.progress
        )

    @cached_property
    def _scale(self) -> float | None:
        """What the whole network, measured on the other machine, takes for each ms that is told from its layers."""
        if self.reference:
            return self.reference._scale
        if self.machine is None:
            return None
        return self.machine.network_ms(self.classifier, self.options.target) / self.table.ms(self.shapes.full)
