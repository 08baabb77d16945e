"""The optimizers by name, with weight decay on matrices only."""

import torch
from torch import nn

from slimkit.core.options import Optimizer

USUAL_RATES: dict[Optimizer, float] = {"sgd": 0.1, "adam": 0.001, "adamw": 0.002}  # at batch 128


def make_optimizer(module: nn.Module, name: Optimizer, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """An optimizer of all parameters of `module`; biases and BatchNorm's parameters are not decayed."""
    groups = [
        {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in module.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(groups, lr=lr)
