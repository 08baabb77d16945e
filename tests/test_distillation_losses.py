"""Each loss of distillation by its definition, computed another way."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from torch import Tensor
from torch.nn.functional import softmax

from slimkit.core.distillation.losses import NON_TARGET, distillation_loss
from slimkit.core.options import Method

LABELS = torch.tensor([1, 0, 2])


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def probabilities(values: Tensor, temperature: float) -> np.ndarray:
    return softmax(values.double() / temperature, dim=1).numpy()


@pytest.mark.parametrize("method", get_args(Method))
def test_equal_logits_leave_nothing_to_distil(method: Method) -> None:
    loss = distillation_loss(logits(0), logits(0), LABELS, temperature=4.0, alpha=1.0, method=method)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("method", get_args(Method))
def test_a_step_against_the_gradient_brings_the_student_nearer(method: Method) -> None:
    student = logits(1).requires_grad_()
    loss = distillation_loss(student, logits(0), LABELS, temperature=2.0, alpha=1.0, method=method)
    (gradient,) = torch.autograd.grad(loss, student)
    nearer = distillation_loss(student - 1e-3 * gradient, logits(0), LABELS, 2.0, 1.0, method)
    assert 0 < nearer.item() < loss.item()


def test_divergence_and_cross_entropy() -> None:
    soft = rel_entr(probabilities(logits(0), 2.0), probabilities(logits(1), 2.0)).sum(1).mean()
    right = [math.log(probabilities(logits(1), 1.0)[image, label]) for image, label in enumerate(LABELS)]
    loss = distillation_loss(logits(1), logits(0), LABELS, temperature=2.0, alpha=0.7)
    assert loss.item() == pytest.approx(0.7 * 4.0 * soft - 0.3 * np.mean(right), rel=1e-5)


def test_decoupled_divergence() -> None:
    expected = 0.0
    pairs = zip(probabilities(logits(0), 2.0), probabilities(logits(1), 2.0), LABELS.tolist(), strict=True)
    for teacher, student, label in pairs:
        target = rel_entr([teacher[label], 1 - teacher[label]], [student[label], 1 - student[label]]).sum()
        others = [np.delete(p, label) / (1 - p[label]) for p in (teacher, student)]
        expected += 4.0 * (target + NON_TARGET * rel_entr(*others).sum()) / 3
    loss = distillation_loss(logits(1), logits(0), LABELS, temperature=2.0, alpha=1.0, method="dkd")
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_relations_are_correlations_within_images_and_within_classes() -> None:
    teacher, student = probabilities(logits(0), 2.0), probabilities(logits(1), 2.0)
    images = np.mean([np.corrcoef(teacher[i], student[i])[0, 1] for i in range(3)])
    classes = np.mean([np.corrcoef(teacher[:, i], student[:, i])[0, 1] for i in range(4)])
    loss = distillation_loss(logits(1), logits(0), LABELS, temperature=2.0, alpha=1.0, method="dist")
    assert loss.item() == pytest.approx(4.0 * (2 - images - classes), rel=1e-5)


def test_standardized_logits_have_no_scale_and_no_shift_to_learn() -> None:
    method: Method = "standardized"
    plain = distillation_loss(logits(1), logits(0), LABELS, 2.0, 1.0, method)
    scaled = distillation_loss(5 * logits(1) + 7, 0.1 * logits(0) - 3, LABELS, 2.0, 1.0, method)
    assert scaled.item() == pytest.approx(plain.item(), rel=1e-4)
