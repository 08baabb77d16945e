"""What a search has tried, on disk: a search that was stopped goes on from there."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slimkit.core.errors import FolderError
from slimkit.core.files import write_atomically
from slimkit.core.typed import FieldError, parse_dataclass

Budget = Literal["macs", "params"]  # of `PruneOptions`: what a search cuts
SHOWN: dict[Budget, str] = {"macs": "MACs", "params": "parameters"}


@dataclass(frozen=True)
class Tried:
    """One network, as it did on the held-out training images."""

    share: float  # of what the search cuts, MACs or parameters, that was to be kept
    step: str  # "baseline", "cut", "trained" or "rounded"
    accuracy: float  # %
    folder: str  # below that of the search; of the baseline: its own
    minutes: float = 0.0  # of training
    bits: int | None = None  # of the weights; None: float
    size: float | None = None  # MB, of the weights file; None: not rounded yet
    latency: float | None = None  # ms, median at batch 1
    seconds: float = 0.0  # that it took to make


@dataclass(frozen=True)
class Choice:
    """What the search came to."""

    budget: Budget
    share: float  # of it that is kept
    minutes: float  # of distillation
    bits: int


@dataclass
class Record:
    """The file of a search."""

    file: Path
    about: dict[str, Any]  # what it stands for: another search starts over
    tried: list[Tried]
    choice: Choice | None
    views: int | None  # of the images, that all trainings share; 0: none; None: not known yet
    seconds: float  # that were spent before this process

    @staticmethod
    def open(file: Path, about: dict[str, Any], force: bool) -> Record:
        """The record of the search `about`; an empty one where there is none, or one of another search."""
        empty = Record(file, about, [], None, None, 0.0)
        if force or not file.exists():
            return empty
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["about"] != json.loads(json.dumps(about)):
                return empty
            tried = [parse_dataclass(Tried, each, str(file)) for each in content["tried"]]
            choice = parse_dataclass(Choice, content["choice"], str(file)) if content["choice"] else None
            return Record(file, about, tried, choice, content["views"], float(content["seconds"]))
        except (ValueError, KeyError, TypeError, FieldError) as error:
            raise FolderError(f"{file} is not the record of a search: {error}.", "Delete it.") from None

    def __post_init__(self) -> None:
        self._start = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds, of all processes that worked on it."""
        return self.seconds + time.monotonic() - self._start

    def find(self, share: float, step: str, bits: int | None = None) -> Tried | None:
        """What was tried already."""
        return next((t for t in self.tried if (t.share, t.step, t.bits) == (share, step, bits)), None)

    def add(self, tried: Tried) -> Tried:
        """Write it down."""
        self.tried = [t for t in self.tried if (t.share, t.step, t.bits) != (tried.share, tried.step, tried.bits)]
        self.tried.append(tried)
        self.write()
        return tried

    def write(self) -> None:
        """Replace the file."""
        content = {
            "about": self.about,
            "tried": [dataclasses.asdict(each) for each in self.tried],
            "choice": self.choice and dataclasses.asdict(self.choice),
            "views": self.views,
            "seconds": self.spent,
        }
        write_atomically(self.file, json.dumps(content, indent=2) + "\n")
