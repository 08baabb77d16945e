"""Measuring BatchNorm's statistics anew after a cut."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimkit.core.data import Batches
from slimkit.core.measure.modes import evaluating
from slimkit.core.progress import Progress, silent


def recalibrate(module: nn.Module, batches: Batches, *, progress: Progress = silent) -> int:
    """Set every BatchNorm's running mean and variance, in place, to those of all `batches` (float [n, channels, ...]).

    The statistics are pooled over all images, as if they were one batch, save that each layer normalizes by those of
    the batch at hand, as in training. Returns the number of images; a batch of one, which has no variance, is left out.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]
    pools = {norm: _Pool() for norm in norms}
    hooks = [norm.register_forward_pre_hook(pool.add) for norm, pool in pools.items()]
    like = next(module.parameters())
    images = 0
    try:
        with evaluating(module), torch.no_grad(), progress("recalibrate BatchNorm", len(batches)) as advance:
            for norm in norms:
                norm.training = True
            for batch in batches if norms else ():
                if len(batch) > 1:
                    module(batch.to(like.device, like.dtype))
                    images += len(batch)
                advance(1)
    finally:
        for hook in hooks:
            hook.remove()
    for norm, pool in pools.items():
        pool.store(norm)
    return images


class _Pool:
    """Counts, means and variances of batches, pooled by Chan's formula."""

    def __init__(self) -> None:
        self._batches: list[tuple[int, Tensor, Tensor]] = []  # values per channel, mean [C], variance [C]

    def add(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        values: Tensor = inputs[0]
        over = [0, *range(2, values.dim())]
        variance, mean = torch.var_mean(values.float(), over, correction=0)
        self._batches.append((values.numel() // values.shape[1], mean.double(), variance.double()))

    def store(self, norm: _BatchNorm) -> None:
        if not self._batches:
            return
        counts = torch.tensor([count for count, _, _ in self._batches], dtype=torch.float64)
        means = torch.stack([mean for _, mean, _ in self._batches]).cpu()
        variances = torch.stack([variance for _, _, variance in self._batches]).cpu()
        share = (counts / counts.sum())[:, None]
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean) ** 2)).sum(0) * counts.sum() / (counts.sum() - 1)
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_(variance)
