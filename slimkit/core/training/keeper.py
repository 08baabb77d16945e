"""What keeps a training from being lost: its last good state, in memory and every few minutes on the disk."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from slimkit.core.errors import ModelError
from slimkit.core.training.checkpoint import read_checkpoint, write_checkpoint
from slimkit.core.training.files import TrainingFiles
from slimkit.core.training.identity import require_same
from slimkit.core.training.precision import prefers_bfloat16
from slimkit.core.training.ranks import ALONE, Ranks
from slimkit.core.training.state import Rollback, Snapshot, State

log = logging.getLogger("slimkit")

EVERY = 10  # steps between two copies in memory: 1 % of the time or less
MOST_TIME = 0.05  # share of the time that checkpoints at short epochs' ends may take
MOST_ROLLBACKS = 3


@dataclass(frozen=True)
class Choices:
    """What is chosen by the machine's state when a training starts, and kept where it is resumed."""

    bfloat16: bool  # by a race against float32
    threads: int  # by the load of other programs, unless they are given


class Keeper:
    """Keeps the last good state of a training: one from which a finite loss followed."""

    def __init__(self, files: TrainingFiles | None, ranks: Ranks = ALONE) -> None:
        """Without `files` it is kept in memory alone, as in all of `ranks` but the first."""
        self.choices: Choices
        self._files, self._ranks = files, ranks
        self._good: Snapshot | None = None
        self._candidate: Snapshot | None = None
        self._written = time.monotonic()
        self._took = 0.0  # seconds, the last writing
        self._epochs = 0  # that were over in what was written last

    def start(self, state: State, device: torch.device) -> None:
        """Let `state` be that of the checkpoint to go on from, if there is one. Raises UsageError, FolderError."""
        found = self._ranks.from_first(self._read)
        if found is None:
            bfloat16 = self._ranks.from_first(lambda: prefers_bfloat16(device))
            self.choices = Choices(bfloat16, torch.get_num_threads())
            return
        self.choices = Choices(**found["choices"])
        state.restore(found["state"])
        self._good, self._epochs = found["good"], len(state.epochs)

    def _read(self) -> dict[str, Any] | None:
        """The checkpoint to go on from. Raises UsageError where it is of another training."""
        files = self._files
        if files is None or not files.resume:
            return None
        if found := read_checkpoint(files.folder):
            require_same(found["run"], files.run, found["choices"]["threads"], files.folder)
            state = found["state"]
            log.info("going on after step %d of %d, from %s", state["step"], state["steps"], files.folder)
        else:
            log.info("%s holds no checkpoint: the training starts from the beginning", files.folder)
        return found

    def before_step(self, state: State, *, first_of_epoch: bool) -> None:
        """Take a copy that becomes the good state if this step's loss is finite."""
        if first_of_epoch or state.step % EVERY == 0:
            self._candidate = state.snapshot()

    def after_step(self) -> None:
        """The loss was finite."""
        if self._candidate is not None:
            self._good, self._candidate = self._candidate, None
            if self._is_due(len(self._good["epochs"])):
                self._write(self._good, self._good)

    def roll_back(self, state: State, loss: float) -> None:
        """Go back to the last good state, after a loss that was not finite. Raises ModelError where that is no use."""
        failed, before, self._candidate = state.step, state.rollbacks, None
        if self._good is None or len(before) == MOST_ROLLBACKS:
            halved = f" even at 1/{2 ** len(before)} of the rate" if before else ""
            raise ModelError(
                f"The loss is {loss} in step {failed + 1}{halved}: training diverged.",
                "Give a lower --lr." if self._good else "Look at the images and the weights that it starts from.",
            )
        state.restore(self._good)
        state.rollbacks = (*before, Rollback(failed + 1, str(loss), state.step + 1))
        log.warning(
            "The loss is %s in step %d: back to step %d at half the learning rate.", loss, failed + 1, state.step + 1
        )

    def finish(self, state: State) -> None:
        """All steps are done; what follows takes no more than an evaluation."""
        if self._files and state.step:
            self._write(state.snapshot(), None)

    @contextmanager
    def saving(self, state: State) -> Iterator[None]:
        """Write a checkpoint where the block is left by Ctrl-C or SIGTERM."""
        try:
            yield
        except Exception:
            raise
        except BaseException:
            if self._files and state.step:
                self._write(state.snapshot(), self._good)
                log.info("the training is saved after step %d in %s", state.step, self._files.folder)
            raise

    def _is_due(self, epochs: int) -> bool:
        if self._files is None:
            return False
        passed = time.monotonic() - self._written
        return passed >= self._files.every or (epochs > self._epochs and self._took <= MOST_TIME * passed)

    def _write(self, state: Snapshot, good: Snapshot | None) -> None:
        """Write both, once where they are the same."""
        assert self._files is not None  # its callers have asked
        start = time.monotonic()
        content: dict[str, Any] = {"run": self._files.run, "choices": dataclasses.asdict(self.choices)}
        write_checkpoint(self._files.folder, content | {"state": state, "good": good})
        self._written = time.monotonic()
        self._took, self._epochs = self._written - start, len(state["epochs"])
