"""The training loop that `train` and `distill` share."""

import copy
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimkit.core.data import ImageSet, augment, epoch_order, label_map
from slimkit.core.device import computing
from slimkit.core.errors import ModelError
from slimkit.core.measure.accuracy import evaluate
from slimkit.core.options import Optimizer
from slimkit.core.progress import Advance, Progress, silent
from slimkit.core.sizes import Size
from slimkit.core.training.layout import memory_format
from slimkit.core.training.optimizer import make_optimizer
from slimkit.core.training.precision import autocast, precision_of
from slimkit.core.training.schedule import learning_rate, training_size
from slimkit.standalone.model_loader import sides

log = logging.getLogger("slimkit")

# logits [n, classes], inputs [n, 3, h, w] of the loss's own network, labels [n] -> scalar
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How long and how to train."""

    epochs: int
    batch_size: int
    optimizer: Optimizer
    lr: float
    weight_decay: float
    seed: int
    device: torch.device
    progressive: bool  # small images first


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    loss: float  # mean over the training images
    accuracy: float  # top-1 %, on the images held out of the training data
    precision: str  # that the forward pass was computed in


def fit(
    module: nn.Module,
    class_names: tuple[str, ...],
    data: ImageSet,
    options: FitOptions,
    loss: Loss,
    progress: Progress = silent,
    loss_data: ImageSet | None = None,
) -> tuple[Epoch, ...]:
    """Train `module` in place; it ends in eval mode with the weights of its best epoch on the held-out images.

    `class_names` are those of the module's outputs; the data's classes are found among them by name. `loss_data` are
    the same images in the preprocessing of the loss's own network, where that is another than the module's.
    Raises ModelError when the loss is no longer finite, DataError for a class that the module does not know.
    """
    classes = label_map(class_names, data.class_names)
    module.to(options.device, memory_format=memory_format(module))  # type: ignore[call-overload]  # missing in the stub
    optimizer = make_optimizer(module, options.optimizer, options.lr, options.weight_decay)
    history: list[Epoch] = []
    best: dict[str, Tensor] = {}
    for epoch in range(options.epochs):
        with (
            computing(seed=(options.seed * 1_000_003 + epoch) % 2**63),
            progress(f"epoch {epoch + 1}/{options.epochs}", len(data.train)) as advance,
        ):
            mean_loss = _train_epoch(module, data, classes, options, loss, optimizer, epoch, advance, loss_data)
        module.eval()
        held_out = evaluate(module, data.holdout, data.preprocessing, device=str(options.device), label_map=classes)
        accuracy = held_out.top1
        precision = precision_of(options.device, min(sides(_size(data, options, epoch))))
        history.append(Epoch(mean_loss, accuracy, precision))
        log.info("epoch %d/%d: loss %.3f, held-out accuracy %.2f %%", epoch + 1, options.epochs, mean_loss, accuracy)
        if accuracy >= max(e.accuracy for e in history):
            best = copy.deepcopy(module.state_dict())
    if best:
        module.load_state_dict(best)
    module.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in the stub
    module.eval()
    return tuple(history)


def _train_epoch(
    module: nn.Module,
    data: ImageSet,
    classes: Tensor,
    options: FitOptions,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    advance: Advance,
    loss_data: ImageSet | None,
) -> float:
    """One pass over the training images; gives the mean loss."""
    module.train()
    order = _whole_batches(epoch_order(len(data.train), options.seed, epoch), options.batch_size)
    batches = math.ceil(len(order) / options.batch_size)
    size = _size(data, options, epoch)
    views = _views(data, order, options, epoch, size)
    others = _views(loss_data, order, options, epoch) if loss_data else None
    total = 0.0
    for i, (inputs, labels) in enumerate(views):
        seen_by_loss = next(others)[0] if others else inputs
        rate = learning_rate(epoch * batches + i, options.epochs * batches, options.lr)
        value = _step(module, inputs, seen_by_loss, classes[labels].to(options.device), loss, optimizer, rate)
        if not math.isfinite(value):
            raise ModelError(f"The loss is {value} in epoch {epoch + 1}: training diverged.", "Give a lower --lr.")
        total += value * len(labels)
        advance(len(labels))
    return total / len(order)


def _size(data: ImageSet, options: FitOptions, epoch: int) -> Size:
    """The pixels of the images of an epoch."""
    crop = data.preprocessing.crop
    return training_size(epoch, options.epochs, crop) if options.progressive else crop


def _views(
    data: ImageSet, order: Tensor, options: FitOptions, epoch: int, size: Size | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The training images at `order`, augmented and on the device [n, channels, *size], with their labels [n]."""
    for pixels, labels, indices in data.train.batches(order, options.batch_size):
        inputs = augment(
            pixels, indices, epoch=epoch, seed=options.seed, size=size, flip=data.flip, preprocessing=data.preprocessing
        )
        yield inputs.to(options.device), labels


def _step(
    module: nn.Module,
    inputs: Tensor,
    seen_by_loss: Tensor,
    labels: Tensor,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    rate: float,
) -> float:
    """One step on one batch at the learning rate `rate`; gives the loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    inputs = inputs.contiguous(memory_format=memory_format(module))
    with autocast(inputs):
        logits = module(inputs)
    value = loss(logits.float(), seen_by_loss, labels)
    optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]  # untyped in torch
    optimizer.step()
    return value.item()


def _whole_batches(order: Tensor, batch_size: int) -> Tensor:
    """`order` without a last batch of one, which BatchNorm can't be trained on: it gets a second image."""
    return torch.cat([order, order[:1]]) if len(order) % batch_size == 1 else order
