"""int8 against its peers: torch.ao, ONNX Runtime's and NNCF's quantization, in the runtimes that they are made for.

    pip install slimkit[bench]
    python benchmarks/int8.py --weights resnet18_cifar100_64px.pth --data cifar100.zip

resnet18 on CIFAR-100, or what --model and --data say. Accuracy: all test images of the data, at 64x64 pixels. All
calibrate on the same 512 training images. Latency: medians of 300 runs at batch 1, at 64x64 and 224x224, each network
alone in its process, in rounds of 10 runs that go from one to the next, in three processes one after the other.
The int8 peak is that of a product of two matrices [4096, 4096].

What was measured is kept in --results, so that a run that was stopped goes on where it was; --only measures some.
Peers that are not installed here can live in another environment: --peers-python PATH.
"""

import argparse
import copy
import dataclasses
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from intervals import with_interval
from torch import Tensor, nn

from slimkit.core.data import CalibrationBatches, ImageSet, evaluation_input
from slimkit.core.export import to_onnx
from slimkit.core.folder import Classifier, read_folder, write_folder
from slimkit.core.models.resolve import open_model_and_data
from slimkit.core.options import ModelOptions, QuantizeOptions
from slimkit.core.progress import silent
from slimkit.core.quantization.stage import quantize_for
from slimkit.standalone.model import cpu_arithmetic

RUNTIMES = Path(__file__).with_name("int8_runtimes.py")
SIZES = (64, 224)
CALIBRATION_IMAGES = 512
CALIBRATION_FOR_TIMING = 32  # enough where accuracy is not measured
STARTS, ROUNDS, RUNS = 3, 10, 10  # a process can be some % faster than its twin for as long as it lives
PAUSE = 0.2  # seconds between rounds, in which the threads of the one before stop spinning
PEAK_SIZE = 4096


@dataclass(frozen=True)
class Contender:
    """A network in a runtime; `make` writes it for one input size and gives its path."""

    name: str
    kind: str  # of runtime: see int8_runtimes.py
    make: "Callable[[Bench, int], Path]"
    is_peer: bool = False  # runs in the peers' environment


class Bench:
    """The float network, the data, and a folder for what is made of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.folder: Path = arguments.results.with_suffix("")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._results: dict[str, Any] = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
        self._opened: tuple[Classifier, ImageSet] | None = None

    def open(self) -> tuple[Classifier, ImageSet]:
        """The float network and its data."""
        if self._opened is None:
            options = ModelOptions(model=self.arguments.model, weights=self.arguments.weights, **self._data_options())
            self._opened = open_model_and_data(options)
        return self._opened

    def _data_options(self) -> dict[str, Any]:
        return {"data": self.arguments.data, "image_size": SIZES[0], "resize": SIZES[0]}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The figure of that name; measured where it isn't known yet."""
        if name not in self._results:
            self._results[name] = measure()
            print(f"{name}: {self._results[name]}", file=sys.stderr, flush=True)
            self.arguments.results.write_text(json.dumps(self._results, indent=1) + "\n")
        return self._results[name]

    def known(self, name: str) -> Any:
        """The figure of that name, or None."""
        return self._results.get(name)

    def write_folder(self, name: str, **options: Any) -> Path:
        """The model folder of that name; no options: the float network's."""
        path = self.folder / name
        if not path.exists():
            classifier, data = self.open()
            if options:
                wanted = QuantizeOptions(model=self.arguments.model, calibration_images=CALIBRATION_IMAGES, **options)
                classifier = quantize_for(classifier, data, wanted, silent).classifier
            write_folder(classifier, path)
        return path

    def write_onnx(self, name: str, size: int, **options: Any) -> Path:
        """That model folder as an ONNX file for images of `size` pixels."""
        path = self.folder / f"{name}-{size}.onnx"
        if not path.exists():
            classifier = read_folder(self.write_folder(name, **options))
            architecture = dataclasses.replace(classifier.architecture, input_shape=(3, size, size))
            path.write_bytes(to_onnx(dataclasses.replace(classifier, architecture=architecture)))
        return path

    def write_peer(self, kind: str, size: int, suffix: str) -> Path:
        """What a peer makes of the float ONNX file."""
        path = self.folder / f"{kind}-peer-{size}{suffix}"
        if not path.exists():
            source = self.write_onnx("float", size)
            command = [self.python(True), str(RUNTIMES), "build", kind, str(source), str(path), str(self.images(size))]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return path

    def python(self, is_peer: bool) -> str:
        """The Python of a contender's environment."""
        return str(self.arguments.peers_python) if is_peer else sys.executable

    def images(self, size: int) -> Path:
        """The calibration images, normalized, as .npy."""
        path = self.folder / f"calibration-{size}.npy"
        if not path.exists():
            images = torch.cat(list(self.calibration()))
            if size != SIZES[0]:
                images = nn.functional.interpolate(images[:CALIBRATION_FOR_TIMING], size=(size, size))
            np.save(path, images.numpy())
        return path

    def calibration(self) -> CalibrationBatches:
        """The same images for everyone."""
        _, data = self.open()
        return CalibrationBatches(data.train, data.preprocessing, CALIBRATION_IMAGES)

    def test_images(self) -> tuple[Path, Tensor]:
        """The test images, normalized, as .npy, and their labels."""
        path, labels = self.folder / "test.npy", self.folder / "labels.pt"
        if not path.exists():
            _, data = self.open()
            everything = list(data.test.batches(torch.arange(len(data.test)), 100))
            torch.save(torch.cat([batch for _, batch, _ in everything]), labels)
            pixels = [evaluation_input(batch, data.preprocessing) for batch, _, _ in everything]
            np.save(path, torch.cat(pixels).numpy())
        return path, torch.load(labels)


