"""The optimizers by name, with weight decay on matrices only."""

import torch
from torch import nn

from slimkit.core.options import Optimizer
from slimkit.core.training.muon import Muon

USUAL_RATES: dict[Optimizer, float] = {"sgd": 0.1, "adam": 0.001, "adamw": 0.002, "muon": 0.002}  # at batch 128
USUAL_DECAYS: dict[Optimizer, float] = {"sgd": 5e-4, "adam": 0.0, "adamw": 0.05, "muon": 0.05}


def make_optimizer(module: nn.Module, name: Optimizer, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """An optimizer of all parameters of `module`; biases and BatchNorm's parameters are not decayed."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = {"params": [p for p in module.parameters() if p.ndim <= 1], "weight_decay": 0.0}
    groups = [{"params": matrices, "weight_decay": weight_decay}, vectors]
    if name == "muon":
        hidden = [p for p in matrices[1:-1] if min(p.shape[:2]) > 1]  # depthwise kernels mix no channels
        outer = {"params": [p for p in matrices if all(p is not each for each in hidden)], "weight_decay": weight_decay}
        rest = [group | {"is_muon": False} for group in (outer, vectors)]
        return Muon([{"params": hidden, "weight_decay": weight_decay, "is_muon": True}, *rest], lr=lr)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(groups, lr=lr)
