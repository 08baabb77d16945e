"""Measuring BatchNorm's statistics anew after a cut."""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimkit.core.data import Batches
from slimkit.core.measure.modes import evaluating
from slimkit.core.progress import Progress, silent


def recalibrate(module: nn.Module, batches: Batches, *, keep_answers: bool = False, progress: Progress = silent) -> int:
    """Set every BatchNorm's running mean and variance, in place, to those of all `batches` (float [n, channels, ...]).

    The statistics are pooled over all images, as if they were one batch, save that each layer normalizes by those of
    the batch at hand, as in training. Returns the number of images; a batch of one, which has no variance, is left out.
    keep_answers: normalize as before meanwhile, and give each BatchNorm the weight and bias with which it answers as
        before, so that training goes on from these answers; one that has none stays as it is.
    """
    norms = [part for part in module.modules() if has_statistics(part) and (part.affine or not keep_answers)]
    pools = {norm: Pool() for norm in norms}
    hooks = [norm.register_forward_pre_hook(pool.hook) for norm, pool in pools.items()]
    like = next(module.parameters())
    images = 0
    try:
        with evaluating(module), torch.no_grad(), progress("recalibrate BatchNorm", len(batches)) as advance:
            for norm in norms:
                norm.training = not keep_answers
            for batch in batches if norms else ():
                if len(batch) > 1:
                    module(batch.to(like.device, like.dtype))
                    images += len(batch)
                advance(1)
    finally:
        for hook in hooks:
            hook.remove()
    for norm, pool in pools.items():
        if pool.count:
            _store(norm, *pool.statistics(), keep_answers)
    return images


def has_statistics(layer: nn.Module | None) -> TypeGuard[_BatchNorm]:
    """Whether a layer is a BatchNorm with running statistics."""
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


class Pool:
    """Means and variances of batches [n, channels, ...], pooled by Chan's formula."""

    def __init__(self) -> None:
        self._batches: list[tuple[int, Tensor, Tensor]] = []  # values per channel, mean [C], variance [C]

    @property
    def count(self) -> int:
        """Values per channel."""
        return sum(count for count, _, _ in self._batches)

    def hook(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Add what a layer gets, as a forward pre-hook."""
        self.add(inputs[0])

    def add(self, values: Tensor) -> None:
        """Add a batch."""
        over = [0, *range(2, values.dim())]
        variance, mean = torch.var_mean(values.float(), over, correction=0)
        self._batches.append((values.numel() // values.shape[1], mean.double(), variance.double()))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """The mean and the unbiased variance of each channel, float64 [channels] on the CPU."""
        counts = torch.tensor([count for count, _, _ in self._batches], dtype=torch.float64)
        means = torch.stack([mean for _, mean, _ in self._batches]).cpu()
        variances = torch.stack([variance for _, _, variance in self._batches]).cpu()
        share = (counts / counts.sum())[:, None]
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean) ** 2)).sum(0) * counts.sum() / (counts.sum() - 1)
        return mean, variance


def _store(norm: _BatchNorm, mean: Tensor, variance: Tensor, keep_answers: bool) -> None:
    old_mean, old_variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    if keep_answers:
        deviation = (old_variance.double() + norm.eps).sqrt()
        with torch.no_grad():
            norm.bias.add_(norm.weight.double() / deviation * (mean.to(deviation.device) - old_mean.double()))
            norm.weight.mul_((variance.to(deviation.device) + norm.eps).sqrt() / deviation)
    old_mean.copy_(mean)
    old_variance.copy_(variance)
