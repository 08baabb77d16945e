"""Rounding a layer's weights to few bits by least squares: no gradients, only the second moments of its inputs.

Rounding each weight to the nearest code minimizes the error of the weights. What counts is the error of the outputs,
tr((W - Q) H (W - Q)^T) with H the covariance of the inputs: the error of one weight can be made up for by the others.
All functions take groups of a convolution as a leading dimension g, with o outputs and d inputs each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimkit.core.quantization.weights.per_channel import usable_scale

BLOCK = 128  # columns whose effect on all later ones is worked out at once
DAMPING = 0.01  # of the mean variance, added to each: Frantar et al. 2022
SHRINKS = torch.linspace(1.05, 0.05, 101)  # the parts of the largest weight that the scale search tries
PASSES = 4  # of the descent; later ones change next to nothing


def round_by_least_squares(weight: Tensor, covariance: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """Codes [g, o, d] from `lowest` to `highest` and scales [g, o] that bring the outputs closest to `weight`'s.

    weight: [g, o, d]; covariance: of the inputs, [g, d, d]. Rounds column by column and passes each column's error on
    to those not yet rounded (GPTQ: Frantar et al. 2022, arXiv:2210.17323), then improves single codes and the scales
    in turn while the error falls (coordinate descent; Nair & Suggala 2024, arXiv:2409.00276).
    """
    spread = covariance.diagonal(dim1=1, dim2=2)
    damped = covariance + torch.diag_embed((DAMPING * spread.mean(1, keepdim=True) + 1e-12).expand_as(spread))
    scale = best_scale(weight, damped.diagonal(dim1=1, dim2=2), lowest, highest)
    codes = _pass_errors_on(weight, damped, scale, lowest, highest)
    for _ in range(PASSES):
        codes = _descend(weight, codes, damped, scale, lowest, highest)
        scale = _fit_scale(weight, codes, damped, scale)
    return codes, scale


def best_scale(weight: Tensor, importance: Tensor, lowest: int, highest: int) -> Tensor:
    """The scale [g, o] with the least squared error of rounding `weight` [g, o, d] to the nearest code.

    importance: how much the error of each weight counts, [g, d].
    """
    largest = weight.abs().amax(2)
    best, least = torch.ones_like(largest), torch.full_like(largest, float("inf"))
    for shrink in SHRINKS.tolist():
        scale = usable_scale(largest * shrink / highest)
        error = (weight / scale[..., None]).round_().clamp_(lowest, highest).mul_(scale[..., None]).sub_(weight)
        total = error.square_().mul_(importance[:, None]).sum(2)
        best = torch.where(total < least, scale, best)
        least = torch.minimum(total, least)
    return best


def _pass_errors_on(weight: Tensor, covariance: Tensor, scale: Tensor, lowest: int, highest: int) -> Tensor:
    """GPTQ: the codes [g, o, d]; the columns of the largest variance come first."""
    order = covariance.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)  # [g, d]
    rows = order[:, :, None].expand_as(covariance)
    columns = order[:, None].expand_as(covariance)
    ordered = covariance.gather(1, rows).gather(2, columns).double()  # float32 would not do for close relations
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
    factor = torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)  # [g, d, d]
    places = order[:, None].expand_as(weight)
    left = weight.gather(2, places)  # what is still to be rounded, made up for what was lost
    codes = torch.empty_like(left)
    for start in range(0, weight.shape[2], BLOCK):
        block = slice(start, min(start + BLOCK, weight.shape[2]))
        part, corner = left[..., block], factor[:, block, block]
        errors = torch.empty_like(part)
        for i in range(part.shape[2]):
            codes[..., start + i] = (part[..., i] / scale).round().clamp(lowest, highest)
            errors[..., i] = (part[..., i] - codes[..., start + i] * scale) / corner[:, None, i, i]
            part[..., i:] -= errors[..., i, None] * corner[:, None, i, i:]
        left[..., block.stop :] -= errors @ factor[:, block, block.stop :]
    return torch.empty_like(codes).scatter_(2, places, codes)


def _descend(weight: Tensor, codes: Tensor, covariance: Tensor, scale: Tensor, lowest: int, highest: int) -> Tensor:
    """One pass in which each code, all others fixed, becomes the best one: codes [g, o, d]."""
    codes = codes.clone()
    slope = (weight - codes * scale[..., None]) @ covariance  # [g, o, d]
    spread = covariance.diagonal(dim1=1, dim2=2)
    for start in range(0, weight.shape[2], BLOCK):
        block = slice(start, min(start + BLOCK, weight.shape[2]))
        before, part, corner = codes[..., block].clone(), slope[..., block].clone(), covariance[:, block, block]
        for i in range(part.shape[2]):
            code = codes[..., start + i]
            wanted = code + part[..., i] / (scale * spread[:, start + i, None])
            change = wanted.round().clamp(lowest, highest) - code
            codes[..., start + i] += change
            part -= (change * scale)[..., None] * corner[:, None, i]
        slope -= (codes[..., block] - before) * scale[..., None] @ covariance[:, block]
    return codes


def _fit_scale(weight: Tensor, codes: Tensor, covariance: Tensor, scale: Tensor) -> Tensor:
    """The scale [g, o] that is best for these codes, in closed form; `scale` where all codes are 0."""
    weighted = codes @ covariance
    below = (weighted * codes).sum(2)
    fitted = (weighted * weight).sum(2) / below
    return torch.where((below > 0) & (usable_scale(fitted) == fitted), fitted, scale)
