"""Times one network, alone in a process; `latency.py` starts it and speaks to it in JSON lines over stdin and stdout.

    worker.py <model folder or .onnx file> <threads> <batch size>

It first answers ``{"ready": ...}``, then each ``{"warmup": w, "runs": r}`` with ``{"samples": [r times in ms]}``. It
ends with its stdin, even in the middle of a run, so that it never outlives its parent. An error is its traceback on
stderr.

A model folder is run by slimkit's own copy of the code that stands in it: the folder may be a stranger's.
"""

import gc
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ARCHITECTURE_FILE = "trained_pruned_architecture.json"

Run = Callable[[], object]  # computes the network once


def prepare_folder(folder: Path, threads: int, batch_size: int) -> Run:
    """A run of the eager network that `load_model` makes of the folder, on a fixed random batch."""
    import torch

    from slimkit.standalone.model_loader import load_model

    torch.set_num_threads(threads)
    shape = json.loads((folder / ARCHITECTURE_FILE).read_text(encoding="utf-8"))["input_shape"]
    module = load_model(folder)
    images = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))

    def run() -> object:
        with torch.inference_mode():
            return module(images)

    return run


def prepare_onnx(file: Path, threads: int, batch_size: int) -> Run:
    """A run of the ONNX file in ONNX Runtime on the CPU, on a fixed random batch."""
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    if not all(isinstance(size, int) for size in entry.shape[1:]):
        raise ValueError(f"the input {entry.name!r} of {file} has no fixed size: {entry.shape}")
    shape = (batch_size, *entry.shape[1:])
    feed = {entry.name: numpy.random.default_rng(0).standard_normal(shape, dtype=numpy.float32)}
    return lambda: session.run(None, feed)


def time_runs(run: Run, warmup: int, runs: int) -> list[float]:
    """The durations in ms of `runs` runs, one by one, after `warmup` that don't count."""
    for _ in range(warmup):
        run()
    samples = []
    gc.collect()
    gc.disable()  # a collection in the middle would be charged to one run
    for _ in range(runs):
        start = time.perf_counter_ns()
        run()
        samples.append((time.perf_counter_ns() - start) / 1e6)
    gc.enable()
    return samples


def read_requests(requests: "queue.SimpleQueue[bytes]") -> None:
    """Hand on the lines of stdin, and end this process when there are no more: then the parent is gone."""
    # unbuffered: a thread that waits within sys.stdin holds its lock, and Python then aborts where it should just end
    with open(0, "rb", buffering=0) as stdin:
        for line in stdin:
            requests.put(line)
    os._exit(0)


def main() -> None:
    """Prepare the network that the arguments name, then answer requests until stdin ends."""
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=read_requests, args=(requests,), daemon=True).start()
    # What libraries print goes to stderr: stdout carries answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    path, threads, batch_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    prepare = prepare_onnx if path.suffix == ".onnx" else prepare_folder
    run = prepare(path, threads, batch_size)
    print(json.dumps({"ready": str(path)}), file=answers, flush=True)
    while True:
        request = json.loads(requests.get())
        samples = time_runs(run, request["warmup"], request["runs"])
        print(json.dumps({"samples": samples}), file=answers, flush=True)


if __name__ == "__main__":
    main()
