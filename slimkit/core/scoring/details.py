"""The accuracy of each class, and what was taken for what, as tables and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from slimkit.core.figures import new_figure, png_of
from slimkit.core.files import write_atomically
from slimkit.core.measure.answers import Answers

MOST_SQUARES = 250  # a side
MOST_LABELLED = 40  # classes whose names can be read beside a picture


def write_details(answers: Answers, class_names: Sequence[str], folder: Path) -> None:
    """Write per_class.csv, confusion.csv and confusion.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "per_class.csv", answers.per_class_csv(class_names))
    write_atomically(folder / "confusion.csv", answers.confusion_csv(class_names))
    write_atomically(folder / "confusion.png", draw_confusion(answers.confusion(len(class_names)), class_names))


def draw_confusion(confusion: Tensor, class_names: Sequence[str]) -> bytes:
    """A PNG: the share of each class's images (row) that were answered by each class (column).

    Of many classes neighbours share a square, so that a square can be seen.
    """
    from matplotlib.colors import PowerNorm

    count = len(class_names)
    block = math.ceil(count / MOST_SQUARES)
    counts = in_blocks(confusion, block).double()
    shares = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(12.0, 4 + 0.1 * count)
    figure, axis = new_figure(figsize=(side + 1, side))
    edges = (-0.5, block * len(shares) - 0.5)
    norm = PowerNorm(0.5, 0, 100)  # a few per cent are pale, but there
    picture = axis.imshow(shares.numpy(), cmap="Blues", norm=norm, extent=(*edges, *reversed(edges)))
    together = f"{block} neighbouring classes" if block > 1 else "the class"
    figure.colorbar(picture, label=f"% of the images of {together}", fraction=0.046)
    axis.set_xlabel("answered")
    axis.set_ylabel("right")
    if count <= MOST_LABELLED:
        axis.set_xticks(range(count), class_names, rotation=90)
        axis.set_yticks(range(count), class_names)
    return png_of(figure)


def in_blocks(confusion: Tensor, block: int) -> Tensor:
    """The counts [n, n] with so many neighbours summed on both sides: [ceil(n / block)] * 2."""
    rest = -len(confusion) % block
    padded = torch.nn.functional.pad(confusion, (0, rest, 0, rest))
    squares = len(padded) // block
    return padded.view(squares, block, squares, block).sum((1, 3))
