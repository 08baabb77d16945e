"""The losses of distillation. All compare logits [n, classes] of student and teacher on the same images."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimkit.core.options import Method
from slimkit.core.training.views import Batch

NON_TARGET = 8.0  # weight of what dkd says of the wrong classes: the paper's for CIFAR-100
SMALLEST_SPREAD = 1e-7  # of logits or probabilities that are divided by it


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, method: Method = "kd"
) -> Tensor:
    """alpha * the loss of `method` at `temperature` + (1 - alpha) * cross-entropy.

    student, teacher: logits [n, classes]; labels: [n]; gives a scalar, the mean over the images.
    """
    soft = METHODS[method](student, teacher, labels, temperature)
    return alpha * soft + (1 - alpha) * F.cross_entropy(student, labels)


def divergence(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) at temperature T (Hinton et al. 2015, arXiv:1503.02531)."""
    ours, theirs = (_log_probabilities(logits, temperature) for logits in (student, teacher))
    return temperature**2 * _divergence(ours, theirs)


def decoupled_divergence(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 (KL of the right class against all others + NON_TARGET * KL among the others).

    DKD (Zhao et al. 2022, arXiv:2203.08679).
    """
    is_right = F.one_hot(labels, student.shape[1]).bool()

    def right_or_wrong(logits: Tensor) -> Tensor:
        """Log probabilities of the right class and of all others together: [n, 2]."""
        logs = _log_probabilities(logits, temperature)
        wrong = logs.masked_fill(is_right, -torch.inf).logsumexp(1)
        return torch.stack([logs[is_right], wrong], 1)

    def among_wrong(logits: Tensor) -> Tensor:
        """Log probabilities among the wrong classes: [n, classes - 1]."""
        return _log_probabilities(logits[~is_right].view(len(logits), -1), temperature)

    target = _divergence(right_or_wrong(student), right_or_wrong(teacher))
    others = _divergence(among_wrong(student), among_wrong(teacher))
    return temperature**2 * (target + NON_TARGET * others)


def relations(student: Tensor, teacher: Tensor, labels: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """T^2 (1 - correlation of an image's probabilities + 1 - that of a class's over the images), each a mean.

    DIST (Huang et al. 2022, arXiv:2205.10536).
    """
    ours, theirs = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * (2 - _correlation(ours, theirs) - _correlation(ours.T, theirs.T))


def standardized_divergence(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """`divergence` of logits whose mean is 0 and spread 1 in every image (Sun et al. 2024, arXiv:2403.01427)."""
    return divergence(_standardized(student), _standardized(teacher), labels, temperature)


METHODS: dict[Method, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "kd": divergence,
    "dkd": decoupled_divergence,
    "dist": relations,
    "standardized": standardized_divergence,
}


Teacher = Callable[[Batch], Tensor]  # gives float32 logits [n, classes of the student]


def network_as_teacher(network: nn.Module, classes: Tensor) -> Teacher:
    """A network that answers as it is asked; `classes` gives its index of each class of the student."""
    network.eval()

    @torch.no_grad()
    def answer(batch: Batch) -> Tensor:
        logits: Tensor = network(batch.seen_by_loss)
        return logits.float()[:, classes]

    return answer


class DistillationLoss:
    """The loss of a training step with a teacher that sees the very images that the student sees.

    The same view for both is what makes distillation work best (Beyer et al. 2022, arXiv:2106.05237).
    """

    def __init__(self, teacher: Teacher, temperature: float, alpha: float, method: Method = "kd") -> None:
        """Hold the teacher: a network at work, or one that has answered already."""
        self.teacher = teacher
        self.temperature, self.alpha, self.method = temperature, alpha, method

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of the student's `logits` [n, classes] for the images of `batch`."""
        teacher = self.teacher(batch)
        return distillation_loss(logits, teacher, batch.labels, self.temperature, self.alpha, self.method)


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    return F.log_softmax(logits / temperature, dim=1)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of log probabilities [n, k], the mean over the images."""
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _correlation(ours: Tensor, theirs: Tensor) -> Tensor:
    """Pearson's, of each row of two matrices; the mean over the rows."""
    ours, theirs = (rows - rows.mean(1, keepdim=True) for rows in (ours, theirs))
    return F.cosine_similarity(ours, theirs, dim=1, eps=SMALLEST_SPREAD).mean()


def _standardized(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(1, keepdim=True)
    return centred / centred.std(1, keepdim=True).clamp(min=SMALLEST_SPREAD)
