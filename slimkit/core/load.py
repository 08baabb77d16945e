"""How many cores there are for us: those that may be used, less those that other programs keep busy."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

import torch

log = logging.getLogger("slimkit")

WINDOW = 0.15  # seconds over which the load is looked at
STAT, QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")


class OutsideLoad:
    """Measures, from its making on, how many cores other programs keep busy: what /proc/stat says less our own."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._busy = _busy_seconds()
        self._own = _own_seconds()

    def cores(self, workers: Iterable[int] = ()) -> float | None:
        """The mean number until now; None where the system does not tell. workers: processes that we started since."""
        elapsed = time.perf_counter() - self._start
        busy, before = _busy_seconds(), self._busy
        if busy is None or before is None or elapsed <= 0:
            return None
        own = _own_seconds() - self._own + sum(_seconds_of(pid) for pid in workers)
        return max(0.0, (busy - before - own) / elapsed)


def free_threads() -> int:
    """The threads to compute with: as many as torch would take, but no more than there are cores free now.

    OMP_NUM_THREADS, where the user has set it, is kept. Threads that wait for one another on cores that are not theirs
    take a hundred times as long; one thread waits for none.
    """
    threads = torch.get_num_threads()
    if os.environ.get("OMP_NUM_THREADS") or threads == 1:
        return threads
    load = OutsideLoad()
    time.sleep(WINDOW)
    outside = load.cores() or 0.0
    usable = usable_cores()
    free = threads_left(threads, usable, outside)
    if free < threads:
        log.warning(
            "Computing on %d of %d threads: other programs keep %.1f of %g cores busy (--threads N beats this).",
            *(free, threads, outside, usable),
        )
    return free


def threads_left(threads: int, usable: float, outside: float) -> int:
    """Of so many threads, those that have a core of their own where others keep `outside` of `usable` cores busy."""
    return max(1, min(threads, round(usable - outside)))


def usable_cores() -> float:
    """The cores that this process may use, by its affinity and its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        return float(allowed) if quota == "max" else min(float(allowed), int(quota) / int(period))
    except (OSError, ValueError):  # no control groups of version 2
        return float(allowed)


def _busy_seconds() -> float | None:
    """What all processors have computed since the machine started; None where there is no /proc/stat."""
    try:
        fields = [int(field) for field in STAT.read_text(encoding="utf-8").splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = fields
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _seconds_of(pid: int) -> float:
    """What a process has computed; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
