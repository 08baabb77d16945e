"""Getting a network ready to be looked at, and leaving it as it was."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode; on leaving, each gets its own mode back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def skipping_norms(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm return what it is given: it changes no shape, and is most of the time of a pass on meta."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and "forward" not in vars(part)]
    for norm in norms:
        vars(norm)["forward"] = lambda values: values
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"]


def on_cpu(module: nn.Module) -> nn.Module:
    """The network in float32 on the CPU: itself, or a copy where it isn't there."""
    tensors = [*module.parameters(), *module.buffers()]
    if all(t.device.type == "cpu" and (t.dtype == torch.float32 or not t.is_floating_point()) for t in tensors):
        return module
    return copy.deepcopy(module).cpu().float()