def torch_ao_static(bench: Bench, size: int) -> Path:
    """torch.ao's FX static quantization, traced: the form in which it is fastest."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    def quantize(module: nn.Module, example: Tensor) -> nn.Module:
        prepared = prepare_fx(module, get_default_qconfig_mapping("x86"), (example,))
        for batch in bench.calibration():
            prepared(batch)
        converted: nn.Module = convert_fx(prepared)
        return converted

    return _torch_ao(bench, "static", quantize)


def torch_ao_dynamic(bench: Bench, size: int) -> Path:
    """torch.ao's dynamic quantization, which knows Linear only: every convolution stays in float."""
    from torch.ao.quantization import quantize_dynamic

    return _torch_ao(bench, "dynamic", lambda module, _: quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8))


def _torch_ao(bench: Bench, name: str, quantize: Callable[[nn.Module, Tensor], nn.Module]) -> Path:
    path = bench.folder / f"torch-ao-{name}.pt"
    if not path.exists():
        torch.backends.quantized.engine = "x86"
        classifier, _ = bench.open()
        example = next(iter(bench.calibration()))[:2]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(quantize(copy.deepcopy(classifier.module), example).eval(), example)
            torch.jit.save(torch.jit.freeze(traced), path)
    return path


def pt2e_static(bench: Bench, size: int) -> Path:
    """torchao's PT2E static quantization for x86, for Inductor."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    path = bench.folder / f"pt2e-{size}.pt2"
    if not path.exists():
        classifier, _ = bench.open()
        quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
        example, batch = torch.randn(2, 3, size, size), {0: torch.export.Dim("batch", min=1, max=1024)}
        exported = torch.export.export(classifier.module, (example,), dynamic_shapes=(batch,)).module()
        prepared = prepare_pt2e(exported, quantizer)
        with torch.no_grad():
            for images in bench.calibration():
                prepared(nn.functional.interpolate(images, size=(size, size)) if size != SIZES[0] else images)
        torch.export.save(torch.export.export(convert_pt2e(prepared), (example,), dynamic_shapes=(batch,)), path)
    return path


def missing(contender: Contender, bench: Bench) -> str | None:
    """Why a contender can't run here; None where it can."""
    if contender.kind == "inductor":
        if importlib.util.find_spec("torchao") is None:
            return "torchao is not installed"
        return None if shutil.which("g++") or shutil.which("clang++") else "there is no C++ compiler for Inductor"
    if contender.is_peer and contender.kind == "openvino":
        code = subprocess.run([bench.python(True), "-c", "import openvino, nncf"], capture_output=True).returncode
        return "openvino and nncf are not installed" if code else None
    return None


