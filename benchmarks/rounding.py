"""What widths in the steps of the CPU's kernels are worth: `--round-to auto` against `none`, at equal parameters.

ResNet18 with random weights (no time depends on them), pruned at rate 0.3 (l1, every layer alike), batch 1, by the very
stages that a user runs. Each network is timed alone in a process, in alternating rounds: ONNX Runtime in float32 and
int8 (QDQ), and torch, eager, in int8 and float32.

    python benchmarks/rounding.py [--threads N] [--runs N] [--image-size PIXELS]
"""

import argparse
import datetime
import tempfile
from pathlib import Path
from typing import get_args

import torch
from PIL import Image

from slimkit.core.architecture import Architecture
from slimkit.core.environment import describe_environment
from slimkit.core.export import to_onnx
from slimkit.core.folder import read_architecture, read_folder
from slimkit.core.measure.latency import Latency, Target, measure_latencies
from slimkit.core.options import PruneOptions, QuantizeOptions
from slimkit.core.options import Target as Arithmetic
from slimkit.core.stages import run_prune, run_quantize

ROUND_TO = ("none", "auto")
RUNTIMES = {  # and what `--target` a user gives for them
    "ONNX Runtime fp32": "fp32",
    "torch fp32": "fp32",
    "ONNX Runtime int8": "int8",
    "torch int8": "int8",
}


def make_images(folder: Path, size: int) -> str:
    """A few images of noise in two classes: enough for BatchNorm and for int8 ranges."""
    noise = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        (folder / "train" / name).mkdir(parents=True)
        (folder / "val" / name).mkdir(parents=True)
        for i in range(4):
            pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=noise).numpy()
            Image.fromarray(pixels).save(folder / ("val" if i == 3 else "train") / name / f"{i}.png")
    return str(folder)


def prune(folder: Path, data: str, size: int, round_to: str, target: Arithmetic, threads: int) -> Path:
    """One pruned network, in the target's arithmetic; its ONNX form lies beside it."""
    common = {"data": data, "image_size": size, "resize": size, "threads": threads}
    how = {"importance": "l1", "scope": "local", "reconstruct": False, "calibration_images": 4}
    path = folder / f"{round_to}-{target}"
    run_prune(PruneOptions(model="resnet18", rate=0.3, round_to=round_to, target=target, output=path, **how, **common))
    if target == "int8":
        pruned, path = path, folder / f"{round_to}-int8-quantized"
        run_quantize(QuantizeOptions(model=str(pruned), output=path, calibration_images=4, **common))
    path.with_suffix(".onnx").write_bytes(to_onnx(read_folder(path)))
    return path


def widths(architecture: Architecture) -> str:
    """The different widths of each stage's layers."""
    stages: dict[str, set[int]] = {}
    for layer in architecture.layers:
        if layer.type == "Conv2d":
            stages.setdefault(layer.name.split(".")[0], set()).add(layer.out_channels or 0)
    return ", ".join("/".join(map(str, sorted(found))) for found in stages.values())


def show(networks: dict[tuple[str, str], Path], latencies: dict[tuple[str, str], Latency]) -> None:
    """A Markdown table, and what it was measured on."""
    for (round_to, target), path in networks.items():
        made = read_architecture(path)
        print(f"{round_to}, {target}: {made.parameters:,} parameters, {made.macs:,} MACs, widths {widths(made)}")
    print("\n| runtime | none (ms) | auto (ms) | gain |\n| --- | --- | --- | --- |")
    for runtime in RUNTIMES:
        none, auto = (latencies[runtime, round_to].median for round_to in ROUND_TO)
        print(f"| {runtime} | {none:.2f} | {auto:.2f} | {none / auto - 1:+.0%} |")
    cpu, latency = describe_environment()["cpu"], next(iter(latencies.values()))
    print(f"\n{datetime.date.today()}, {cpu['model']}, {latency.threads} threads, medians of {latency.runs} runs")


def main() -> None:
    """Prune for each target with and without rounding, time all networks, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=224)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), arguments.image_size
        data = make_images(folder / "images", size)
        networks = {
            (round_to, target): prune(folder, data, size, round_to, target, arguments.threads)
            for target in get_args(Arithmetic)
            for round_to in ROUND_TO
        }
        forms = {
            (runtime, round_to): networks[round_to, target].with_suffix(".onnx" if "ONNX" in runtime else "")
            for runtime, target in RUNTIMES.items()
            for round_to in ROUND_TO
        }
        timed = measure_latencies([Target(p) for p in forms.values()], runs=arguments.runs, threads=arguments.threads)
        show(networks, dict(zip(forms, timed, strict=True)))


if __name__ == "__main__":
    main()
