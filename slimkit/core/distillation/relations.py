"""The loss of DIST: the student's answers are to be related as the teacher's are, not to be the same numbers."""

import torch
from torch import Tensor


def relation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """1 - the correlation of the classes' probabilities within an image, and of the images' within a class.

    student, teacher: logits [n, classes]; gives a scalar, T^2 times the sum of both means (Huang et al. 2022,
    arXiv:2205.10536). It takes no labels.
    """
    ours, theirs = (torch.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    between = 1 - _correlation(ours, theirs).mean()
    within = 1 - _correlation(ours.T, theirs.T).mean()
    total: Tensor = temperature**2 * (between + within)
    return total


def _correlation(first: Tensor, second: Tensor, tiny: float = 1e-8) -> Tensor:
    """Pearson's, of each row: [rows, n] twice -> [rows]."""
    first, second = (x - x.mean(1, keepdim=True) for x in (first, second))
    correlation: Tensor = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1) + tiny)
    return correlation
