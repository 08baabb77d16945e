"""Fine-tuning through simulated rounding (quantization-aware training), with the float network as the teacher."""

from __future__ import annotations

import dataclasses
import logging

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimkit.core.architecture import with_detail
from slimkit.core.data import ImageSet
from slimkit.core.device import resolve_device
from slimkit.core.distillation.losses import DistillationLoss, network_as_teacher
from slimkit.core.folder import Classifier
from slimkit.core.options import QuantizeOptions
from slimkit.core.progress import Progress
from slimkit.core.quantization.simulate import Weighted, simulate
from slimkit.core.quantization.weights.rounded import RoundedLayer, read_rounded, replace_rounded
from slimkit.core.quantization.weights.saturation import largest_code
from slimkit.core.training.loop import FitOptions, fit
from slimkit.core.training.stage import training_detail

log = logging.getLogger("slimkit")

BATCH_SIZE = 128
LEARNING_RATE = 1e-4  # at its peak, of Adam
TEMPERATURE = 4.0  # of the loss: see `distillation_loss`
MARGIN = 0.3  # of a scale: how far from its code a weight may start, so that the rounding it came with holds at first


class RoundWeight(nn.Module):
    """A parametrization: a weight rounded to codes of a learned scale per output channel.

    The gradient passes the rounding as if it were not there (straight-through), and so reaches the scale too (LSQ:
    Esser et al. 2020, arXiv:1902.08153). The scale is learned as its logarithm: it stays positive, and steps are
    relative.
    """

    def __init__(self, scale: Tensor, largest: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(scale.log())
        self.largest = largest

    @property
    def scale(self) -> Tensor:
        """One per output channel: [out]."""
        return self.log_scale.exp()

    def forward(self, weight: Tensor) -> Tensor:
        """[out, ...] -> the same, as scale * code."""
        codes = self.codes(weight)
        return (codes + (codes.round() - codes).detach()) * _per_channel(self.scale, weight)

    def codes(self, weight: Tensor) -> Tensor:
        """The codes of `weight`, not yet rounded."""
        return (weight / _per_channel(self.scale, weight)).clamp(-self.largest, self.largest)


def _per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.ndim - 1))


def fine_tune(
    source: Classifier, made: Classifier, data: ImageSet, options: QuantizeOptions, progress: Progress
) -> Classifier:
    """Train the static int8 classifier `made` for `options.qat_epochs`; `source`, its float original, is the teacher.

    The ranges of activations stay those of the calibration. Gives `made` with the trained weights, scales and biases.
    Raises ModelError where training diverges.
    """
    bits = made.architecture.weight_bits
    simulation = simulate(source, made)
    roundings = {
        name: _make_trainable(simulation.layers[name], start, largest_code(bits[name], bool(options.reduce_range)))
        for name, start in read_rounded(made).items()
    }
    fit_options = FitOptions(
        epochs=options.qat_epochs,
        batch_size=BATCH_SIZE,
        optimizer="adam",
        lr=LEARNING_RATE,
        weight_decay=0.0,
        seed=options.seed,
        device=resolve_device(options.device),
        progressive=False,
    )
    log.info("fine-tuning through the rounding on %d images for %d epochs", len(data.train), options.qat_epochs)
    teacher = source.module.to(fit_options.device)
    classes = torch.arange(source.architecture.num_classes, device=fit_options.device)
    loss = DistillationLoss(network_as_teacher(teacher, classes), TEMPERATURE, alpha=1.0)
    history = fit(simulation.network, source.architecture.class_names, data, fit_options, loss, progress)
    source.module.to("cpu")
    detail = training_detail("quantize", data, fit_options, history) | {"teacher": "the float model"}
    steps = (*made.architecture.compression_steps, f"fine-tune through int8 rounding: {options.qat_epochs} epochs")
    architecture = dataclasses.replace(with_detail(made.architecture, detail), compression_steps=steps)
    trained = {name: _read_back(simulation.layers[name], rounding) for name, rounding in roundings.items()}
    return dataclasses.replace(replace_rounded(made, trained), architecture=architecture)


def _make_trainable(layer: Weighted, start: RoundedLayer, largest: int) -> RoundWeight:
    """Let `layer` compute with rounded weights: at first just those of `start`, which its own ones are moved to."""
    scale, codes = _per_channel(start.scale, start.codes), start.codes.float()
    layer.weight = nn.Parameter(layer.weight.detach().clamp((codes - MARGIN) * scale, (codes + MARGIN) * scale))
    layer.bias = nn.Parameter(start.bias.clone())
    rounding = RoundWeight(start.scale, largest)
    parametrize.register_parametrization(layer, "weight", rounding)
    return rounding


@torch.no_grad()
def _read_back(layer: Weighted, rounding: RoundWeight) -> RoundedLayer:
    """The numbers of a layer after its training."""
    assert layer.bias is not None  # folded layers have one
    codes = rounding.codes(layer.parametrizations.weight.original)  # type: ignore[union-attr, arg-type]  # made by register_parametrization
    return RoundedLayer(codes.round().to(torch.int8), rounding.scale.detach(), layer.bias.detach().clone())
