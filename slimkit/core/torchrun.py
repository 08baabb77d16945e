"""How many processes torchrun started, and which of them this is: read from the environment that it gives each."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """One of the processes of a command; all numbers are counted from 0."""

    rank: int = 0  # among all
    count: int = 1  # on all machines
    local_rank: int = 0  # among those of this machine
    local_count: int = 1  # on this machine

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and speaks for all."""
        return self.rank == 0


def launch() -> Launch:
    """What torchrun says of this process; one that it did not start is by itself."""
    said = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    if not all(number.isdecimal() for number in (said["RANK"], said["WORLD_SIZE"])) or int(said["WORLD_SIZE"]) < 2:
        return Launch()
    local = int(said["LOCAL_RANK"] or 0), int(said["LOCAL_WORLD_SIZE"] or 1)
    return Launch(int(said["RANK"]), int(said["WORLD_SIZE"]), *local)
