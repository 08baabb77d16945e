"""The exponential moving average of a network in training."""

from __future__ import annotations

import copy
import logging

import torch
from torch import nn

log = logging.getLogger("slimkit")

YOUNG = 10  # steps: the average of so few is their mean, about, whatever the decay


class Average:
    """A network with the average of the weights and buffers (Polyak & Juditsky 1992)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Start with those of `module`."""
        log.info("evaluated and kept is the average of the weights, with a decay of %g a step", decay)
        self.module = copy.deepcopy(module).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, steps: int) -> None:
        """Take in what `module` is after a step, where `steps` were taken before; counters are as in `module`."""
        decay = min(self._decay, (1 + steps) / (YOUNG + steps))
        for mean, value in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)
