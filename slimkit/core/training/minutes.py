"""Fitting the number of steps to the minutes that a training may take."""

from __future__ import annotations

import math
from collections import deque

from slimkit.core.sizes import Size
from slimkit.core.training.plan import Plan
from slimkit.core.training.state import State
from slimkit.standalone.model_loader import sides

RECENT = 50  # steps that the pace is taken from
SAMPLES = 64  # steps ahead whose size is looked at
SLACK = 0.02  # of the steps: by less the plan is left as it is
FITTING = 0.01  # of the time: as often the plan is looked at
EVALUATION = 1 / 3  # of the time of a step on the same images: no gradients


class Budget:
    """Knows the pace of a training, and how many steps it can take in its time.

    A step takes as long as its images have pixels; an evaluation is expected at the end of each epoch, and one after
    the training.
    """

    def __init__(self, minutes: float, plan: Plan, held_out: int) -> None:
        """held_out: the images of an evaluation."""
        self.seconds = 60 * minutes
        self._plan = plan
        self._held_out = held_out
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self._evaluation: float | None = None  # seconds
        self._next_fitting = 0.0  # seconds of the training

    def saw_step(self, seconds: float, size: Size) -> None:
        """A step took so long, its data included."""
        self._recent.append((seconds, math.prod(sides(size))))

    def saw_evaluation(self, seconds: float) -> None:
        """The held-out images took so long."""
        self._evaluation = seconds

    def fitted(self, state: State) -> int:
        """The steps that the whole training should have; those planned where they are nearly right."""
        if state.seconds < self._next_fitting:
            return state.steps
        self._next_fitting = state.seconds + FITTING * self.seconds
        low, high = max(1, state.step), max(1, state.step) + 1
        while self._ahead(state, high) <= self.seconds - state.seconds:
            low, high = high, state.step + 2 * (high - state.step)
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._ahead(state, middle) <= self.seconds - state.seconds
            low, high = (middle, high) if fits else (low, middle)
        return state.steps if abs(low - state.steps) <= SLACK * low else low

    def _ahead(self, state: State, steps: int) -> float:
        """The seconds from now to the end of a training of so many steps."""
        to_come = steps - state.step
        sampled = {state.step + to_come * sample // SAMPLES for sample in range(SAMPLES)}
        pixels = sum(math.prod(sides(self._plan.size(step, steps))) for step in sampled) / len(sampled)
        evaluations = math.ceil(steps / self._plan.batches) - len(state.epochs) + 1
        return to_come * pixels * self._pace() + evaluations * self._evaluation_seconds()

    def _pace(self) -> float:
        """Seconds per pixel of an image's area, of a whole batch."""
        return sum(seconds for seconds, _ in self._recent) / sum(pixels for _, pixels in self._recent)

    def _evaluation_seconds(self) -> float:
        if self._evaluation is not None:
            return self._evaluation
        whole = math.prod(sides(self._plan.crop)) * self._pace()
        return EVALUATION * whole * self._held_out / self._plan.options.batch_size
