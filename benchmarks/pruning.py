"""Pruning, against Torch-Pruning 1.6.1: accuracy at once, accuracy after one epoch, latency, and the time to prune.

    pip install slimkit[bench]
    python benchmarks/pruning.py --weights resnet18_cifar100_64px.pth --data cifar100.zip

resnet18 on CIFAR-100 at 64x64 pixels, both tools at the same MACs (within 5 %), with widths that are multiples of 16.
Torch-Pruning has seven importances and three scopes for CNNs: all 21 are tried, the best three by 1,000 training images
are measured on the test images, and the best of those counts. Its BatchNorm is recalibrated on as many training images
as slimkit repairs on. slimkit's networks are those of `slimkit prune --macs F --round-to 16`, with and without
`--no-reconstruct`. The epoch of fine-tuning is the same for all, in three seeds: loop, order of the images,
augmentation, schedule; no teacher. Latencies are medians of 200 runs at batch 1, each network in a process of its own,
in turn. Accuracies at once have 95 % intervals (Wilson), those after the epoch standard deviations.

What was measured is kept in --results, so that a run that was stopped goes on where it was.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning_peer as peer
from intervals import over_seeds, with_interval
from torch import Tensor, nn

from slimkit.core.architecture import Preprocessing
from slimkit.core.compat import import_torchvision
from slimkit.core.data import CalibrationBatches, Images, ImageSet, epoch_order, evaluation_input, open_dataset
from slimkit.core.export import to_onnx
from slimkit.core.folder import Classifier, write_folder
from slimkit.core.measure.accuracy import evaluate
from slimkit.core.measure.latency import Target, measure_latencies
from slimkit.core.measure.macs import count_macs
from slimkit.core.models.describe import describe_layers
from slimkit.core.models.resolve import open_named
from slimkit.core.options import ModelOptions, PruneOptions
from slimkit.core.pruning import prune_module
from slimkit.core.pruning.repair.recalibrate import recalibrate
from slimkit.core.pruning.stage import prune_to_budget
from slimkit.core.training.loop import FitOptions, fit
from slimkit.core.training.views import Batch

POINTS = (0.7, 0.5, 0.3)  # shares of the MACs that are kept
SCREENING_IMAGES = 1000
RECALIBRATION_IMAGES = PruneOptions().reconstruction_images
SEEDS = (0, 1, 2)  # of the epoch of fine-tuning
GRADIENT_IMAGES = 512
FINALISTS = 3
LEARNING_RATE = 0.02
RUNS = 200


class Results:
    """Figures by name, written to a JSON file as they come; networks lie in a folder beside it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._figures: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        self.folder = file.with_suffix("")

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The figure of that name; measured where it isn't known yet."""
        if name not in self._figures:
            self._figures[name] = measure()
            print(f"{name}: {self._figures[name]}", flush=True)
            self._file.write_text(json.dumps(self._figures, indent=1) + "\n")
        return self._figures[name]

    def stored(self, name: str, make: Callable[[], Any]) -> Any:
        """The network or the tensors of that name; made where there are none yet."""
        file = self.folder / f"{name}.pt"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(make(), file)
        return torch.load(file, weights_only=False)  # written by this very script


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every part works with."""

    classifier: Classifier
    data: ImageSet
    results: Results

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.classifier.architecture.input_shape

    def images(self, count: int) -> CalibrationBatches:
        """The first `count` training images in a fixed random order."""
        return CalibrationBatches(self.data.train, self.data.preprocessing, count)

    @functools.cached_property
    def labelled(self) -> peer.Labelled:
        """Training images with labels, for Torch-Pruning's gradients."""
        order = epoch_order(len(self.data.train), 0, 0)[:GRADIENT_IMAGES]
        batches = self.data.train.batches(order, 64)
        return [(evaluation_input(pixels, self.data.preprocessing), labels) for pixels, labels, _ in batches]

    def accuracy(self, module: nn.Module, images: Images) -> float:
        """Top-1 %."""
        return evaluate(module, images, self.data.preprocessing, batch_size=128).top1

    @functools.cached_property
    def screening(self) -> Images:
        """Training images that nothing was calibrated on."""
        return self.data.train.subset(epoch_order(len(self.data.train), 0, 0)[-SCREENING_IMAGES:])

    def macs(self, module: nn.Module) -> float:
        """The share of the uncut network's MACs."""
        return _macs(module, self.shape) / _macs(self.classifier.module, self.shape)


def best_peer(bench: Bench, point: float) -> tuple[str, float]:
    """The name of Torch-Pruning's best network at one point, and its accuracy on the test images."""
    screened = {}
    for importance, scope in peer.settings():
        name = f"peer {point} {importance} {scope}"
        make = functools.partial(make_peer, bench, importance, scope, point)
        measure = functools.partial(screen, bench, name, make)
        screened[name] = bench.results.get(f"{name}: screening accuracy", measure)
    finalists = sorted((n for n in screened if screened[n] is not None), key=lambda n: -screened[n])[:FINALISTS]
    accuracies = {name: test_accuracy(bench, name) for name in finalists}
    return max(accuracies.items(), key=lambda item: item[1])


def screen(bench: Bench, name: str, make: Callable[[], nn.Module | None]) -> float | None:
    """Accuracy on the screening images; None where the MACs can't be reached."""
    module = bench.results.stored(name, make)
    return None if module is None else bench.accuracy(module, bench.screening)


def make_peer(bench: Bench, importance: str, scope: str, point: float) -> nn.Module | None:
    """Torch-Pruning's network with BatchNorm recalibrated; None where it can't reach the MACs."""
    module = peer.prune_to_macs(bench.classifier.module, bench.shape, importance, scope, point, bench.labelled)
    if module is not None:
        recalibrate(module, bench.images(RECALIBRATION_IMAGES))
    return module


