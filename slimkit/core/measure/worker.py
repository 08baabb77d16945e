"""Times one network, alone in a process; `timed_process.py` starts it and speaks to it in lines of JSON.

    worker.py <model folder or .onnx file> <backend> <threads> <batch size> [<images.npy>]

It first answers ``{"load_ms": ...}`` on stdout, then each request on stdin: ``{"do": NAME, ...}`` calls the entry of
REQUESTS of that name with the rest. It ends with its stdin, even in the middle of a run, so that it never outlives its
parent. An error is its traceback on stderr.

The network is shown the images [n, channels, height, width] batch by batch, over and over; without a file, one random
batch. A model folder is run by slimkit's own copy of the code that stands in it: the folder may be a stranger's.
"""

import gc
import itertools
import json
import os
import queue
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from slimkit.core.measure.runtimes import BACKENDS, Run

STATUS = Path("/proc/self/status")
WINDOW, WINDOW_RUNS = 100.0, 3  # ms and runs at least, whose median tells whether the network still gets faster
QUIET_WINDOWS = 2  # in a row that are no faster than what was before
FASTER = 0.02  # of the median: less is no gain
WARM_UP = 5000.0  # ms after which it is not waited for any longer


class Bench:
    """A network with the batches that it is shown."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self._next = itertools.cycle(runs)

    def time_run(self) -> float:
        """The duration of the next run, in ms."""
        run = next(self._next)
        start = time.perf_counter_ns()
        run()
        return (time.perf_counter_ns() - start) / 1e6

    def time_runs(self, warmup: int, runs: int) -> dict[str, Any]:
        """The durations of `runs` runs in ms, one by one, after `warmup` that don't count."""
        return self._time(warmup, lambda count, spent: count >= runs)

    def time_turn(self, warmup: int, duration: float) -> dict[str, Any]:
        """As `time_runs`, of as many runs as fill `duration` ms, and one at least."""
        return self._time(warmup, lambda count, spent: count > 0 and spent >= duration)

    def warm_up(self) -> dict[str, Any]:
        """Run until it gets no faster: how long the first run took in ms, and whether that came to pass in time."""
        first = self.time_run()
        return {"first_call_ms": first, "settled": settles(self._windows())}

    def answer(self, file: str) -> dict[str, Any]:
        """Save the logits [n, classes] of all images to an .npy file."""
        np.save(file, np.concatenate([np.asarray(run()) for run in self.runs]))
        return {}

    def peak_memory(self) -> dict[str, Any]:
        """The most memory that this process has had since it started, in MB."""
        return {"peak_memory": peak_memory_mb()}

    def _time(self, warmup: int, enough: Callable[[int, float], bool]) -> dict[str, Any]:
        """Samples in ms until there are `enough`, by their number and their sum."""
        for _ in range(warmup):
            self.time_run()
        samples: list[float] = []
        spent = 0.0
        gc.collect(1)  # of all that a process holds it can take longer than the turn
        gc.disable()  # a collection in the middle would be charged to one run
        while not enough(len(samples), spent):
            samples.append(self.time_run())
            spent += samples[-1]
        gc.enable()
        return {"samples": samples}

    def _windows(self) -> Iterator[float]:
        """The medians of windows of runs, in ms, until WARM_UP is over."""
        spent = 0.0
        while spent < WARM_UP:
            samples = self._time(0, lambda count, spent: count >= WINDOW_RUNS and spent >= WINDOW)["samples"]
            spent += sum(samples)
            yield statistics.median(samples)


REQUESTS: dict[str, Callable[..., dict[str, Any]]] = {
    "time_runs": Bench.time_runs,
    "time_turn": Bench.time_turn,
    "warm_up": Bench.warm_up,
    "answer": Bench.answer,
    "peak_memory": Bench.peak_memory,
}


def settles(medians: Iterator[float]) -> bool:
    """Take windows until QUIET_WINDOWS in a row are no faster than the fastest before them; False where they end."""
    best, quiet = next(medians), 0
    for median in medians:
        quiet = 0 if median < (1 - FASTER) * best else quiet + 1
        best = min(best, median)
        if quiet == QUIET_WINDOWS:
            return True
    return False


def peak_memory_mb() -> float:
    """What the system says of this process, in MB."""
    if STATUS.exists():  # what getrusage tells on Linux is at least what the parent had when it forked
        kilobytes = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(kilobytes.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def read_requests(requests: "queue.SimpleQueue[bytes]") -> None:
    """Hand on the lines of stdin, and end this process when there are no more: then the parent is gone."""
    # unbuffered: a thread that waits within sys.stdin holds its lock, and Python then aborts where it should just end
    with open(0, "rb", buffering=0) as stdin:
        for line in stdin:
            requests.put(line)
    os._exit(0)


def load_bench(path: Path, backend: str, threads: int, batch_size: int, file: str | None) -> tuple[Bench, float]:
    """The network that the arguments name, and how long it took to load it into its runtime, in ms."""
    runtime = BACKENDS[backend]
    runtime.import_modules()
    start = time.perf_counter_ns()
    network = runtime.load(path, threads)
    load_ms = (time.perf_counter_ns() - start) / 1e6
    gc.collect()
    gc.freeze()  # what was loaded stays: later collections, one before each turn, need not look through it
    shape = (batch_size, *network.input_shape)
    images = np.load(file) if file else np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return Bench([network.bind(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]), load_ms


def main() -> None:
    """Prepare the network that the arguments name, then answer requests until stdin ends."""
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=read_requests, args=(requests,), daemon=True).start()
    # What libraries print goes to stderr: stdout carries answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    path, backend, threads, batch_size, *file = sys.argv[1:]
    bench, load_ms = load_bench(Path(path), backend, int(threads), int(batch_size), file[0] if file else None)
    print(json.dumps({"load_ms": load_ms}), file=answers, flush=True)
    while True:
        request = json.loads(requests.get())
        print(json.dumps(REQUESTS[request.pop("do")](bench, **request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
