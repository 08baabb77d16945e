"""How many bits the weights of each layer get: the least divergence from the float network's answers for a size.

Each layer is rounded by itself, and the KL divergence of the answers is measured, in nats per image. As far as errors
are small it grows with the squared error of the layer's outputs, so that one measurement tells what every rounding of
the layer costs. All layers then buy bits at one price, in divergence: where it is the same for all, no bit is better
spent elsewhere (Shoham & Gersho 1988, doi:10.1109/29.90373).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimkit.core.data import Batches
from slimkit.core.options import WEIGHT_BITS
from slimkit.core.progress import Progress
from slimkit.core.quantization.control import layer_costs
from slimkit.core.quantization.simulate import Simulation, Weighted
from slimkit.core.quantization.weights.layerwise import SAMPLES
from slimkit.core.quantization.weights.per_channel import quantize_weight
from slimkit.core.quantization.weights.rate import Grid, try_scales
from slimkit.core.quantization.weights.rounded import RoundedLayer
from slimkit.core.quantization.weights.rounding import best_scale, damped, eliminate, left_variances
from slimkit.core.quantization.weights.saturation import largest_code
from slimkit.core.regression.least_squares import Moments
from slimkit.core.regression.rows import Sampler, input_rows

PROBE_BITS = 4  # of the rounding whose divergence is measured: that stands out, and is still small
WEIGHTS = 2**16  # of each layer, that roundings are tried on
FACTORS = (0.0, 1.0, 2.0, 4.0, 8.0)  # prices of a bit that are tried, in terms of a weight's squared error without one
PRICES = (1e-15, 1.0)  # of a bit, in nats per image, that are searched
STEPS = 50  # of that search
MOST_DIVERGENCE = 1.0  # nats per image: answers beyond have little to do with the float network's


@dataclass(frozen=True)
class Rounding:
    """How a layer is to be rounded, and what is expected of it."""

    bits: int
    price: float = 0.0  # of a bit of its codes, in terms of the squared error of its outputs
    divergence: float = 0.0  # nats per image
    size: float = 0.0  # bits that its codes take


Choices = Mapping[str, Sequence[Rounding]]  # by layer


def allocate(choices: Choices, size: float) -> dict[str, Rounding]:
    """A rounding for each layer, of the least divergence together, whose codes take at most `size` bits."""
    return _at_one_price(choices, lambda roundings: total_size(roundings) > size)[1]


def smallest(choices: Choices) -> dict[str, Rounding]:
    """The roundings of the smallest size whose divergence together is at most MOST_DIVERGENCE."""
    return _at_one_price(choices, lambda roundings: total_divergence(roundings) <= MOST_DIVERGENCE)[0]


def total_size(roundings: Mapping[str, Rounding]) -> float:
    """Bits that all codes take."""
    return sum(rounding.size for rounding in roundings.values())


def total_divergence(roundings: Mapping[str, Rounding]) -> float:
    """Nats per image; what several layers lose adds up as long as it is little."""
    return sum(rounding.divergence for rounding in roundings.values())


def _at_one_price(
    choices: Choices, is_low: Callable[[dict[str, Rounding]], bool]
) -> tuple[dict[str, Rounding], dict[str, Rounding]]:
    """What costs least at the highest price for a bit that is low, and at one hardly above it."""
    low, high = PRICES
    below, above = _cheapest(choices, low), _cheapest(choices, high)
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        roundings = _cheapest(choices, middle)
        if is_low(roundings):
            low, below = middle, roundings
        else:
            high, above = middle, roundings
    return below, above


def _cheapest(choices: Choices, price: float) -> dict[str, Rounding]:
    """The best rounding of each layer where a bit costs `price` nats."""
    return {name: min(each, key=lambda r: r.divergence + price * r.size) for name, each in choices.items()}


def measure_layers(
    simulation: Simulation, batches: Batches, few: Sequence[Tensor], reduce_range: bool, progress: Progress
) -> Choices:
    """The roundings that each of `simulation.layers` may have, and what is expected of them.

    batches: normalized float32 images [n, 3, h, w] each, for the layers' inputs; few: those that the divergence is
        measured on. reduce_range: see `largest_code`.
    """
    alone = _in_float(simulation)
    covariances = _input_covariances(alone, batches, progress)
    probes = {name: _probe(layer) for name, layer in alone.layers.items()}
    divergences = layer_costs(alone, probes, few, progress)
    return {
        name: _roundings(layer, probes[name], covariances.pop(name), divergences[name], reduce_range)
        for name, layer in alone.layers.items()
    }


def _in_float(simulation: Simulation) -> Simulation:
    """A copy that rounds no activation: what each layer's weights cost by themselves."""
    network = simulation.float_network()
    modules = {name: network.get_submodule(name) for name in simulation.layers}
    return Simulation(network, {n: layer for n, layer in modules.items() if isinstance(layer, Weighted)}, {}, {})


def _probe(layer: Weighted) -> RoundedLayer:
    assert layer.bias is not None  # folded layers have one
    return RoundedLayer(*quantize_weight(layer.weight.detach(), PROBE_BITS), layer.bias.detach())


@torch.no_grad()
def _input_covariances(simulation: Simulation, batches: Batches, progress: Progress) -> dict[str, Tensor]:
    """Of the inputs that each output of a layer is computed from: [g, d, d]."""
    found, sampler = {name: Moments() for name in simulation.layers}, Sampler(SAMPLES / len(batches))

    def noting(moments: Moments) -> Callable[[Weighted, tuple[Tensor], Tensor], None]:
        def note(layer: Weighted, inputs: tuple[Tensor], outputs: Tensor) -> None:
            rows = input_rows(layer, inputs[0], sampler.positions(layer, outputs))
            moments.add(rows, rows[..., :0])

        return note

    hooks = [layer.register_forward_hook(noting(found[name])) for name, layer in simulation.layers.items()]
    with progress("measure inputs", len(batches)) as advance:
        for batch in batches:
            simulation.network(batch)
            advance(1)
    for hook in hooks:
        hook.remove()
    return {name: (moments.centred()[2] / moments.count).float() for name, moments in found.items()}


def _roundings(
    layer: Weighted, probe: RoundedLayer, covariance: Tensor, divergence: float, reduce_range: bool
) -> list[Rounding]:
    """covariance: of the layer's inputs, [g, d, d]; divergence: with `probe` in its place."""
    weight = layer.weight.detach().view(*covariance.shape[:1], -1, covariance.shape[1])
    lost = probe.weight.view_as(weight) - weight
    sensitivity = max(divergence, 1e-9) / max(float((lost @ covariance * lost).sum()), 1e-12)  # nats for squared error
    some = weight[:, :: max(1, weight.numel() // WEIGHTS)]
    share = some.numel() / weight.numel()
    covariance = damped(covariance)
    importance, variances = covariance.diagonal(dim1=1, dim2=2), left_variances(*eliminate(covariance))
    found = []
    for bits in WEIGHT_BITS:
        largest = largest_code(bits, reduce_range)
        scale = best_scale(some, importance, -largest, largest)
        plain = try_scales(some, scale, variances, Grid(-largest, largest))
        for factor in FACTORS:
            price = factor * plain.error / some.numel()
            trial = try_scales(some, scale, variances, Grid(-largest, largest, price))
            found.append(Rounding(bits, price, sensitivity * trial.error / share, trial.bits / share))
    return found
