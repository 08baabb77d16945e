"""int8 weights: BatchNorm folded in, then rounded with one scale per output channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimkit.core.options import WEIGHT_BITS

LARGEST = {bits: (1 << bits - 1) - 1 for bits in WEIGHT_BITS}  # codes are symmetric about 0: -128 is not used
SMALLEST_SCALE = 2.0**-64  # numbers of a smaller scale are as good as 0; float32 holds its products with other scales
LARGEST_BIAS = 2**30  # in units of the sums' scale: half of the int32 that runtimes add it in, the rest is for the sums


def fold_batch_norm(layer: nn.Module, batch_norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Weight [out, ...] and bias [out], float64, of a Conv2d or Linear with the BatchNorm behind it worked in.

    In eval mode BatchNorm is gamma (x - mean) / sqrt(variance + eps) + beta: a scale and a shift of each channel
    (Jacob et al. 2018, arXiv:1712.05877, section 3.2).
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight = layer.weight.detach().double()
    bias = torch.zeros(len(weight), dtype=torch.double) if layer.bias is None else layer.bias.detach().double()
    if batch_norm is None:
        return weight, bias
    factor, shift = batch_norm_as_affine(batch_norm)
    return weight * factor.view(-1, *[1] * (weight.ndim - 1)), bias * factor + shift


def batch_norm_as_affine(batch_norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and shift of each channel, float64, that BatchNorm is in eval mode."""
    mean, variance = batch_norm.running_mean, batch_norm.running_var
    assert mean is not None
    assert variance is not None
    factor = (variance.double() + batch_norm.eps).rsqrt()
    shift = -mean.double() * factor
    if batch_norm.affine:
        factor = factor * batch_norm.weight.detach().double()
        shift = shift * batch_norm.weight.detach().double() + batch_norm.bias.detach().double()
    return factor, shift


def quantize_weight(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """int8 codes [out, ...] and float32 scale [out] with weight ~ scale * code; each channel's largest is LARGEST."""
    largest = weight.flatten(1).abs().amax(1)
    scale = usable_scale(largest / LARGEST[bits]).float()
    codes = (weight / scale.double().view(-1, *[1] * (weight.ndim - 1))).round().clamp(-LARGEST[bits], LARGEST[bits])
    return codes.to(torch.int8), scale


def usable_scale(scale: Tensor) -> Tensor:
    """`scale`, and 1 in place of those so small, 0 above all, that what they belong to rounds to 0."""
    return torch.where(scale >= SMALLEST_SCALE, scale, 1.0)


def fit_biases(codes: Tensor, scale: Tensor, bias: Tensor, input_scale: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes [out, ...] and float32 scale [out] of a layer whose sums hold its bias [out] as int32.

    The scale of a channel with tiny weights beside its bias, as a nearly dead BatchNorm leaves it, is raised, and its
    codes are rounded again. They lose nothing that shows: their sums are below the last bits of the bias. A channel
    without any weight gets the scale that is finest for its bias.
    """
    smallest = usable_scale((bias.abs().double() / (input_scale.double() * LARGEST_BIAS)).float())
    has_weights = codes.flatten(1).any(1)
    needed = torch.where(bias == 0, scale, smallest)
    raised = torch.where(has_weights, scale.maximum(needed), needed)
    ratio = (scale.double() / raised.double()).view(-1, *[1] * (codes.ndim - 1))
    return (codes * ratio).round().to(torch.int8), raised


def round_bias(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """A bias, float32 [out], as multiples of the sums' scale: runtimes that add it as an integer then answer alike."""
    step = (input_scale * weight_scale).double()
    return ((bias / step).round() * step).float()
