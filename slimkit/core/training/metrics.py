"""The course of a training as lines of JSON: one every few steps, one for each epoch, one for each rollback."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from slimkit.core.errors import FolderError
from slimkit.core.files import write_atomically
from slimkit.core.training.board import Board
from slimkit.core.training.state import State

EVERY = 10  # steps between two lines


def require_metrics(file: Path) -> None:
    """Raise FolderError where a file of that name holds something else, which must not be replaced."""
    if not file.exists():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        first = next(lines, "")
    if first and "step" not in _parsed(first):
        raise FolderError(
            f"{file} does not hold the course of a training, so it is not replaced.",
            "Give that file another name, or give another -o/--output.",
        )


class Metrics:
    """Writes the course of a training as it goes on."""

    def __init__(self, file: Path | None, step: int, board: Path | None = None) -> None:
        """Without `file` nothing is written. Of a file that is there the lines up to `step` are kept.

        board: the folder for TensorBoard, if it is to have them too.
        """
        self.images_per_second = 0.0
        self._file = file
        self._images, self._since = 0, time.monotonic()
        if file is not None:
            lines = read_metrics(file) if step and file.exists() else []
            kept = [json.dumps(line) for line in lines if line.get("step", step + 1) <= step]
            write_atomically(file, "".join(f"{line}\n" for line in kept))
        self._board = Board(board, step) if file and board else None

    def step(self, state: State, loss: float, rate: float, images: int) -> None:
        """A step was taken."""
        self._images += images
        if state.step % EVERY == 0:
            self._measure()
            self._write({"step": state.step, "epoch": len(state.epochs) + 1, "loss": loss, "learning_rate": rate})

    def epoch(self, state: State) -> None:
        """An epoch is over, and measured on the held-out images."""
        last = state.epochs[-1]
        accuracy = {"held_out_accuracy": last.accuracy, "precision": last.precision}
        self._write({"step": state.step, "epoch": len(state.epochs), "loss": last.loss} | accuracy)
        self._since, self._images = time.monotonic(), 0  # the evaluation does not count

    def rollback(self, state: State) -> None:
        """A loss was not finite."""
        last = state.rollbacks[-1]
        self._write({"step": last.step, "loss": last.loss, "back_to": last.back_to})

    def _measure(self) -> None:
        now = time.monotonic()
        self.images_per_second = self._images / max(now - self._since, 1e-9)
        self._since, self._images = now, 0

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        line |= {"images_per_second": round(self.images_per_second, 1)}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._board:
            self._board.write(line)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of such a file; an empty one where a process was killed while it wrote."""
    return [_parsed(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]


def _parsed(line: str) -> dict[str, Any]:
    """The object in a line; an empty one where there is none."""
    try:
        parsed = json.loads(line)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
