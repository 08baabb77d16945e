"""What a stranger's process takes of the machine beyond what the kernel's limits bound, seen from outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from slimkit.core.load import seconds_of

MOST_SCRATCH = 256 * 2**20  # bytes
MOST_THREADS = 1024
MOST_DEPTH = 16  # of folders in the scratch folder
LEAST_FILE = 4096  # bytes that a file takes at least


def excess(process: int, scratch: Path) -> str:
    """What is too much of that process and those that it started; "" where nothing is."""
    processes = list(_family(process))
    if sum(_threads(each) for each in processes) > MOST_THREADS:
        return f"it started more than {MOST_THREADS} threads"
    written = _bytes_in(scratch, MOST_DEPTH) + sum(_bytes_unlinked(each, scratch) for each in processes)
    return (
        f"it wrote more than {MOST_SCRATCH // 2**20} MB, or folders {MOST_DEPTH} deep" if written > MOST_SCRATCH else ""
    )


def peak_memory_mb(process: int) -> float:
    """The most memory that any of that process and those that it started has had, in MB."""
    peaks = [int(value) for each in _family(process) if (value := _status(each, "VmHWM"))]
    return max(peaks, default=0) / 2**10


def computed_seconds(process: int) -> float:
    """What that process and those that it started have computed, over all their threads."""
    return sum(map(seconds_of, _family(process)))


def _family(process: int) -> Iterator[int]:
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in _text(children).split():
            yield from _family(int(child))


def _threads(process: int) -> int:
    return int(_status(process, "Threads") or 0)


def _status(process: int, name: str) -> str:
    """The number that the system tells by that name; "" where it is gone."""
    found = [line for line in _text(Path(f"/proc/{process}/status")).splitlines() if line.startswith(f"{name}:")]
    return found[0].split()[1] if found else ""


def _bytes_in(folder: Path, depth: int) -> int:
    """Too many where it is too deep: paths end somewhere, and what lies beyond can't be seen."""
    if depth == 0:
        return MOST_SCRATCH + 1
    total = 0
    try:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                total += LEAST_FILE + _bytes_in(Path(entry.path), depth - 1)
            else:
                total += max(entry.stat(follow_symlinks=False).st_size, LEAST_FILE)
            if total > MOST_SCRATCH:
                break
    except OSError:
        pass  # it is gone already
    return total


def _bytes_unlinked(process: int, scratch: Path) -> int:
    """Of files in the scratch folder that have no name any more, but are open or mapped."""
    sizes: dict[str, int] = {}
    for handle in Path(f"/proc/{process}/fd").glob("*"):
        try:
            name = os.readlink(handle)  # noqa: PTH115  # of what has no name, pathlib makes none
            if name.startswith(f"{scratch}/") and name.endswith(" (deleted)"):
                sizes[name] = handle.stat().st_size
        except OSError:
            continue
    for line in _text(Path(f"/proc/{process}/maps")).splitlines():
        span, *_, name = line.split(maxsplit=5)
        if name.startswith(f"{scratch}/") and name.endswith(" (deleted)"):
            first, last = (int(end, 16) for end in span.split("-"))
            sizes[name] = max(sizes.get(name, 0), last - first)
    return sum(sizes.values())


def _text(file: Path) -> str:
    """ "" where it is gone already, or not ours to read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
