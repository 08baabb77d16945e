"""The accuracy of each class, and what was taken for what, as tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from slimkit.core.figures import new_figure, png_of
from slimkit.core.files import write_atomically
from slimkit.core.measure.answers import Answers

MOST_LABELLED = 40  # classes whose names can be read beside a picture


def write_details(answers: Answers, class_names: Sequence[str], folder: Path) -> None:
    """Write per_class.csv, confusion.csv and confusion.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "per_class.csv", answers.per_class_csv(class_names))
    write_atomically(folder / "confusion.csv", answers.confusion_csv(class_names))
    write_atomically(folder / "confusion.png", draw_confusion(answers.confusion(len(class_names)), class_names))


def draw_confusion(confusion: Tensor, class_names: Sequence[str]) -> bytes:
    """A PNG: the share of each class's images (row) that were answered by each class (column)."""
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    side = min(12.0, 4 + 0.1 * len(class_names))
    figure, axis = new_figure(figsize=(side + 1, side))
    picture = axis.imshow(100 * shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(picture, label="% of the class's images")
    axis.set_xlabel("answered")
    axis.set_ylabel("right")
    if len(class_names) <= MOST_LABELLED:
        axis.set_xticks(range(len(class_names)), class_names, rotation=90)
        axis.set_yticks(range(len(class_names)), class_names)
    return png_of(figure)
