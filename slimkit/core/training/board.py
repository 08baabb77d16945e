"""The course of a training for TensorBoard."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimkit.core.errors import UsageError

OF_STEPS = {"loss": "loss", "learning_rate": "learning rate", "images_per_second": "images per second"}
OF_EPOCHS = {"loss": "loss of the epoch", "held_out_accuracy": "held-out accuracy"}


def require_tensorboard() -> None:
    """Raise UsageError where the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--tensorboard: tensorboard is not installed.", 'Run `pip install "slimkit[tensorboard]"`.')


class Board:
    """Writes the lines of `Metrics` as TensorBoard reads them."""

    def __init__(self, folder: Path, step: int) -> None:
        """Of what an earlier run left there the steps after `step` are hidden; at the start all of it is removed."""
        from torch.utils.tensorboard import SummaryWriter  # it can't be imported where the package is missing

        for file in () if step else folder.glob("events.out.tfevents.*"):
            file.unlink()
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """A line, as `Metrics` makes it; those of rollbacks are left out."""
        names = OF_EPOCHS if "held_out_accuracy" in line else OF_STEPS if "learning_rate" in line else {}
        for key, name in names.items():
            self._writer.add_scalar(name, line[key], line["step"])
        self._writer.flush()
