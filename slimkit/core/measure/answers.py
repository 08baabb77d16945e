"""What a network answered to each image of a split, and what can be said of it: intervals, calibration, differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimkit.core.files import csv_text

REAL = 0.05  # of a p-value: below, a difference is no chance
Z = 1.959964  # of a 95 % interval
BINS = 15  # of the calibration error


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers to n images."""

    labels: Tensor  # int64 [n]: the right classes, as indices of the network's own
    given: Tensor  # int64 [n]: those that were answered; -1 where a logit is NaN
    confidence: Tensor  # float32 [n]: the softmax of the class that was answered

    @property
    def right(self) -> Tensor:
        """Whether each answer is right: bool [n]."""
        return self.given == self.labels

    @property
    def unanswered(self) -> int:
        """How many images got no answer, since a logit is NaN."""
        return int((self.given < 0).sum())

    def calibration_error(self) -> float:
        """By how many points confidence and accuracy differ, on average (ECE; Guo et al. 2017, arXiv:1706.04599)."""
        bins = (self.confidence * BINS).long().clamp(0, BINS - 1)
        gaps = self.confidence.double() - self.right.double()
        return 100 * float(torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, gaps).abs().sum()) / len(gaps)

    def confusion(self, classes: int) -> Tensor:
        """How many images of each class (row) were answered by each class (column): int64 [classes, classes]."""
        answered = self.given >= 0
        places = self.labels[answered] * classes + self.given[answered]
        return torch.bincount(places, minlength=classes**2).view(classes, classes)

    def per_class_csv(self, class_names: Sequence[str]) -> str:
        """A row for each class that has images: how many, how many right, % with its interval, the worst mistake."""
        confusion = self.confusion(len(class_names))
        images = torch.bincount(self.labels, minlength=len(class_names)).tolist()
        rows: list[list[object]] = []
        for index, name in enumerate(class_names):
            if images[index] == 0:
                continue
            right = int(confusion[index, index])
            mistakes = confusion[index].clone()
            mistakes[index] = 0
            worst = int(mistakes.argmax())
            said = (class_names[worst], int(mistakes[worst])) if mistakes[worst] else ("", 0)
            low, high = wilson(right, images[index])
            share = 100 * right / images[index]
            silent = images[index] - int(confusion[index].sum())
            rows.append([name, images[index], right, f"{share:.2f}", f"{low:.2f}", f"{high:.2f}", *said, silent])
        head = ["class", "images", "right", "accuracy_%", "low_%", "high_%", "most_mistaken_for", "times", "no_answer"]
        return csv_text([head, *rows])

    def confusion_csv(self, class_names: Sequence[str]) -> str:
        """The confusion as a table: the right class in each row, what was answered in the columns."""
        confusion = self.confusion(len(class_names)).tolist()
        rows = [[name, *counts] for name, counts in zip(class_names, confusion, strict=True)]
        return csv_text([["", *class_names], *rows])


def wilson(right: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, in % (Wilson 1927)."""
    share = right / images
    centre = share + Z**2 / (2 * images)
    half = Z * math.sqrt(share * (1 - share) / images + Z**2 / (4 * images**2))
    whole = 1 + Z**2 / images
    return 100 * max(0.0, centre - half) / whole, 100 * min(whole, centre + half) / whole


@dataclass(frozen=True)
class Difference:
    """Two networks on the same images: how many one alone answers rightly."""

    lost: int  # by the model; the baseline has them right
    won: int
    p_value: float  # of McNemar's exact test: how likely so uneven a split is by chance

    @property
    def verdict(self) -> str:
        """What the p-value says, in words."""
        return "a real difference" if self.p_value < REAL else "no more than chance makes"


def compare_answers(model: Answers, baseline: Answers) -> Difference:
    """Both on the same images in the same order (McNemar 1947, by the exact binomial)."""
    lost = int((baseline.right & ~model.right).sum())
    won = int((model.right & ~baseline.right).sum())
    return Difference(lost, won, binomial_p(min(lost, won), lost + won))


def binomial_p(fewer: int, tries: int) -> float:
    """Two-sided: how likely `fewer` or less of `tries` coins fall on one side, or on the other."""
    if tries == 0:
        return 1.0
    logs = [
        math.lgamma(tries + 1) - math.lgamma(k + 1) - math.lgamma(tries - k + 1) - tries * math.log(2)
        for k in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))