# weights of all 8 bits, whatever the CPU would have by default
STATIC: dict[str, Any] = {"scheme": "static", "reduce_range": False}
DYNAMIC: dict[str, Any] = {"scheme": "dynamic", "reduce_range": False}
CONTENDERS = (
    Contender("float32, torch eager", "folder", lambda bench, _: bench.write_folder("float")),
    Contender("float32, torch eager, channels-last", "channels-last", lambda bench, _: bench.write_folder("float")),
    Contender("float32, torch traced", "traced", lambda bench, _: bench.write_folder("float")),
    Contender("float32, ONNX Runtime", "onnx", lambda bench, size: bench.write_onnx("float", size)),
    Contender("slimkit static, torch eager", "folder", lambda bench, _: bench.write_folder("static", **STATIC)),
    Contender("slimkit dynamic, torch eager", "folder", lambda b, _: b.write_folder("dynamic", **DYNAMIC)),
    Contender(
        "slimkit static reduced, torch eager",
        "folder",
        lambda bench, _: bench.write_folder("reduced", **STATIC | {"reduce_range": True}),
    ),
    Contender(
        "slimkit dynamic reduced, torch eager",
        "folder",
        lambda bench, _: bench.write_folder("dynamic-reduced", **DYNAMIC | {"reduce_range": True}),
    ),
    Contender(
        "slimkit static, 4-bit weights, torch eager",
        "folder",
        lambda bench, _: bench.write_folder("four", weight_bits=4, **STATIC),
    ),
    Contender(
        "slimkit static, 4-bit weights, 1 epoch of fine-tuning, torch eager",
        "folder",
        lambda bench, _: bench.write_folder("tuned", weight_bits=4, qat_epochs=1, **STATIC),
    ),
    Contender("slimkit static, ONNX Runtime", "onnx", lambda b, size: b.write_onnx("static", size, **STATIC)),
    Contender(
        "slimkit static reduced, ONNX Runtime",
        "onnx",
        lambda b, size: b.write_onnx("reduced", size, **STATIC | {"reduce_range": True}),
    ),
    Contender("slimkit static, OpenVINO", "openvino", lambda b, size: b.write_onnx("static", size, **STATIC), True),
    Contender("PT2E, Inductor", "inductor", pt2e_static),
    Contender("torch.ao FX static, traced", "torchscript", torch_ao_static),
    Contender("torch.ao dynamic (Linear alone), traced", "torchscript", torch_ao_dynamic),
    Contender(
        "ONNX Runtime quantize_static",
        "onnx",
        lambda b, size: b.write_peer("onnx-reduced" if cpu_arithmetic().saturates else "onnx", size, ".onnx"),
        True,
    ),
    Contender("NNCF, OpenVINO", "openvino", lambda b, size: b.write_peer("openvino", size, ".xml"), True),
)


