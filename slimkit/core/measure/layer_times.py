"""How long single layers take on this CPU, timed in a process of its own and kept for the next time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import onnxruntime
import torch

import slimkit
from slimkit.core.environment import describe_environment
from slimkit.core.errors import ModelError
from slimkit.core.files import cache_folder, write_atomically
from slimkit.core.measure import layer_worker
from slimkit.core.measure.processes import read_answer, worker_environment
from slimkit.core.progress import Progress, silent

Runtime = Literal["fp32", "int8", "onnx"]  # eager float32, eager int8, ONNX Runtime in float32

MACS_INSTEAD = "Give a budget in MACs instead: --macs."
PASSES = 3  # over all layers; the least of the three is kept, since whatever else computes here only adds


@dataclass(frozen=True)
class TimedLayer:
    """What the time of a layer depends on. The fields of space are None for a Linear layer."""

    type: Literal["Conv2d", "Linear"]
    inputs: int
    outputs: int
    kernel_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    padding: tuple[int, int] | None = None
    dilation: tuple[int, int] | None = None
    groups: int | None = None
    height: int | None = None  # pixels of the input
    width: int | None = None

    @property
    def key(self) -> str:
        """As it is called in the cache."""
        return " ".join(f"{name}={value}" for name, value in vars(self).items() if value is not None)


def time_layers(
    layers: Sequence[TimedLayer],
    runtime: Runtime,
    *,
    threads: int | None = None,
    batch_size: int = 1,
    progress: Progress = silent,
) -> dict[TimedLayer, float]:
    """The time of each layer in ms; `threads` None takes as many as torch uses here.

    Those that were timed before on this CPU, with these threads, this batch size and these versions come from the cache
    (`cache_folder()`/layer-times). Raises ModelError where a layer can't be run.
    """
    threads = torch.get_num_threads() if threads is None else threads
    file = _cache_file(runtime, threads, batch_size)
    known = _read(file)
    missing = [layer for layer in dict.fromkeys(layers) if layer.key not in known]
    if missing:
        known |= _measure(missing, runtime, threads, batch_size, progress)
        write_atomically(file, json.dumps(known, indent=0))
    return {layer: known[layer.key] for layer in layers}


def _cache_file(runtime: Runtime, threads: int, batch_size: int) -> Path:
    """The file for what the times depend on beside the layer; its name is readable, and tells all apart."""
    cpu = describe_environment()["cpu"]
    version = onnxruntime.__version__ if runtime == "onnx" else torch.__version__
    depends_on = [slimkit.__version__, version, cpu["model"], cpu["instruction_sets"], cpu["torch_capability"]]
    digest = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:12]
    return cache_folder() / "layer-times" / f"{runtime}-{threads}-threads-batch-{batch_size}-{digest}.json"


def _read(file: Path) -> dict[str, float]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a broken cache is made anew
        return {}
    return known if isinstance(known, dict) else {}


def _measure(
    layers: Sequence[TimedLayer], runtime: Runtime, threads: int, batch_size: int, progress: Progress
) -> dict[str, float]:
    """The least of PASSES timings of each layer, by its key."""
    times = {layer.key: float("inf") for layer in layers}
    with _worker(runtime, threads, batch_size) as ask, progress("time layers", PASSES * len(layers)) as advance:
        for _ in range(PASSES):
            for layer in layers:
                times[layer.key] = min(times[layer.key], ask(layer))
                advance(1)
    return times


@contextmanager
def _worker(runtime: Runtime, threads: int, batch_size: int) -> Iterator[Any]:
    """A process that times the layers it is asked for; it is killed on the way out, whatever the way."""
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, layer_worker.__file__, runtime, str(threads), str(batch_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=worker_environment(threads),
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends it
        )
        try:
            yield lambda layer: _ask(process, stderr, layer)
        finally:
            process.kill()
            process.communicate()  # closes the pipes and reaps it


def _ask(process: subprocess.Popen[str], stderr: IO[bytes], layer: TimedLayer) -> float:
    assert process.stdin is not None  # pipes, by construction
    line = ""
    if process.poll() is None:
        print(json.dumps(dataclasses.asdict(layer)), file=process.stdin, flush=True)
        try:
            line = read_answer(process)
        except TimeoutError as error:
            raise ModelError(f"A layer can't be timed ({layer.key}): {error}.", MACS_INSTEAD) from None
    if line:
        return float(line)
    process.wait()
    stderr.seek(0)
    reason = stderr.read().decode(errors="replace").strip().splitlines()[-1:] or ["its process ended"]
    raise ModelError(f"A layer can't be timed ({layer.key}): {reason[0]}", MACS_INSTEAD)
