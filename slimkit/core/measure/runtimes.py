"""How a network is run in each backend. Used in the processes that time networks alone: each loads one backend."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARCHITECTURE_FILE = "trained_pruned_architecture.json"

Batch = NDArray[np.float32]  # images [n, channels, height, width]
Run = Callable[[], Any]  # computes the network once: logits [n, classes], as an array or a tensor


@dataclass(frozen=True)
class Network:
    """A network that was loaded into its runtime."""

    input_shape: tuple[int, ...]  # [channels, height, width]
    bind: Callable[[Batch], Run]  # a batch to a run of the network on it


@dataclass(frozen=True)
class Backend:
    """A runtime, and how a model gets into it."""

    modules: tuple[str, ...]  # that are imported before the clock of the loading starts
    load: Callable[[Path, int], Network]  # a model folder or an .onnx file, and the number of threads

    def import_modules(self) -> None:
        """Import the runtime."""
        for name in self.modules:
            importlib.import_module(name)


def load_torch(folder: Path, threads: int) -> Network:
    """The eager network that `load_model` makes of the folder, by slimkit's own copy of the code in it."""
    return _of_torch(folder, threads, lambda module: module)


def load_compiled(folder: Path, threads: int) -> Network:
    """The same, compiled by torch.compile when it is first called."""
    import torch

    return _of_torch(folder, threads, lambda module: torch.compile(module, dynamic=False))


def _of_torch(folder: Path, threads: int, prepare: Callable[[Any], Any]) -> Network:
    import torch

    from slimkit.standalone.model_loader import load_model

    torch.set_num_threads(threads)
    module = prepare(load_model(folder))
    shape = json.loads((folder / ARCHITECTURE_FILE).read_text(encoding="utf-8"))["input_shape"]

    def bind(batch: Batch) -> Run:
        images = torch.from_numpy(batch).clone()  # aligned as torch's own tensors are

        def run() -> Any:
            with torch.inference_mode():
                return module(images)

        return run

    return Network(tuple(shape), bind)


def load_onnxruntime(file: Path, threads: int) -> Network:
    """The ONNX file in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    if not all(isinstance(size, int) for size in entry.shape[1:]):
        raise ValueError(f"the input {entry.name!r} of {file} has no fixed size: {entry.shape}")

    def bind(batch: Batch) -> Run:
        feed = {entry.name: batch}
        return lambda: session.run(None, feed)[0]

    return Network(tuple(entry.shape[1:]), bind)


def load_openvino(file: Path, threads: int) -> Network:
    """The ONNX file in OpenVINO on the CPU, for the least latency."""
    import openvino

    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    model = core.compile_model(core.read_model(file), "CPU", settings)
    request = model.create_infer_request()

    def bind(batch: Batch) -> Run:
        return lambda: request.infer([batch], share_inputs=True)[0]

    return Network(tuple(int(size.get_length()) for size in list(model.input(0).partial_shape)[1:]), bind)


BACKENDS = {
    "torch": Backend(("torch", "slimkit.standalone.model_loader"), load_torch),
    "compile": Backend(
        ("torch._dynamo", "torch._inductor.compile_fx", "slimkit.standalone.model_loader"), load_compiled
    ),
    "onnxruntime": Backend(("onnxruntime",), load_onnxruntime),
    "openvino": Backend(("openvino",), load_openvino),
}