def make_ours(bench: Bench, point: float, reconstruct: bool) -> nn.Module:
    """What `slimkit prune --macs POINT --round-to 16` makes, with all other options but that one at their defaults."""
    options = PruneOptions(macs=point, round_to=str(peer.WIDTH_STEP), reconstruct=reconstruct)
    return prune_to_budget(bench.classifier, bench.data, options).result.classifier.module


def test_accuracy(bench: Bench, name: str) -> float:
    """Of a network that was made, on the test images."""
    return float(bench.results.get(f"{name}: accuracy", lambda: bench.accuracy(load(bench, name), bench.data.test)))


def tuned_accuracies(bench: Bench, name: str) -> list[float]:
    """Of a network after one epoch on the labels, on the test images, for each of SEEDS."""
    return [
        float(
            bench.results.get(
                f"{name}: accuracy after an epoch, seed {seed}", lambda seed=seed: tune(bench, load(bench, name), seed)
            )
        )
        for seed in SEEDS
    ]


def tune(bench: Bench, module: nn.Module, seed: int) -> float:
    """One epoch of SGD; gives the accuracy on the test images."""
    options = FitOptions(
        epochs=1,
        batch_size=128,
        optimizer="sgd",
        lr=LEARNING_RATE,
        weight_decay=5e-4,
        seed=seed,
        device=torch.device("cpu"),
        progressive=False,
    )

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits, batch.labels, label_smoothing=0.1)

    fit(module, bench.data.class_names, bench.data, options, loss)
    return bench.accuracy(module, bench.data.test)


def latencies(bench: Bench, names: Sequence[str]) -> dict[str, list[float]]:
    """Median ms of the networks in torch (eager) and in ONNX Runtime."""
    targets: dict[str, list[Target]] = {"torch": [], "onnxruntime": []}
    for number, name in enumerate(names):
        module = load(bench, name)
        layers = describe_layers(module, bench.shape)
        made = Classifier(module, dataclasses.replace(bench.classifier.architecture, layers=layers))
        folder, file = (bench.results.folder / f"timed{number}{end}" for end in ("", ".onnx"))
        targets["torch"].append(Target(write_folder(made, folder, force=True).folder or folder))
        file.write_bytes(to_onnx(made))
        targets["onnxruntime"].append(Target(file))
    return {
        runtime: [latency.median for latency in measure_latencies(pair, runs=RUNS)] for runtime, pair in targets.items()
    }


def load(bench: Bench, name: str) -> nn.Module:
    """A network that was made before."""
    module: nn.Module | None = bench.results.stored(name, lambda: None)
    assert module is not None, f"{name} was not made yet"
    return module


def times_to_prune() -> list[float]:
    """Median seconds of both tools to prune torchvision's resnet50 at 0.3 by l1, without data, 224x224, in turn."""
    module = import_torchvision().models.resnet50(weights=None).eval()
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(5):
        ours.append(_seconds(lambda: prune_module(module, (3, 224, 224), rate=0.3, importance="l1")))
        theirs.append(_seconds(lambda: peer.prune(module, (3, 224, 224), "l1", "local", 0.3)))
    return [sorted(values)[2] for values in (theirs, ours)]


def report(bench: Bench) -> None:
    """Measure what isn't known yet, and print the tables."""
    rows = []
    for point in POINTS:
        theirs, accuracy = best_peer(bench, point)
        ours = {f"ours {point}": "slimkit", f"plain {point}": "slimkit --no-reconstruct"}
        for name in ours:
            make = functools.partial(make_ours, bench, point, reconstruct=name.startswith("ours"))
            bench.results.stored(name, make)
        tools = {theirs: f"Torch-Pruning, {' '.join(theirs.split()[2:])}", **ours}
        timed = bench.results.get(f"latency {point}", functools.partial(latencies, bench, list(tools)))
        for number, (name, tool) in enumerate(tools.items()):
            share = bench.results.get(f"{name}: MACs", lambda name=name: bench.macs(load(bench, name)))
            at_once = with_interval(accuracy if name == theirs else test_accuracy(bench, name), len(bench.data.test))
            tuned = over_seeds(tuned_accuracies(bench, name))
            times = f"{timed['torch'][number]:.2f} | {timed['onnxruntime'][number]:.2f}"
            rows.append(f"| {100 * share:.1f} % | {tool} | {at_once} | {tuned} | {times} |")
    print(f"\nMeasured on {date.today()}; torch {torch.__version__}, {torch.get_num_threads()} threads.\n")
    print("| MACs | tool | accuracy at once | after an epoch | torch, ms | ONNX Runtime, ms |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |", *rows, sep="\n")
    theirs_s, ours_s = bench.results.get("seconds to prune resnet50", times_to_prune)
    print(f"\nresnet50 at rate 0.3, l1, no data: Torch-Pruning {theirs_s:.2f} s, slimkit {ours_s:.2f} s.")


def _macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    return sum(count_macs(module, shape).values())


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="state dict of torchvision's resnet18, 100 classes")
    parser.add_argument("--data", required=True, help="CIFAR-100 as a folder or .zip of train/ and val/")
    parser.add_argument("--results", type=Path, default=Path("pruning_benchmark.json"))
    arguments = parser.parse_args()
    data = open_dataset(arguments.data, image_size=64, resize=64)
    options = ModelOptions(model="resnet18", weights=arguments.weights)
    classifier = open_named(options, data.class_names, Preprocessing(resize=64, crop=64))
    report(Bench(classifier, data, Results(arguments.results)))


if __name__ == "__main__":
    main()
