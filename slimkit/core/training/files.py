"""The files that a training keeps beside its output: its checkpoints, and its course."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

from slimkit.core.errors import FolderError
from slimkit.core.files import require_file
from slimkit.core.options import DistillOptions, TrainOptions
from slimkit.core.training.board import require_tensorboard
from slimkit.core.training.checkpoint import checkpoint_folder, has_checkpoint, remove_checkpoints
from slimkit.core.training.identity import Run
from slimkit.core.training.metrics import require_metrics


@dataclass(frozen=True)
class TrainingFiles:
    """Where a training keeps its checkpoints, how often, and whether it goes on from one."""

    output: Path
    every: float  # seconds between two checkpoints
    resume: bool
    tensorboard: bool = False
    run: Run = field(default_factory=dict)  # as `describe_run` gives it
    begun: float = field(default_factory=time.monotonic)  # when the command that trains was

    @classmethod
    def of(cls, options: TrainOptions | DistillOptions) -> TrainingFiles:
        """Those of a command. Raises FolderError where a training was left there that is not to be lost unasked.

        Raises UsageError for what a package is missing for.
        """
        files = cls(options.output, 60 * options.checkpoint_minutes, options.resume, options.tensorboard)
        require_metrics(files.metrics)
        if options.plot:
            require_file(files.curves, options.force or options.resume)
        if options.tensorboard:
            require_tensorboard()
        if has_checkpoint(files.folder) and not options.resume:
            if not options.force:
                raise FolderError(
                    f"{files.folder} holds a training that was interrupted.",
                    "Give --resume to go on with it, or -f/--force to start over.",
                )
            files.remove()
        return files

    @property
    def folder(self) -> Path:
        """Where the checkpoints lie."""
        return checkpoint_folder(self.output)

    @property
    def metrics(self) -> Path:
        """Where the course of the training is written."""
        return self.output.with_name(f"{self.output.name}.metrics.jsonl")

    @property
    def curves(self) -> Path:
        """Where it is drawn."""
        return self.output.with_name(f"{self.output.name}.curves.png")

    @property
    def board(self) -> Path | None:
        """Where it is written for TensorBoard, if it is."""
        return self.output.with_name(f"{self.output.name}.tensorboard") if self.tensorboard else None

    def of_run(self, run: Run) -> TrainingFiles:
        """The same for a training that is known now."""
        return dataclasses.replace(self, run=run)

    def remove(self) -> None:
        """Remove the checkpoints: the result is written."""
        remove_checkpoints(self.folder)
