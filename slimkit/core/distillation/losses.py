"""The losses of distillation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    """alpha T^2 KL(teacher || student) at temperature T + (1 - alpha) cross-entropy (Hinton et al. 2015).

    See arXiv:1503.02531. student, teacher: logits [n, classes]; labels: [n]; gives a scalar, the mean over the images.
    """
    soft = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(student, labels)


class DistillationLoss:
    """The loss of a training step with a teacher that sees the very images that the student sees.

    The same view for both is what makes distillation work best (Beyer et al. 2022, arXiv:2106.05237).
    """

    def __init__(self, teacher: nn.Module, classes: Tensor, temperature: float, alpha: float) -> None:
        """Hold the teacher; `classes` gives the teacher's index of each class of the student."""
        self.teacher = teacher.eval()
        self.classes = classes
        self.temperature = temperature
        self.alpha = alpha

    def __call__(self, logits: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of the student's `logits` [n, classes] for `inputs` [n, 3, h, w] and `labels` [n]."""
        with torch.no_grad():
            teacher = self.teacher(inputs)
        return distillation_loss(logits, teacher.float()[:, self.classes], labels, self.temperature, self.alpha)
