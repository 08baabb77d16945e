"""Accuracy control: which layers cost most in int8, and the fewest to keep in float."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from slimkit.core.errors import MissedError
from slimkit.core.measure.divergence import divergence, log_probabilities
from slimkit.core.progress import Progress
from slimkit.core.quantization.simulate import Simulation
from slimkit.core.quantization.weights.rounded import RoundedLayer

log = logging.getLogger("slimkit")


@torch.no_grad()
def layer_costs(
    simulation: Simulation, rounded: Mapping[str, RoundedLayer], batches: Sequence[Tensor], progress: Progress
) -> dict[str, float]:
    """What each layer alone costs: KL divergence, in nats per image, of the answers where it alone is int8 from float.

    simulation: of the int8 network, with weights still float; rounded: its int8 weights. batches: normalized float32
    images [n, 3, h, w]. The costliest layer comes first.
    """
    for rounding in simulation.rounding.values():
        rounding.enabled = False
    costs = {}
    with progress("search costly layers", len(simulation.layers) + 1) as advance:
        wanted = log_probabilities(simulation.network, batches)
        advance(1)
        for name, layer in simulation.layers.items():
            weight = layer.weight.clone()
            layer.weight.copy_(rounded[name].weight)
            if name in simulation.rounding:
                simulation.rounding[name].enabled = True
            costs[name] = divergence(log_probabilities(simulation.network, batches), wanted)
            layer.weight.copy_(weight)
            if name in simulation.rounding:
                simulation.rounding[name].enabled = False
            advance(1)
    for rounding in simulation.rounding.values():
        rounding.enabled = True
    return dict(sorted(costs.items(), key=lambda item: -item[1]))


def fewest_in_float(costly: Sequence[str], drop: Callable[[Collection[str]], float], max_drop: float) -> list[str]:
    """The fewest layers to keep in float so that the drop of accuracy is at most `max_drop` points.

    costly: the names of all layers, the costliest first; drop: measures the drop with the given ones in float. Bisects
    for the shortest head of `costly` that is enough, then puts back to int8 each of it that is not needed.
    Raises MissedError where all layers but one are not enough.
    """
    least = drop(())
    if least <= max_drop:
        return []
    failing, enough = 0, len(costly)
    while enough - failing > 1:
        count = (failing + enough) // 2
        lost = drop(costly[:count])
        least = min(least, lost)
        log.info("%d of %d layers in float: %.2f points lost", count, len(costly), lost)
        failing, enough = (failing, count) if lost <= max_drop else (count, enough)
    if enough == len(costly):
        raise MissedError(
            f"At least {math.ceil(least * 100) / 100:.2f} points of accuracy are lost; --max-drop allows {max_drop}.",
            "Allow more, or fine-tune through the rounding with --qat-epochs 1.",
        )
    kept = list(costly[:enough])
    for name in kept[-2::-1]:  # the last is needed, or a shorter head would have been enough
        without = [other for other in kept if other != name]
        if drop(without) <= max_drop:
            kept = without
    return kept
