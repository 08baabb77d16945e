"""Muon: momentum whose matrices are orthogonalized, so that all directions of a weight are learned at the same pace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # drives singular values towards 1, from near 0 as fast as can be
AS_ADAMW = 0.2  # root mean square of AdamW's updates, which this is brought to: its learning rates serve here
TINY = 1e-7


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for the groups that are marked `is_muon`, AdamW for the others.

    The weights of the former are read as matrices [out, all else] and their updates scaled as in Liu et al. 2025
    (arXiv:2502.16982). torch.optim.Muon takes no convolutions, and computes in bfloat16 alone, which takes 30 times as
    long as float32 on a CPU without instructions for it.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights; the gradients of those that Muon has updated are None then."""
        for group in self.param_groups:
            for weight in group["params"] if group["is_muon"] else ():
                if weight.grad is not None:
                    self._update(weight, weight.grad, group["lr"], group["weight_decay"])
                    weight.grad = None  # AdamW passes it by
        return super().step(closure)

    def _update(self, weight: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[weight]
        if not state:  # by the names that AdamW looks for when it is loaded
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(weight)}
        state["step"] += 1
        momentum = state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
        direction = orthogonalized(ahead).view(weight.shape)
        weight.mul_(1 - rate * decay)
        weight.add_(direction, alpha=-rate * AS_ADAMW * max(ahead.shape) ** 0.5)


def orthogonalized(matrix: Tensor) -> Tensor:
    """About U V^T of a matrix U S V^T, by a Newton-Schulz iteration: its singular values lie between 0.5 and 1.5.

    Those of nearly 0 may stay below.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    result = wide.bfloat16() if wide.is_cuda else wide
    result = result / (result.norm() + TINY)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        square = result @ result.T
        result = torch.addmm(result, torch.addmm(square, square, square, beta=b, alpha=c), result, beta=a)
    return (result if wide is matrix else result.T).to(matrix.dtype)
