"""How many cores there are for us: those that may be used, less those that other programs keep busy."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from slimkit.core.torchrun import launch

log = logging.getLogger("slimkit")

# of a processor, as its line in /proc/stat counts them
STATES = ("user", "nice", "system", "idle", "waiting", "interrupts", "soft_interrupts", "stolen")
WINDOW = 0.15  # seconds over which the load is looked at
STAT, GROUP, GROUPS = Path("/proc/stat"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Strain:
    """What a machine did beside a measurement; None where the system does not tell."""

    seconds: float  # that it took
    outside: float | None  # cores that other programs kept busy
    stolen: float | None  # cores that the hypervisor gave to other virtual machines


class OutsideLoad:
    """Measures, from its making on, how many cores other programs keep busy: what /proc/stat says less our own."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._busy, self._stolen = _busy_seconds(), _stolen_seconds()
        self._own = _own_seconds()

    def cores(self, workers: Iterable[int] = ()) -> float | None:
        """The mean number until now; None where the system does not tell. workers: processes that we started since."""
        elapsed = time.perf_counter() - self._start
        busy, before = _busy_seconds(), self._busy
        if busy is None or before is None or elapsed <= 0:
            return None
        own = _own_seconds() - self._own + sum(seconds_of(pid) for pid in workers)
        return max(0.0, (busy - before - own) / elapsed)

    def strain(self) -> Strain:
        """The means until now; the processes that we started since have ended."""
        elapsed, stolen = time.perf_counter() - self._start, _stolen_seconds()
        taken = None if stolen is None or self._stolen is None else (stolen - self._stolen) / elapsed
        return Strain(elapsed, self.cores(), taken)


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
    return max(1, min(threads, math.floor(usable), round(usable - outside)))


def usable_cores() -> float:
    """The cores that this process may use, by its affinity and the least quota of its control groups."""
    return min([float(len(allowed_processors())), *_quotas()])


def allowed_processors() -> set[int]:
    """The numbers of those that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def own_processors() -> int:
    """How many of them there are for each of the processes that torchrun started on this machine; one at least."""
    return max(1, len(allowed_processors()) // launch().local_count)


def _quotas() -> Iterator[float]:
    """The cores that its control group allows, and each group around that one; of versions 2 and 1."""
    try:
        lines = GROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = GROUPS / "cpu" if controllers else GROUPS
        own = root / path.strip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(root):
                yield from _quota(group)


def _quota(group: Path) -> Iterator[float]:
    """The cores that one group allows, where it is seen here and has a limit."""
    for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((group / file).read_text(encoding="utf-8") for file in files).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


def _busy_seconds() -> float | None:
    """What this process's processors have computed since the machine started, what was stolen from them included."""
    return _seconds_in("user", "nice", "system", "interrupts", "soft_interrupts", "stolen")


def _stolen_seconds() -> float | None:
    """How long a hypervisor has let this process's processors wait while they had work."""
    return _seconds_in("stolen")


def _seconds_in(*states: str) -> float | None:
    """What this process's processors have spent in these of STATES; None where there is no /proc/stat."""
    own = {f"cpu{number}" for number in allowed_processors()}
    try:
        lines = [line.split() for line in STAT.read_text(encoding="utf-8").splitlines()]
        ticks = [int(line[1 + STATES.index(state)]) for line in lines if line and line[0] in own for state in states]
        return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None
    except (OSError, ValueError, IndexError):
        return None


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def seconds_of(pid: int) -> float:
    """What a process has computed; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
