"""How long a whole network takes, in the arithmetic that a latency budget is for."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from slimkit.core.folder import Classifier
from slimkit.core.measure.latency import Target, measure_latencies
from slimkit.core.models.resolve import materialize
from slimkit.core.options import PruneOptions
from slimkit.core.quantization import folded_layers, quantize


def time_network(classifier: Classifier, options: PruneOptions, runs: int) -> float:
    """The median latency in ms over `runs` of a float classifier, made int8 if that is the target, in its own process.

    options: the target, the batch size and the threads.
    """
    if options.target == "int8":
        images = torch.rand(2, *classifier.architecture.input_shape, generator=torch.Generator().manual_seed(0))
        weights = _zeros(classifier)
        classifier = quantize(classifier, scheme="static", calibration=[images], weights=weights).classifier
    with materialize(dataclasses.replace(classifier, folder=None)) as folder:
        targets = [Target(folder)]
        return measure_latencies(targets, runs=runs, batch_size=options.batch_size, threads=options.threads)[0].median


def _zeros(classifier: Classifier) -> dict[str, tuple[Tensor, Tensor]]:
    """int8 weights for the time alone, which their values make no difference to: these can't saturate on any CPU."""
    return {
        name: (torch.zeros_like(weight, dtype=torch.int8), torch.ones(len(weight)))
        for name, (weight, _) in folded_layers(classifier).items()
    }
