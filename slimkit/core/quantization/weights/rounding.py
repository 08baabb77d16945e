"""Rounding a layer's weights to few bits by least squares: no gradients, only the second moments of its inputs.

Rounding each weight to the nearest code minimizes the error of the weights. What counts is the error of the outputs,
tr((W - Q) H (W - Q)^T) with H the covariance of the inputs: the error of one weight can be made up for by the others.
All functions take groups of a convolution as a leading dimension g, with o outputs and d inputs each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimkit.core.quantization.weights.per_channel import usable_scale
from slimkit.core.quantization.weights.rate import Grid, try_scales

BLOCK = 128  # columns whose effect on all later ones is worked out at once
DAMPING = 0.01  # of the mean variance, added to each: Frantar et al. 2022
SHRINKS = torch.linspace(1.05, 0.05, 101)  # the parts of the largest weight that the scale search tries
PASSES = 4  # of the descent; later ones change next to nothing


def round_by_least_squares(
    weight: Tensor, covariance: Tensor, lowest: int, highest: int, price: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Codes [g, o, d] from `lowest` to `highest` and scales [g, o] that bring the outputs closest to `weight`'s.

    weight: [g, o, d]; covariance: of the inputs, [g, d, d]; price: see `Grid`. Rounds column by column and passes each
    column's error on to those not yet rounded (GPTQ: Frantar et al. 2022, arXiv:2210.17323), then improves single codes
    and the scales in turn while the error falls (coordinate descent; Nair & Suggala 2024, arXiv:2409.00276).
    """
    covariance = damped(covariance)
    order, factor = eliminate(covariance)
    scale = best_scale(weight, covariance.diagonal(dim1=1, dim2=2), lowest, highest)
    grid = Grid(lowest, highest, price)
    apart = try_scales(weight, scale, left_variances(order, factor), grid)
    scale, codes = apart.scale, _pass_errors_on(weight, order, factor, apart.scale, grid.with_lengths_of(apart.codes))
    goal, given = weight @ covariance, codes @ covariance
    for _ in range(PASSES):
        codes, given = _descend(goal, codes, given, covariance, scale, grid.with_lengths_of(codes))
        scale = _fit_scale(weight, codes, given, scale)
    return codes, scale


def damped(covariance: Tensor) -> Tensor:
    """A covariance [g, d, d] that can be inverted."""
    spread = covariance.diagonal(dim1=1, dim2=2)
    return covariance + torch.diag_embed((DAMPING * spread.mean(1, keepdim=True) + 1e-12).expand_as(spread))


def left_variances(order: Tensor, factor: Tensor) -> Tensor:
    """The variance of each input that those whose columns are rounded after its own can't make up for: [g, d].

    order, factor: see `eliminate`.
    """
    left = factor.diagonal(dim1=1, dim2=2).square()
    return torch.empty_like(left).scatter_(1, order, left)


def eliminate(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The order [g, d] in which columns are rounded, and the upper R [g, d, d], R R^T = `covariance` in that order.

    The columns of the largest variance come first.
    """
    order = covariance.diagonal(dim1=1, dim2=2).argsort(dim=1)
    ordered = covariance.gather(1, order[:, :, None].expand_as(covariance))
    ordered = ordered.gather(2, order[:, None].expand_as(covariance))
    lower = torch.linalg.cholesky(ordered.double())  # float32 would not do for close relations
    return order.flip(1), lower.flip(1, 2).to(covariance.dtype)


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


def _pass_errors_on(weight: Tensor, order: Tensor, factor: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """GPTQ: the codes [g, o, d]. order, factor: see `eliminate`."""
    unit = torch.eye(factor.shape[1], dtype=factor.dtype).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, unit, upper=True)
    places = order[:, None].expand_as(weight)
    left = weight.gather(2, places)  # what is still to be rounded, made up for what was lost
    codes = torch.empty_like(left)
    for start in range(0, weight.shape[2], BLOCK):
        block = slice(start, min(start + BLOCK, weight.shape[2]))
        part, corner = left[..., block], inverse[:, block, block]
        errors = torch.empty_like(part)
        for i in range(part.shape[2]):
            codes[..., start + i] = grid.best(part[..., i] / scale, (scale / corner[:, None, i, i]) ** 2)
            errors[..., i] = (part[..., i] - codes[..., start + i] * scale) / corner[:, None, i, i]
            part[..., i:] -= errors[..., i, None] * corner[:, None, i, i:]
        left[..., block.stop :] -= errors @ inverse[:, block, block.stop :]
    return torch.empty_like(codes).scatter_(2, places, codes)


def _descend(
    goal: Tensor, codes: Tensor, given: Tensor, covariance: Tensor, scale: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """One pass in which each code, all others fixed, becomes the best one: codes [g, o, d], and codes @ covariance.

    goal: weight @ covariance; given: codes @ covariance.
    """
    codes, given = codes.clone(), given.clone()
    spread = covariance.diagonal(dim1=1, dim2=2)
    for start in range(0, codes.shape[2], BLOCK):
        block = slice(start, min(start + BLOCK, codes.shape[2]))
        before, corner = codes[..., block].clone(), covariance[:, block, block]
        part = goal[..., block] - given[..., block] * scale[..., None]
        for i in range(part.shape[2]):
            code = codes[..., start + i]
            variance = spread[:, start + i, None]
            wanted = code + part[..., i] / (scale * variance)
            change = grid.best(wanted, scale.square() * variance) - code
            codes[..., start + i] += change
            part -= (change * scale)[..., None] * corner[:, None, i]
        given += (codes[..., block] - before) @ covariance[:, block]
    return codes, given


def _fit_scale(weight: Tensor, codes: Tensor, given: Tensor, scale: Tensor) -> Tensor:
    """The scale [g, o] that is best for these codes, in closed form; `scale` where all codes are 0.

    given: codes @ covariance.
    """
    below = (given * codes).sum(2)
    fitted = (given * weight).sum(2) / below
    return torch.where((below > 0) & (usable_scale(fitted) == fitted), fitted, scale)
