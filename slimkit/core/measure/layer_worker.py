"""Times single layers, alone in a process; `layer_times.py` starts it and speaks to it in JSON lines.

    layer_worker.py <runtime> <threads> <batch size>

Each line on stdin is a layer (the fields of `layer_times.TimedLayer`); the answer on stdout is its time in ms. It ends
with its stdin. An error is its traceback on stderr.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slimkit.standalone import model

WARMUP = 3
RUNS = 7
LONGEST = 0.1  # seconds of runs that are enough for one answer
GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups")

Run = Callable[[], object]


def float_run(layer: dict[str, Any], images: Tensor) -> Run:
    """Eager, as a model folder computes it; a convolution with the BatchNorm and ReLU that come with it."""
    if layer["type"] == "Linear":
        linear = nn.Linear(layer["inputs"], layer["outputs"])
        return lambda: linear(images)
    geometry = {key: layer[key] for key in GEOMETRY}
    convolution = nn.Conv2d(layer["inputs"], layer["outputs"], bias=False, **geometry)
    module = nn.Sequential(convolution, nn.BatchNorm2d(layer["outputs"]), nn.ReLU(inplace=True)).eval()
    return lambda: module(images)


def int8_run(layer: dict[str, Any], images: Tensor) -> Run:
    """Eager int8, as a model folder computes it: from codes to codes."""
    torch.backends.quantized.engine = "onednn"
    arithmetic = model.cpu_arithmetic()
    entry = {key: layer[key] for key in GEOMETRY} if layer["type"] == "Conv2d" else {}
    entry |= {"in_channels": layer["inputs"], "out_channels": layer["outputs"], "activation": "relu"}
    static = {"quantization": {"scheme": "static", "output": "uint8"}}
    quantized: Any = model.INT8_LAYERS[f"Quantized{layer['type']}"](entry | static)
    codes = model.Quantize(static)(arithmetic, images)
    return lambda: quantized(arithmetic, codes)


def onnx_run(layer: dict[str, Any], images: Tensor) -> Run:
    """ONNX Runtime in float32, with the ReLU that it fuses into a convolution."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    linear = layer["type"] == "Linear"
    shape = (layer["outputs"], layer["inputs"] // (layer["groups"] or 1), *(layer["kernel_size"] or ()))
    weight = numpy_helper.from_array(torch.rand(shape).numpy(), "weight")
    attributes: dict[str, Any] = {
        "transB" if linear else "strides": 1 if linear else layer["stride"],
        **({} if linear else {"pads": layer["padding"] * 2, "dilations": layer["dilation"], "group": layer["groups"]}),
    }
    nodes = [
        helper.make_node("Gemm" if linear else "Conv", ["input", "weight"], ["sums"], **attributes),
        helper.make_node("Relu", ["sums"], ["output"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", images.shape), ("output", [None] * images.dim()))
    ]
    graph = helper.make_graph(nodes, "layer", ends[:1], ends[1:], [weight])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    opset = [helper.make_opsetid("", 17)]
    content = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feed = {"input": images.numpy()}
    return lambda: session.run(None, feed)


RUNTIMES: dict[str, Callable[[dict[str, Any], Tensor], Run]] = {"fp32": float_run, "int8": int8_run, "onnx": onnx_run}


def time_run(run: Run) -> float:
    """The median of a few runs, in ms."""
    for _ in range(WARMUP):
        run()
    samples: list[float] = []
    while len(samples) < RUNS and (len(samples) < 3 or sum(samples) < 1000 * LONGEST):
        start = time.perf_counter_ns()
        run()
        samples.append((time.perf_counter_ns() - start) / 1e6)
    return statistics.median(samples)


def main() -> None:
    """Answer requests until stdin ends."""
    prepare, threads, batch_size = RUNTIMES[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to stderr: stdout carries answers alone
    for line in sys.stdin:
        layer = json.loads(line)
        space = () if layer["type"] == "Linear" else (layer["height"], layer["width"])
        images = torch.rand(batch_size, layer["inputs"], *space, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            print(json.dumps(time_run(prepare(layer, images))), file=answers, flush=True)


if __name__ == "__main__":
    main()
