"""How long each layer of a network takes by itself on this CPU, as a table in JSON: where its milliseconds are."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slimkit.core.architecture import Layer
from slimkit.core.benchmark.machine import describe_machine
from slimkit.core.benchmark.models import open_own
from slimkit.core.environment import describe_environment
from slimkit.core.errors import UsageError
from slimkit.core.files import write_atomically
from slimkit.core.folder import Classifier
from slimkit.core.measure.layer_times import Runtime, TimedLayer, time_layers
from slimkit.core.models.lineage import weights_sha256
from slimkit.core.options import BenchmarkOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.pruning.cost.latency_table import timed_layers
from slimkit.core.pruning.cost.machine import Machine
from slimkit.core.run import checked
from slimkit.core.strangers.convention import is_foreign
from slimkit.standalone.model import Codes, Int8Network

INT8 = {"QuantizedConv2d": "Conv2d", "QuantizedLinear": "Linear"}  # the kinds that are timed


@dataclass(frozen=True)
class LayerTime:
    """One layer of a network."""

    name: str
    runtime: Runtime
    layer: TimedLayer
    ms: float  # of a batch, alone, after others that leave the caches warm

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; what a layer has no use for is left out."""
        fields = {name: value for name, value in dataclasses.asdict(self.layer).items() if value is not None}
        described = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return {"name": self.name, "runtime": self.runtime, **described, "ms": self.ms}


@dataclass(frozen=True)
class ModelLayers:
    """The layers of one model, in the order in which they run."""

    model: str  # the model argument
    weights_sha256: str | None  # by which its folder is known again; None where it has none
    layers: tuple[LayerTime, ...]

    @property
    def total(self) -> float:
        """The ms of all, without what lies between them: sums, pooling, the calls themselves."""
        return sum(each.ms for each in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        layers = [each.to_dict() for each in self.layers]
        return {"model": self.model, "weights_sha256": self.weights_sha256, "total_ms": self.total, "layers": layers}


@dataclass(frozen=True)
class LayerReport:
    """What `slimkit benchmark --layer-times` found out."""

    models: tuple[ModelLayers, ...]
    machine: Machine | None  # this one, by all widths of the layers, where that was asked for
    threads: int
    batch_size: int
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The content of the JSON file."""
        described = {name: getattr(self, name) for name in ("threads", "batch_size", "environment")}
        machine = {"machine": dataclasses.asdict(self.machine)} if self.machine else {}
        return {"layer_times": [each.to_dict() for each in self.models]} | described | machine


@checked
def run_layer_times(options: BenchmarkOptions, progress: Progress = silent) -> LayerReport:
    """Time the layers of each model one by one, float ones in float32 and the others in int8; write `options.output`.

    Raises UsageError for a model that slimkit did not write, and what reading the models and `time_layers` raise.
    """
    opened: dict[str, Classifier] = {}
    for name in dict.fromkeys((options.model, *options.others)):
        if is_foreign(Path(name)):
            raise UsageError(
                f"{name} was not written by slimkit, so its layers are not known.",
                "Leave it out, or compare it without --layer-times.",
            )
        classifier, _ = open_own(options if name == options.model else options.naming(name, None), progress)
        if options.widths and classifier.architecture.is_quantized:
            raise UsageError(f"{name} is int8; what is pruned is a float model.", "Name that one.")
        opened[name] = classifier
    models = tuple(_layers_of(name, classifier, options.batch_size, progress) for name, classifier in opened.items())
    machine = describe_machine([*opened.values()], options, progress) if options.widths else None
    report = LayerReport(models, machine, torch.get_num_threads(), options.batch_size, describe_environment())
    write_atomically(options.output, json.dumps(report.to_dict(), indent=2) + "\n")
    return report


def _layers_of(name: str, classifier: Classifier, batch_size: int, progress: Progress) -> ModelLayers:
    sha256 = weights_sha256(classifier.folder) if classifier.folder else None
    return ModelLayers(name, sha256, _times(classifier, batch_size, progress))


def _times(classifier: Classifier, batch_size: int, progress: Progress) -> tuple[LayerTime, ...]:
    is_int8 = isinstance(classifier.module, Int8Network)
    shape = classifier.architecture.input_shape
    layers = _int8_layers(classifier) if is_int8 else timed_layers(classifier.module, shape)
    runtime: Runtime = "int8" if is_int8 else "fp32"
    times = time_layers(list(layers.values()), runtime, batch_size=batch_size, progress=progress)
    return tuple(LayerTime(name, runtime, layer, times[layer]) for name, layer in layers.items())


def _int8_layers(classifier: Classifier) -> dict[str, TimedLayer]:
    """The convolutions and linear layers of an int8 network, by what each is given in a pass without numbers."""
    found: dict[str, TimedLayer] = {}
    network = copy.deepcopy(classifier.module).to("meta")
    for layer in classifier.architecture.layers:
        if layer.type in INT8:
            network.get_submodule(layer.name).register_forward_pre_hook(_noting(layer, found))
    network(torch.zeros(1, *classifier.architecture.input_shape, device="meta"))
    return found


def _noting(layer: Layer, found: dict[str, TimedLayer]) -> Callable[..., None]:
    """A hook that puts `layer` into `found` with the size of its images."""

    def note(module: Any, inputs: tuple[Any, ...]) -> None:
        images = inputs[1]  # behind the arithmetic
        shape = (images.values if isinstance(images, Codes) else images).shape
        kind, channels = INT8[layer.type], (layer.in_channels or 0, layer.out_channels or 0)
        if kind == "Linear":
            found[layer.name] = TimedLayer("Linear", *channels)
            return
        geometry = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")}
        found[layer.name] = TimedLayer("Conv2d", *channels, **geometry, height=shape[-2], width=shape[-1])

    return note
