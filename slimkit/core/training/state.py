"""Where a training stands, as something that can be kept and gone back to."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from slimkit.core.training.average import Average

Snapshot = dict[str, Any]  # numbers, texts and tensors: what `torch.load(weights_only=True)` reads


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    loss: float  # mean over the training images
    accuracy: float  # top-1 %, on the images held out of the training data
    precision: str  # that the forward pass was computed in


@dataclass(frozen=True)
class Rollback:
    """A loss that was not finite, after which training went back and on at half the rate."""

    step: int  # that had this loss
    loss: str  # nan or inf
    back_to: int  # the step that was taken next


@dataclass
class State:
    """All that changes in a training."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int  # of the whole training; one that has minutes in place of epochs fits it to them
    average: Average | None = None  # of the weights
    step: int = 0  # that are done
    loss_sum: float = 0.0  # over the images that this epoch has seen
    images: int = 0  # that this epoch has seen
    seconds: float = 0.0  # that the training has taken
    epochs: tuple[Epoch, ...] = ()
    rollbacks: tuple[Rollback, ...] = ()
    best: dict[str, Tensor] = field(default_factory=dict)  # weights of the best epoch; never changed in place

    @property
    def evaluated(self) -> nn.Module:
        """The network whose weights are evaluated and kept."""
        return self.average.module if self.average else self.module

    def snapshot(self) -> Snapshot:
        """A copy that later steps don't change."""
        return {
            "weights": copy.deepcopy(self.module.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "average": copy.deepcopy(self.average.module.state_dict()) if self.average else None,
            "best": self.best,
            "epochs": [dataclasses.asdict(epoch) for epoch in self.epochs],
            "rollbacks": [dataclasses.asdict(rollback) for rollback in self.rollbacks],
        } | {name: getattr(self, name) for name in NUMBERS}

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to what `snapshot` copied; it can be gone back to again."""
        self.module.load_state_dict(snapshot["weights"])
        self.optimizer.load_state_dict(copy.deepcopy(snapshot["optimizer"]))  # which would be taken as it is
        if self.average:
            self.average.module.load_state_dict(snapshot["average"])
        self.best = snapshot["best"]
        self.epochs = tuple(Epoch(**epoch) for epoch in snapshot["epochs"])
        self.rollbacks = tuple(Rollback(**rollback) for rollback in snapshot["rollbacks"])
        for name in NUMBERS:
            setattr(self, name, snapshot[name])

    def count(self, loss: float, images: int) -> None:
        """One more step is done, on so many images."""
        if self.average:
            self.average.update(self.module, self.step)
        self.step += 1
        self.loss_sum += loss * images
        self.images += images

    def close_epoch(self, accuracy: float, precision: str) -> None:
        """An epoch is over: keep its weights if none was better."""
        self.epochs = (*self.epochs, Epoch(self.loss_sum / self.images, accuracy, precision))
        self.loss_sum, self.images = 0.0, 0
        if accuracy >= max(epoch.accuracy for epoch in self.epochs):
            self.best = copy.deepcopy(self.evaluated.state_dict())


NUMBERS = ("step", "steps", "loss_sum", "images", "seconds")
