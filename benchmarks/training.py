"""How fast slimkit's training loop is, beside (a) the loop of torchvision's reference and (b) the bare step.

resnet18 in random weights, SGD, batch 128, images at 64 pixels, all by the same threads, in turn:

- slimkit: `fit`, as `slimkit train` calls it, at full size throughout, and a whole progressive run of 5 epochs;
- (a) references/classification of torchvision: ImageFolder, a DataLoader with a worker per core, RandomResizedCrop and
  RandomHorizontalFlip of Pillow's images, float32;
- (b) forward, backward and update on one batch that is there already, in the layout and precision that slimkit takes.

Ratios are of images/s, where the first step of each turn warms up and does not count, and of images per second of
processor time, workers included: what a busy machine leaves of the former. Images are decoded before slimkit's first
turn, which holds them in memory, as a training of many epochs does.

    python benchmarks/training.py --data cifar100/ [--steps N] [--rounds N] [--threads N]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset

from slimkit.core.architecture import IMAGENET_MEAN, IMAGENET_STD
from slimkit.core.compat import import_torchvision
from slimkit.core.data import ImageSet, epoch_order, open_dataset
from slimkit.core.load import allowed_processors
from slimkit.core.options import TrainOptions
from slimkit.core.progress import Advance
from slimkit.core.training.layout import memory_format
from slimkit.core.training.loop import fit
from slimkit.core.training.precision import autocast, prefers_bfloat16
from slimkit.core.training.stage import fit_options_of
from slimkit.core.training.views import Batch

SIZE, BATCH, RATE = 64, 128, 0.1
PROGRESSIVE_EPOCHS = 5
CPU = torch.device("cpu")
BARS = (  # of slimkit's images/s: in which of its runs, over what, at least how many times
    ("slimkit", "(a) torchvision's reference", 1.9),
    ("slimkit, progressive", "(a) torchvision's reference", 2.5),
    ("slimkit", "(b) bare step", 0.85),
)


@dataclass(frozen=True)
class Speed:
    """Images per second."""

    wall: float
    processor: float


class Clock:
    """Counts images and time: by the wall from the end of the first step on, of processors from the beginning."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._images, self._first, self._end = 0, 0, 0.0
        self._processor = _processor_seconds()

    def step(self, images: int) -> None:
        """A step is done."""
        self._end = time.perf_counter()
        self._images += images
        if self._start is None:
            self._start, self._first = self._end, images

    def read(self) -> Speed:
        """All steps are done, and all workers have ended."""
        assert self._start is not None  # there was a step
        wall = (self._images - self._first) / (self._end - self._start)
        return Speed(wall, self._images / (_processor_seconds() - self._processor))

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """What `fit` tells of its steps; the time between two epochs, in which it evaluates, is left out."""
        if self._start is not None:
            self._start += time.perf_counter() - self._end
        yield lambda units, note="": self.step(units)


def _processor_seconds() -> float:
    """Of this process and of its workers that have ended."""
    return sum(os.times()[:4])


def make_network(classes: int) -> nn.Module:
    """ResNet18 with random weights, always the same."""
    torch.manual_seed(0)
    network: nn.Module = import_torchvision().models.resnet18(num_classes=classes)
    return network


def slimkit_loop(data: ImageSet, epochs: int) -> Speed:
    """A training by `fit`, progressive where it has several epochs."""
    options = TrainOptions(optimizer="sgd", lr=RATE, batch_size=BATCH, device="cpu")
    fit_options = fit_options_of(options, epochs, progressive=epochs > 1)

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return cross_entropy(logits, batch.labels)

    network, clock = make_network(len(data.class_names)), Clock()
    fit(network, data.class_names, data, fit_options, loss, clock.progress)
    return clock.read()


def reference_loop(folder: Path, images: int, classes: int) -> Speed:
    """An epoch as torchvision's references/classification/train.py has it."""
    transforms = import_torchvision().transforms
    changes = [
        transforms.RandomResizedCrop(SIZE),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    everything = import_torchvision().datasets.ImageFolder(folder, transforms.Compose(changes))
    chosen = Subset(everything, epoch_order(len(everything), 0, 0)[:images].tolist())
    loader: DataLoader[Any] = DataLoader(chosen, BATCH, shuffle=True, num_workers=len(allowed_processors()))
    network = make_network(classes).train()
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, weight_decay=1e-4)
    clock = Clock()
    for inputs, labels in loader:
        loss = cross_entropy(network(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.step(len(labels))
    return clock.read()


def bare_steps(steps: int, classes: int) -> Speed:
    """The same batch again and again."""
    network = make_network(classes).train()
    network.to(memory_format=memory_format(network))
    inputs = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=memory_format(network))
    labels, bfloat16 = torch.arange(BATCH) % classes, prefers_bfloat16(CPU)
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, nesterov=True)
    clock = Clock()
    for _ in range(steps):
        with autocast(inputs, bfloat16):
            loss = cross_entropy(network(inputs).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.step(BATCH)
    return clock.read()


def shortened(data: ImageSet, images: int) -> ImageSet:
    """So many images to learn from, decoded, and a few held out."""
    splits = {
        name: part.subset(epoch_order(len(part), 0, 0)[:count])
        for name, part, count in (("train", data.train, images), ("holdout", data.holdout, 64))
    }
    return dataclasses.replace(data, splits=splits).without_unreadable()


def show_ratios(speeds: dict[str, list[Speed]], title: str) -> None:
    """A table of Markdown: the medians over the rounds, with each."""
    print(f"\n| {title} | by images/s | by processor time | bar |\n| --- | ---: | ---: | ---: |")
    for ours, theirs, bar in BARS:
        cells = []
        for kind in ("wall", "processor"):
            pairs = zip(speeds[ours], speeds[theirs], strict=True)
            ratios = [getattr(one, kind) / getattr(other, kind) for one, other in pairs]
            cells.append(f"{statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")
        print(f"| {ours} over {theirs} | {' | '.join(cells)} | {bar} |")


def main() -> None:
    """Run all in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/ and val/<class>/")
    parser.add_argument("--steps", type=int, default=40, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(allowed_processors()))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images = given.steps * BATCH
    data = shortened(open_dataset(str(given.data), image_size=SIZE, resize=SIZE), images)
    classes = len(data.class_names)
    runs: dict[str, Callable[[], Speed]] = {
        "slimkit": lambda: slimkit_loop(data, 1),
        "(a) torchvision's reference": lambda: reference_loop(given.data / "train", images, classes),
        "(b) bare step": lambda: bare_steps(given.steps, classes),
        "slimkit, progressive": lambda: slimkit_loop(data, PROGRESSIVE_EPOCHS),
    }
    speeds: dict[str, list[Speed]] = {name: [] for name in runs}
    for turn in range(given.rounds):
        for name, run in runs.items():
            speeds[name].append(run())
            print(f"round {turn + 1}: {name}: {speeds[name][-1].wall:.1f} images/s", flush=True)
    show_ratios(speeds, f"{given.threads} threads, {given.steps} steps an epoch")


if __name__ == "__main__":
    main()
