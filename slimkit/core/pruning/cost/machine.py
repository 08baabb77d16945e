"""Another machine, known by a file that slimkit wrote there: what is pruned here can be pruned for its CPU.

`slimkit benchmark MODEL --layer-times --widths` times there what a search for a latency asks of the layers, and the
whole network, in both arithmetics.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimkit.core.errors import UsageError
from slimkit.core.folder import Classifier
from slimkit.core.measure.layer_times import TimedLayer
from slimkit.core.options import Target
from slimkit.core.pruning.cost.latency_table import timed_layers
from slimkit.core.typed import FieldError, parse_dataclass

TARGETS: tuple[Target, ...] = ("fp32", "int8")
HOW = "Run `slimkit benchmark MODEL --layer-times --widths -o FILE` on that machine, with the model that is pruned."


@dataclass(frozen=True)
class Machine:
    """A CPU, and how long networks and their layers take on it."""

    cpu: str
    threads: int
    batch_size: int
    steps: Mapping[Target, int]  # channels in a block of its kernels, by target
    layers: Mapping[Target, Mapping[str, float]]  # ms by target, and by `TimedLayer.key`
    networks: Mapping[str, Mapping[Target, float]]  # ms of whole networks, by `network_key` and target

    def times(self, layers: Sequence[TimedLayer], target: Target) -> dict[TimedLayer, float]:
        """The ms of each layer. Raises UsageError where one was not timed there."""
        known = self.layers.get(target, {})
        if missing := [layer.key for layer in layers if layer.key not in known]:
            raise UsageError(f"The machine's file has no time of {missing[0]} ({target}).", HOW)
        return {layer: known[layer.key] for layer in layers}

    def network_ms(self, classifier: Classifier, target: Target) -> float:
        """The ms of the uncut network. Raises UsageError where it was not timed there."""
        found = self.networks.get(network_key(classifier), {}).get(target)
        if found is None:
            raise UsageError(f"The machine's file has no time of this network ({target}).", HOW)
        return found


def network_key(classifier: Classifier) -> str:
    """By which a network is known again, whatever its weights: of its layers, and the images that they see."""
    layers = timed_layers(classifier.module, classifier.architecture.input_shape)
    return hashlib.sha256("\n".join(f"{name} {layer.key}" for name, layer in layers.items()).encode()).hexdigest()[:16]


def read_machine(file: Path, batch_size: int) -> Machine:
    """The machine that `file` describes. Raises UsageError for another file, and for times of another batch size."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        machine = parse_dataclass(Machine, content["machine"], str(file))
        _require_numbers(machine)
    except (ValueError, KeyError, TypeError, FieldError) as error:
        raise UsageError(f"{file} does not describe a machine: {error}.", HOW) from None
    if machine.batch_size != batch_size:
        raise UsageError(
            f"{file} has the times of batches of {machine.batch_size}; --batch-size is {batch_size}.",
            f"Give --batch-size {machine.batch_size}, or time the other there.",
        )
    return machine


def _require_numbers(machine: Machine) -> None:
    """Raise FieldError where a time or a step is no number above 0, or a target is missing."""
    tables: list[Mapping[Any, float]] = [machine.steps, *machine.layers.values(), *machine.networks.values()]
    if not all(0 < value < math.inf for table in tables for value in table.values()):
        raise FieldError("it has times that are no numbers above 0")
    if not {*TARGETS} <= machine.steps.keys():
        raise FieldError("it lacks the steps of widths")
