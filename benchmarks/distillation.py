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
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from int8 import Bench
from intervals import over_seeds, with_interval

from slimkit.core.data import label_map
from slimkit.core.folder import recorded_accuracy
from slimkit.core.measure.accuracy import evaluate
from slimkit.core.models.resolve import open_model_and_data
from slimkit.core.options import DistillOptions, ModelOptions, PruneOptions, TrainOptions
from slimkit.core.stages import run_distill, run_prune, run_train

Figures = dict[str, float]  # accuracies in %, and how many test images they stand on

ORIGINAL = {"method": "kd", "optimizer": "adam", "lr": 0.001}
WAYS: dict[str, dict[str, Any]] = {  # options of a distillation
    "the default (kd, Muon)": {},
    "labels alone": ORIGINAL | {"alpha": 0.0},
    "the original recipe (kd, Adam)": ORIGINAL,
    "dkd, Adam": ORIGINAL | {"method": "dkd"},
    "dist, Adam": ORIGINAL | {"method": "dist", "temperature": 1.0},
    "standardized, Adam": ORIGINAL | {"method": "standardized", "temperature": 2.0},
    "kd, SGD": {"method": "kd", "optimizer": "sgd", "lr": 0.05},
    "kd, AdamW": {"method": "kd", "optimizer": "adamw"},
    "kd, Muon at half the rate": {"lr": 0.001},
    "kd, Muon at twice the rate": {"lr": 0.004},
    "dkd, Muon": {"method": "dkd"},
    "dist, Muon": {"method": "dist", "temperature": 1.0},
    "labels alone, Muon": {"alpha": 0.0},
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
    for line in DistillationBench(parser.parse_args()).rows():
        print(line, flush=True)


class DistillationBench(Bench):
    """The networks, and what was measured of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self._base = self.folder / "base"
        if not self._base.exists():
            size = {"image_size": arguments.image_size, "resize": arguments.image_size}
            data, weights = arguments.data, arguments.weights
            run_train(TrainOptions(model="resnet18", weights=weights, data=data, epochs=0, output=self._base, **size))

    def uncut(self) -> Figures:
        """Of the teacher."""
        return self.get("the uncut network", lambda: measure(self._base))

    def cut(self, share: float) -> Figures:
        """Of the network that all trainings of a share start from."""
        student = self._student(share)
        if not student.exists():
            run_prune(PruneOptions(model=str(self._base), output=student, **{self.arguments.budget: share}))
        return self.get(f"{share:g}: cut", lambda: measure(student))

    def train(self, share: float, name: str, seed: int) -> Figures:
        """Of what one training makes of it."""
        return self.get(f"{share:g}: {name}: {seed}", lambda: self._train(share, name, seed))

    def rows(self) -> Iterator[str]:
        """The table in Markdown; each line when its figures are known."""
        arguments = self.arguments
        yield "| | test (%) | held out (%) |"
        yield "| --- | ---: | ---: |"
        yield row("the uncut network", [self.uncut()])
        for share in arguments.shares:
            yield row(f"{share:g}: cut", [self.cut(share)])
            for name in arguments.ways:
                yield row(f"{share:g}: {name}", [self.train(share, name, seed) for seed in range(arguments.seeds)])

    def _train(self, share: float, name: str, seed: int) -> Figures:
        epochs, output = self.arguments.epochs, self.folder / "trained"
        how = {"epochs": epochs, "views": epochs, "seed": seed, "force": True} | WAYS[name]
        student, teacher = str(self._student(share)), str(self._base)
        run_distill(DistillOptions(model=student, teacher=teacher, output=output, **how))
        return measure(output)

    def _student(self, share: float) -> Path:
        return self.folder / f"{self.arguments.budget}-{share:g}"


def measure(folder: Path) -> Figures:
    """Of a model folder."""
    classifier, data = open_model_and_data(ModelOptions(model=str(folder)))
    classes = label_map(classifier.architecture.class_names, data.class_names)
    found = evaluate(classifier.module, data.test, data.preprocessing, label_map=classes)
    return {"test": found.top1, "held out": recorded_accuracy(folder), "images": found.images}


def row(name: str, runs: Sequence[Figures]) -> str:
    """A line of the table: the mean over seeds, or one accuracy with its interval."""
    tests, held_out = ([run[split] for run in runs] for split in ("test", "held out"))
    shown = over_seeds(tests) if len(runs) > 1 else with_interval(tests[0], int(runs[0]["images"]))
    return f"| {name} | {shown} | {statistics.fmean(held_out):.2f} |"


if __name__ == "__main__":
    main()
