"""What a student learns from: labels alone, the original recipe, and each method and optimizer of `slimkit distill`.

    python benchmarks/distillation.py --data DATA --weights CHECKPOINT [--budget params --shares 0.03] [--epochs 3]

The network of the checkpoint is cut to each share of its MACs (or parameters) by `slimkit prune`, and what is left is
trained for the same number of epochs in each way, once for each seed, on the very same views of the images, about which
the teacher is asked once. "test" is the accuracy on the test images, on which nothing was chosen; "held out" that on
held-out training images, by which each training kept its best epoch. What was measured is kept in --results, so that a
run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intervals import over_seeds, with_interval

from slimkit.core.data import label_map
from slimkit.core.folder import read_folder, recorded_accuracy
from slimkit.core.measure.accuracy import evaluate
from slimkit.core.models.resolve import open_model_and_data
from slimkit.core.options import DistillOptions, ModelOptions, PruneOptions, TrainOptions
from slimkit.core.stages import run_distill, run_prune, run_train

ORIGINAL = {"method": "kd", "optimizer": "adam", "lr": 0.001}
WAYS: dict[str, dict[str, Any]] = {  # options of a distillation
    "the default": {},
    "labels alone": ORIGINAL | {"alpha": 0.0},
    "the original recipe (kd, Adam)": ORIGINAL,
    "dkd, Adam": ORIGINAL | {"method": "dkd"},
    "dist, Adam": ORIGINAL | {"method": "dist", "temperature": 1.0},
    "standardized, Adam": ORIGINAL | {"method": "standardized", "temperature": 2.0},
    "kd, SGD": {"method": "kd", "optimizer": "sgd", "lr": 0.05, "weight_decay": 5e-4},
    "kd, AdamW": {"method": "kd", "optimizer": "adamw", "lr": 0.002, "weight_decay": 0.05},
    "kd, Muon": {"method": "kd", "optimizer": "muon", "lr": 0.004, "weight_decay": 0.05},
    "dist, Muon": {"method": "dist", "temperature": 1.0, "optimizer": "muon", "lr": 0.004, "weight_decay": 0.05},
}


def main() -> None:
    """Measure what is not known yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", type=Path, required=True, help="a state dict of torchvision's resnet18")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--budget", choices=("macs", "params"), default="macs")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.15])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--results", type=Path, default=Path("distillation.json"))
    arguments = parser.parse_args()
    bench = _Bench(arguments)
    for share in arguments.shares:
        bench.cut(share)
        for name in arguments.ways:
            for seed in range(arguments.seeds):
                bench.train(share, name, seed)
    print("\n".join(bench.table()))


class _Bench:
    """The networks, and what was measured of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._file: Path = arguments.results
        self._folder = self._file.with_suffix("")
        self._known: dict[str, dict[str, float]] = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._base = self._folder / "base"
        size = {"image_size": arguments.image_size, "resize": arguments.image_size}
        if not self._base.exists():
            options = TrainOptions(
                model="resnet18", weights=arguments.weights, data=arguments.data, epochs=0, output=self._base, **size
            )
            run_train(options)
        self._measure("the uncut network", self._base)

    def cut(self, share: float) -> None:
        """The network that all trainings of a share start from."""
        if not self._student(share).exists():
            budget = {self._arguments.budget: share}
            run_prune(PruneOptions(model=str(self._base), output=self._student(share), **budget))
        self._measure(f"{share:g}: cut", self._student(share))

    def train(self, share: float, name: str, seed: int) -> None:
        """One training."""
        key, output = f"{share:g}: {name}: {seed}", self._folder / "trained"
        if key in self._known:
            return
        epochs = self._arguments.epochs
        how = {"epochs": epochs, "views": epochs, "seed": seed, "force": True} | WAYS[name]
        student = str(self._student(share))
        run_distill(DistillOptions(model=student, teacher=str(self._base), output=output, **how))
        self._measure(key, output)

    def table(self) -> Iterator[str]:
        """In Markdown."""
        yield "| | test (%) | held out (%) |"
        yield "| --- | ---: | ---: |"
        for name in dict.fromkeys(key.rpartition(": ")[0] if key.count(": ") == 2 else key for key in self._known):
            runs = [found for key, found in self._known.items() if key == name or key.startswith(f"{name}: ")]
            tests = [run["test"] for run in runs]
            shown = over_seeds(tests) if len(runs) > 1 else with_interval(tests[0], int(runs[0]["images"]))
            yield f"| {name} | {shown} | {statistics.fmean(run['held out'] for run in runs):.2f} |"

    def _student(self, share: float) -> Path:
        return self._folder / f"{self._arguments.budget}-{share:g}"

    def _measure(self, key: str, folder: Path) -> None:
        if key in self._known:
            return
        classifier, data = read_folder(folder), open_model_and_data(ModelOptions(model=str(folder)))[1]
        classes = label_map(classifier.architecture.class_names, data.class_names)
        found = evaluate(classifier.module, data.test, data.preprocessing, label_map=classes)
        self._known[key] = {"test": found.top1, "held out": recorded_accuracy(folder), "images": found.images}
        print(f"{key}: {self._known[key]}", file=sys.stderr, flush=True)
        self._file.write_text(json.dumps(self._known, indent=1) + "\n")


if __name__ == "__main__":
    main()
