"""The training loop that `train` and `distill` share."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from slimkit.core.data import ImageSet, label_map
from slimkit.core.device import computing
from slimkit.core.measure.accuracy import evaluate
from slimkit.core.progress import Advance, Progress, silent
from slimkit.core.sizes import Size
from slimkit.core.training.average import Average
from slimkit.core.training.files import TrainingFiles
from slimkit.core.training.interrupts import interrupted_together, uninterrupted
from slimkit.core.training.keeper import Keeper
from slimkit.core.training.layout import memory_format
from slimkit.core.training.metrics import Metrics
from slimkit.core.training.minutes import Budget
from slimkit.core.training.optimizer import make_optimizer
from slimkit.core.training.plan import FitOptions, Plan
from slimkit.core.training.precision import precision_of
from slimkit.core.training.state import Epoch, Rollback, State
from slimkit.core.training.step import Loss, take_step
from slimkit.core.training.views import Batch, Views
from slimkit.standalone.model_loader import sides

__all__ = ["Epoch", "FitOptions", "Loss", "Trained", "fit"]

log = logging.getLogger("slimkit")

TRIALS = 4  # steps that the pace is measured in before the first; the first of them warms up
TRIAL_SHARE = 0.1  # of the minutes, at most
RANKS_APART = 2**40  # seeds; a rank uses one a step


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    epochs: tuple[Epoch, ...]
    rollbacks: tuple[Rollback, ...]
    steps: int
    batches: int  # steps of a whole epoch
    threads: int
    seconds: float  # the opening of its data and the evaluations included


def fit(
    module: nn.Module,
    class_names: tuple[str, ...],
    data: ImageSet,
    options: FitOptions,
    loss: Loss,
    progress: Progress = silent,
    loss_data: ImageSet | None = None,
    files: TrainingFiles | None = None,
) -> Trained:
    """Train `module` in place; it ends in eval mode with the weights of its best epoch on the held-out images.

    `class_names` are those of the module's outputs; the data's classes are found among them by name. `loss_data` are
    the same images in the preprocessing of the loss's own network, where that is another than the module's. With
    `files` the training is kept there, and goes on from there if they say so.
    With `options.ema` the averaged weights are evaluated and kept.
    Raises ModelError where the loss is not finite again and again, DataError for a class that the module does not know.
    """
    classes, ranks = label_map(class_names, data.class_names), options.ranks
    ranks.level(module)
    module.to(options.device, memory_format=memory_format(module))  # type: ignore[call-overload]  # missing in the stub
    plan = Plan(len(data.train), data.preprocessing.crop, options)
    optimizer = make_optimizer(module, options.optimizer, options.lr, options.weight_decay)
    state = State(module, optimizer, plan.steps, Average(module, options.ema) if options.ema else None)
    keeper = Keeper(files, ranks)
    keeper.start(state, options.device)
    training = _Training(
        state, plan, Views(data, loss_data, classes, len(class_names), options), loss, keeper, files, progress
    )
    module.train()
    with computing(keeper.choices.threads), keeper.saving(state):
        training.run()
    if state.best:
        module.load_state_dict(state.best)
    module.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in the stub
    module.eval()
    return Trained(state.epochs, state.rollbacks, state.steps, plan.batches, keeper.choices.threads, state.seconds)


class _Training:
    """A training on its way."""

    def __init__(
        self,
        state: State,
        plan: Plan,
        views: Views,
        loss: Loss,
        keeper: Keeper,
        files: TrainingFiles | None,
        progress: Progress,
    ) -> None:
        self._state, self._plan, self._views, self._loss = state, plan, views, loss
        self._keeper, self._progress = keeper, progress
        self._options, self._ranks, self._data = plan.options, plan.options.ranks, views.data
        begun = files.begun if files else time.monotonic()
        self._begun = begun - state.seconds  # as if it had never been interrupted
        kept = files if state.steps or plan.options.minutes else None
        self._metrics = Metrics(kept.metrics if kept else None, state.step, kept.board if kept else None)
        minutes = plan.options.minutes
        self._budget = Budget(minutes, plan, len(self._data.holdout)) if minutes else None

    def run(self) -> None:
        """Take all steps that are left."""
        with interrupted_together(self._ranks) as obey_signals:
            if self._budget and self._state.step == 0:
                self._measure_pace(self._budget)
            while len(self._state.epochs) < self._epochs():
                if self._train_epoch(obey_signals):
                    self._close_epoch()
        self._keeper.finish(self._state)

    def _epochs(self) -> int:
        """As many as all steps make, the last one perhaps cut short."""
        return math.ceil(self._state.steps / self._plan.batches)

    def _measure_pace(self, budget: Budget) -> None:
        """Take a few steps, fit the number of all steps to the time that they took, and take them back."""
        state, start = self._state, time.monotonic()
        before = state.snapshot()
        state.steps = self._plan.batches
        for trial, batch in enumerate(itertools.islice(self._batches(), TRIALS)):
            size = self._size()
            self._learn_from(batch)
            now = time.monotonic()
            if trial or self._plan.batches == 1:  # the first warms up
                budget.saw_step(now - start, size)
            start = now
            if self._ranks.highest(trial > 0 and now - self._begun > TRIAL_SHARE * budget.seconds):
                break
        state.restore(before)
        self._fit_steps(budget)
        epochs = state.steps / self._plan.batches
        log.info("%g minutes are time for %d steps: %.3g epochs", self._options.minutes, state.steps, epochs)

    def _fit_steps(self, budget: Budget) -> None:
        self._state.seconds = time.monotonic() - self._begun
        self._state.steps = self._ranks.from_first(lambda: budget.fitted(self._state))

    def _train_epoch(self, obey_signals: Callable[[], None]) -> bool:
        """Take the steps of the epoch that are left; False where a loss was not finite and training went back."""
        state, start = self._state, time.monotonic()
        with self._bar() as advance:
            for batch in self._batches():
                self._keeper.before_step(state, first_of_epoch=state.images == 0)
                size, rate, images = self._size(), self._rate(), batch.images
                with uninterrupted():
                    value = self._learn_from(batch)
                    if not math.isfinite(value):
                        self._keeper.roll_back(state, value)
                        self._metrics.rollback(state)
                        return False
                    state.count(value, images)
                self._keeper.after_step()
                self._metrics.step(state, value, rate, images)
                advance(images, f"loss {value:.3f}, {self._metrics.images_per_second:.0f} images/s")
                seconds, start = time.monotonic() - start, time.monotonic()
                self._after_step(seconds, size)
                obey_signals()
        return True

    def _after_step(self, seconds: float, size: Size) -> None:
        self._state.seconds = time.monotonic() - self._begun
        if self._budget:
            self._budget.saw_step(seconds, size)
            self._fit_steps(self._budget)

    def _batches(self) -> Iterator[Batch]:
        """What is left of the epoch."""
        state, epoch = self._state, len(self._state.epochs)
        order = self._plan.order(epoch, state.step - epoch * self._plan.batches)
        batches = self._views.batches(epoch, order, self._size)
        while state.step < state.steps and (batch := next(batches, None)):
            yield batch

    def _learn_from(self, batch: Batch) -> float:
        """Take a step; gives its loss. What is random in it, such as dropout, hangs on seed, step and rank alone."""
        state = self._state
        torch.manual_seed((self._options.seed * 1_000_003 + state.step + self._ranks.rank * RANKS_APART) % 2**63)
        bfloat16 = self._keeper.choices.bfloat16
        return take_step(state.module, state.optimizer, self._loss, batch, self._rate(), bfloat16, self._ranks)

    def _rate(self) -> float:
        return self._plan.rate(self._state.step, self._state.steps) * 0.5 ** len(self._state.rollbacks)

    def _size(self) -> Size:
        return self._plan.size(self._state.step, self._state.steps)

    def _bar(self) -> AbstractContextManager[Advance]:
        """Of the images that this epoch is still to see."""
        epoch = len(self._state.epochs)
        end = min(self._state.steps, (epoch + 1) * self._plan.batches)
        images = len(self._plan.order(epoch, self._state.step - epoch * self._plan.batches))
        left = min(images, (end - self._state.step) * self._options.batch_size)
        return self._progress(f"epoch {epoch + 1}/{self._epochs()}", left)

    def _close_epoch(self) -> None:
        """Measure the epoch that is over on the held-out images."""
        state, start = self._state, time.monotonic()
        precision = precision_of(
            self._keeper.choices.bfloat16, min(sides(self._plan.size(state.step - 1, state.steps)))
        )
        accuracy = self._held_out_accuracy()
        if self._budget:
            self._budget.saw_evaluation(time.monotonic() - start)
        with uninterrupted():
            state.close_epoch(accuracy, precision)
        self._metrics.epoch(state)
        state.seconds = time.monotonic() - self._begun
        done = len(state.epochs), self._epochs(), state.epochs[-1].loss, accuracy
        log.info("epoch %d/%d: loss %.3f, held-out accuracy %.2f %%", *done)

    def _held_out_accuracy(self) -> float:
        """Top-1 %, on all held-out images; each rank looks at its part of them."""
        data, device, images = self._data, str(self._options.device), len(self._data.holdout)
        own = data.holdout.subset(self._ranks.share(torch.arange(images)))
        classes = self._views.classes
        correct = (
            evaluate(self._state.evaluated, own, data.preprocessing, device=device, label_map=classes).correct
            if len(own)
            else 0
        )
        return 100 * self._ranks.total(correct) / images
