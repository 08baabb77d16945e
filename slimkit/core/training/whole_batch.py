"""BatchNorm that takes its statistics from the whole batch, where several processes have a part of it each.

What torch.nn.SyncBatchNorm does on GPUs alone, on every device, and for BatchNorm wherever it stands in a network. With
it the number of processes changes no more than the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from slimkit.core.training.ranks import Ranks
from slimkit.core.training.views import Batch


@contextmanager
def whole_batch_statistics(ranks: Ranks, batch: Batch) -> Iterator[None]:
    """Let BatchNorm in training mode normalize by the statistics of the batch that all `ranks` have a part of."""
    if ranks.count == 1:
        yield
        return
    with _WholeBatchNorm(ranks, batch):
        yield


class _WholeBatchNorm(TorchFunctionMode):
    """Takes the place of torch's batch_norm."""

    def __init__(self, ranks: Ranks, batch: Batch) -> None:
        super().__init__()
        self._ranks, self._batch = ranks, batch

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call `function`, or in place of batch_norm our own."""
        return (self._batch_norm if function is F.batch_norm else function)(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """As F.batch_norm, of an input [n, channels, ...]."""
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        batch, channels = self._batch, input.shape[1]
        mean, var = _statistics(self._ranks, input, batch.share)
        numbers = batch.images * input[0, 0].numel()  # of a channel, in the whole batch
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * numbers / max(1, numbers - 1)).to(running_var.dtype), momentum)
        weight = input.new_ones(channels) if weight is None else weight
        bias = input.new_zeros(channels) if bias is None else bias
        scale = (var + eps).rsqrt()
        outputs: Tensor = _Normalize.apply(input, weight, bias, mean, scale, numbers, self._ranks, batch.counts)  # type: ignore[no-untyped-call]  # untyped in torch
        return outputs


@torch.no_grad()
def _statistics(ranks: Ranks, inputs: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Mean and variance (biased) of each channel in the whole batch: float32 [channels] each.

    share: of the batch that `inputs` are. Squares are subtracted in float64, where the difference keeps its digits.
    """
    var, mean = torch.var_mean(inputs.float(), _all_but_channels(inputs), correction=0)
    mean, var = mean.double(), var.double()
    sums = share * torch.stack([mean, var + mean**2])
    ranks.add(sums)
    return sums[0].float(), (sums[1] - sums[0] ** 2).clamp(min=0).float()


class _Normalize(torch.autograd.Function):
    """Normalizes by statistics of the whole batch, which the gradient passes through in all processes."""

    @staticmethod
    def forward(  # as its base says
        context: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        scale: Tensor,
        numbers: int,
        ranks: Ranks,
        counts: bool,
    ) -> Tensor:
        context.save_for_backward(inputs, weight, mean, scale)
        context.rest = numbers, ranks, counts
        factor = scale * weight
        outputs = inputs.float() * _per_channel(factor, inputs) + _per_channel(bias - mean * factor, inputs)
        return outputs.to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # as its base says
        """With x the normalized input and means over the whole batch: weight * scale * (g - mean(g) - x * mean(g * x)).

        The gradients of weight and bias are those of the own part. An input that `counts` for nothing has none.
        """
        inputs, weight, mean, scale = context.saved_tensors
        numbers, ranks, counts = context.rest
        around = _all_but_channels(inputs)
        gradient = gradient.float()
        normalized = (inputs.float() - _per_channel(mean, inputs)) * _per_channel(scale, inputs)
        own = torch.stack([gradient.sum(around), (gradient * normalized).sum(around)])
        means = own.clone()
        ranks.add(means)
        means /= numbers
        left = gradient - _per_channel(means[0], inputs) - normalized * _per_channel(means[1], inputs)
        to_inputs = (left * _per_channel(scale * weight * counts, inputs)).to(inputs.dtype)
        return to_inputs, own[1].to(weight.dtype), own[0].to(weight.dtype), *[None] * 5


def _all_but_channels(inputs: Tensor) -> list[int]:
    return [0, *range(2, inputs.ndim)]


def _per_channel(values: Tensor, inputs: Tensor) -> Tensor:
    return values.view(-1, *[1] * (inputs.ndim - 2))