class Worker:
    """A contender in its process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._answer()

    def ask(self, **request: Any) -> list[Any]:
        """Its answer."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: list[Any] = self._answer()
        return answer

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def start(python: str, kind: str, path: Path, threads: int, size: int) -> Iterator[Worker]:
    """Start a process for one network; it ends with the context."""
    process = subprocess.Popen(
        [python, str(RUNTIMES), "serve", kind, str(path.resolve()), str(threads), str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    try:
        yield Worker(process)
    finally:
        process.kill()
        process.communicate()


def measure_accuracy(bench: Bench, contender: Contender, size: int = SIZES[0]) -> float:
    """Top-1 accuracy in % on all test images, of `size` pixels."""
    path = contender.make(bench, size)
    images, labels = bench.test_images()
    with start(bench.python(contender.is_peer), contender.kind, path, bench.arguments.threads, size) as worker:
        answers = torch.tensor(worker.ask(images=str(images.resolve())))
    return round(100 * float((answers == labels).double().mean()), 2)


def measure_latencies(bench: Bench, contenders: Sequence[Contender], size: int) -> dict[str, float]:
    """The median in ms of each, over all starts."""
    samples: list[list[float]] = [[] for _ in contenders]
    for _ in range(STARTS):
        for times, more in zip(samples, time_together(bench, contenders, size), strict=True):
            times += more
    return {c.name: round(statistics.median(s), 3) for c, s in zip(contenders, samples, strict=True)}


def time_together(bench: Bench, contenders: Sequence[Contender], size: int) -> list[list[float]]:
    """Times in ms of each in a process of its own, in alternating rounds."""
    threads = bench.arguments.threads
    samples: list[list[float]] = [[] for _ in contenders]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(start(bench.python(c.is_peer), c.kind, c.make(bench, size), threads, size))
            for c in contenders
        ]
        for _ in range(ROUNDS):  # always in the same order: back and forth, the first and the last would run twice
            for worker, times in zip(workers, samples, strict=True):
                time.sleep(PAUSE)
                times += worker.ask(runs=RUNS)
    return samples


def measure_peak(bench: Bench) -> float:
    """Multiply-adds of int8 per second, in 10^12, of a large matrix product."""
    with start(sys.executable, "peak", Path(), bench.arguments.threads, PEAK_SIZE) as worker:
        return round(PEAK_SIZE**3 / min(worker.ask(runs=5)) / 1e9, 3)


def file_size(path: Path) -> float:
    """MB of 2^20 bytes of a network's file of weights."""
    file = next(path.glob("*.pth")) if path.is_dir() else path.with_suffix(".bin") if path.suffix == ".xml" else path
    return round(file.stat().st_size / 2**20, 2)


def table(bench: Bench, contenders: Sequence[Contender]) -> str:
    """Everything as Markdown."""
    rows = ["| network | top-1 % | MB | ms at 64x64 | ms at 224x224 |", "| --- | ---: | ---: | ---: | ---: |"]
    for contender in contenders:
        times = [(bench.known(f"latency {size}") or {}).get(contender.name, "") for size in SIZES]
        accuracy = bench.known(f"accuracy {contender.name}")
        known = None if accuracy is None else with_interval(accuracy, len(bench.test_images()[1]))
        cells = [known, bench.known(f"MB {contender.name}"), *times]
        rows.append(f"| {contender.name} | " + " | ".join("" if c is None else str(c) for c in cells) + " |")
    peak = bench.known("peak")
    if peak and bench.known("latency 224"):
        macs = bench.open()[0].architecture.macs * (SIZES[1] / SIZES[0]) ** 2
        own = bench.known("latency 224")["slimkit static, torch eager"]
        share = macs / own / 1e9 / peak
        rows.append(f"\nint8 peak: {peak} x 10^12 multiply-adds/s; slimkit static reaches {share:.0%} at 224x224.")
    return "\n".join(rows)


def shared_parser(description: str | None, results: str) -> argparse.ArgumentParser:
    """The arguments of each benchmark of int8. results: where its figures are kept by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--results", type=Path, default=Path(results))
    parser.add_argument("--peers-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--threads", type=int, default=2)
    return parser


def split_runnable(bench: Bench, contenders: Sequence[Contender]) -> tuple[list[Contender], dict[str, str]]:
    """Those that can run here, and why the others can't, by name."""
    reasons = {contender.name: missing(contender, bench) for contender in contenders}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    return [contender for contender in contenders if contender.name not in left_out], left_out


def measure_each(bench: Bench, contenders: Sequence[Contender], size: int) -> None:
    """The accuracy and the file size of each, at images of `size` pixels."""
    for contender in contenders:
        bench.get(f"accuracy {contender.name}", lambda c=contender: measure_accuracy(bench, c, size))  # type: ignore[misc]
        bench.get(f"MB {contender.name}", lambda c=contender: file_size(c.make(bench, size)))  # type: ignore[misc]


def print_all(text: str, left_out: dict[str, str]) -> None:
    """A table, and what is not in it."""
    print(text)
    for name, reason in left_out.items():
        print(f"Not run: {name}: {reason}.")


def main() -> None:
    """Measure what isn't known yet, then print the table."""
    parser = shared_parser(__doc__, "runs/int8.json")
    parser.add_argument("--model", default="resnet18", help="a torchvision network's name, with --weights, or a folder")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--only", default="", help="measure only contenders whose name has this in it, and no latency")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments)
    contenders, left_out = split_runnable(bench, CONTENDERS)
    measure_each(bench, [c for c in contenders if arguments.only in c.name], SIZES[0])
    if not arguments.only:
        for size in SIZES:
            bench.get(f"latency {size}", lambda s=size: measure_latencies(bench, contenders, s))  # type: ignore[misc]
        bench.get("peak", lambda: measure_peak(bench))
    print_all(table(bench, contenders), left_out)


if __name__ == "__main__":
    main()
