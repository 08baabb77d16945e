"""The runtimes that `int8.py` compares: each builds its int8 network here, and runs alone in a process of its own.

    int8_runtimes.py build KIND SOURCE TARGET CALIBRATION.npy
    int8_runtimes.py serve KIND PATH THREADS SIZE

`build` quantizes by the tools of a peer: SOURCE is the float network as ONNX, TARGET what is made of it; CALIBRATION
holds normalized images, float32 [n, 3, h, w]. `serve` answers JSON lines on stdin: `{"runs": r}`
gives the times in ms of r runs at batch 1 after two that don't count; `{"images": FILE.npy}`, of normalized images,
gives the best class of each.

It imports nothing of slimkit, so that a peer that wants other versions of things can live in another environment.
"""

import contextlib
import importlib.util
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]  # images [n, 3, h, w] -> logits [n, classes]
BATCH = 50


# ---- build ----


def build_onnxruntime(source: Path, target: Path, images: np.ndarray, reduce_range: bool = False) -> None:
    """QDQ with uint8 activations and int8 weights per channel, after the shape inference and fusions it asks for.

    reduce_range: weights of 7 bits, which ONNX Runtime's documentation asks for on CPUs without VNNI.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped library
        def __init__(self) -> None:
            self._left: Iterator[np.ndarray] = iter(images.reshape(-1, 8, *images.shape[1:]))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._left, None)
            return None if batch is None else {"input": batch}

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=reduce_range,
    )


def build_onnxruntime_reduced(source: Path, target: Path, images: np.ndarray) -> None:
    """The same with weights of 7 bits."""
    build_onnxruntime(source, target, images, reduce_range=True)


def build_openvino(source: Path, target: Path, images: np.ndarray) -> None:
    """NNCF's post-training quantization with its defaults."""
    import nncf
    import openvino

    dataset = nncf.Dataset([image[None] for image in images])
    model = openvino.Core().read_model(source)
    quantized = nncf.quantize(model, dataset, subset_size=len(images))
    openvino.save_model(quantized, target)


BUILDERS = {"onnx": build_onnxruntime, "onnx-reduced": build_onnxruntime_reduced, "openvino": build_openvino}


# ---- serve ----


def run_folder(folder: Path, threads: int, size: int) -> Run:
    """A model folder, by its own code, eager."""
    return run_module(_load_folder(folder), threads)


def run_channels_last(folder: Path, threads: int, size: int) -> Run:
    """The same in channels-last memory, weights and images."""
    import torch

    run = _load_folder(folder).to(memory_format=torch.channels_last)
    return run_module(lambda x: run(x.contiguous(memory_format=torch.channels_last)), threads)


def run_traced(folder: Path, threads: int, size: int) -> Run:
    """The same as one traced call, frozen."""
    import torch

    with torch.no_grad():
        traced = torch.jit.trace(_load_folder(folder), torch.randn(1, 3, size, size))
        return run_module(torch.jit.freeze(traced.eval()), threads)


def _load_folder(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("model_loader", folder / "model_loader.py")
    assert spec is not None
    assert spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    return loader.load_model(str(folder))


def run_inductor(file: Path, threads: int, size: int) -> Run:
    """A network that PT2E quantized, compiled by Inductor."""
    import torch

    torch.set_num_threads(threads)
    with torch.no_grad():
        return run_module(torch.compile(torch.export.load(file).module()), threads)


def run_torchscript(file: Path, threads: int, size: int) -> Run:
    """A traced network of torch's."""
    import torch

    torch.backends.quantized.engine = "x86"
    return run_module(torch.jit.load(str(file)), threads)


def run_module(module: Any, threads: int) -> Run:
    """A network of torch's."""
    import torch

    torch.set_num_threads(threads)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = module(torch.from_numpy(images)).numpy()
        return logits

    return run


def run_onnxruntime(file: Path, threads: int, size: int) -> Run:
    """An ONNX file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"input": images})[0]


def run_openvino(file: Path, threads: int, size: int) -> Run:
    """An OpenVINO model, compiled for one image of that size, for the least latency."""
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    model.reshape([1, 3, size, size])
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: np.concatenate([request.infer([image[None]])[0].copy() for image in images])


def run_peak(_: Path, threads: int, size: int) -> Run:
    """A product of two int8 matrices [size, size] by oneDNN: what it reaches is taken as the CPU's peak."""
    import torch

    torch.set_num_threads(threads)
    x = torch.randint(0, 255, (size, size), dtype=torch.uint8)
    weight = torch.ops.onednn.qlinear_prepack(torch.randint(-127, 127, (size, size)).char(), None)
    scales, zeros = torch.ones(size), torch.zeros(size, dtype=torch.int8)

    def run(_: np.ndarray) -> np.ndarray:
        torch.ops.onednn.qlinear_pointwise(x, 1.0, 0, weight, scales, zeros, None, 1e-5, 0, torch.uint8, "none", [], "")
        return np.empty(0)

    return run


RUNNERS: dict[str, Callable[[Path, int, int], Run]] = {
    "folder": run_folder,
    "channels-last": run_channels_last,
    "traced": run_traced,
    "inductor": run_inductor,
    "torchscript": run_torchscript,
    "onnx": run_onnxruntime,
    "openvino": run_openvino,
    "peak": run_peak,
}


def serve(kind: str, path: Path, threads: int, size: int) -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the runtimes print goes to stderr
    run = RUNNERS[kind](path, threads, size)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    one = np.random.default_rng(0).standard_normal((1, 3, size if kind != "peak" else 1, 1), dtype=np.float32)
    one = np.ascontiguousarray(np.broadcast_to(one, (*one.shape[:3], one.shape[2])))
    for line in sys.stdin:
        request = json.loads(line)
        if "runs" in request:
            answer: list[Any] = time_runs(run, one, request["runs"])
        else:
            images = np.load(request["images"])
            parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
            answer = np.concatenate([run(part).argmax(1) for part in parts]).tolist()
        print(json.dumps(answer), file=answers, flush=True)


def time_runs(run: Run, images: np.ndarray, count: int) -> list[float]:
    """The times in ms of `count` runs, after two that don't count."""
    times = []
    for _ in range(count + 2):
        start = time.perf_counter_ns()
        run(images)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times[2:]


def main() -> None:
    """As the arguments say."""
    warnings.simplefilter("ignore")
    verb, kind, *rest = sys.argv[1:]
    if verb == "build":
        with contextlib.redirect_stdout(sys.stderr):
            BUILDERS[kind](Path(rest[0]), Path(rest[1]), np.load(rest[2]))
    else:
        serve(kind, Path(rest[0]), int(rest[1]), int(rest[2]))


if __name__ == "__main__":
    main()
