"""One step of training: forwards, backwards, and the optimizer's update."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from slimkit.core.training.layout import memory_format
from slimkit.core.training.precision import autocast
from slimkit.core.training.ranks import ALONE, Ranks
from slimkit.core.training.views import Batch
from slimkit.core.training.whole_batch import whole_batch_statistics

Loss = Callable[[Tensor, Batch], Tensor]  # logits [n, classes] and what they answer -> scalar


def take_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    batch: Batch,
    rate: float,
    bfloat16: bool,
    ranks: Ranks = ALONE,
) -> float:
    """Learn from one batch at the learning rate `rate`; gives its loss. One that is not finite changes no weight.

    bfloat16: whether the networks are computed in it where that is safe. ranks: those that have a part of the batch
    each; all of them take the same step.
    """
    inputs = batch.inputs.contiguous(memory_format=memory_format(module))
    with autocast(inputs, bfloat16), whole_batch_statistics(ranks, batch):
        logits = module(inputs)
        value = batch.share * loss(logits.float(), batch)
    number = ranks.total(value.item())
    if math.isfinite(number):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        ranks.add_gradients(module)
        optimizer.step()
    return number
