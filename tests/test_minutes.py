"""A training that is given minutes: how many steps fit into them, by hand, and a short one from end to end."""

import json
from pathlib import Path

import pytest
import torch
from test_resume import Stopped, options_of, stop_after

from slimkit.core.errors import UsageError
from slimkit.core.folder import read_folder
from slimkit.core.options import TrainOptions
from slimkit.core.stages import run_train
from slimkit.core.training.minutes import Budget
from slimkit.core.training.plan import FitOptions, Plan
from slimkit.core.training.state import State


def plan_of(minutes: float, images: int, *, progressive: bool = False) -> tuple[Plan, State]:
    options = FitOptions(
        epochs=0,
        minutes=minutes,
        batch_size=10,
        optimizer="sgd",
        lr=0.1,
        weight_decay=0.0,
        seed=0,
        device=torch.device("cpu"),
        progressive=progressive,
    )
    module = torch.nn.Linear(1, 1)
    return Plan(images, 64, options), State(module, torch.optim.SGD(module.parameters()), steps=0)


@pytest.mark.parametrize(
    ("images", "steps"),
    [
        (100_000, 587),  # less than an epoch: 600 s - 2 evaluations of 6.5 s, at 1 s a step
        (1000, 561),  # 6 evaluations, one more after the training: 561 + 6 * 6.5 = 600
    ],
)
def test_as_many_steps_as_fit_between_the_evaluations(images: int, steps: int) -> None:
    plan, state = plan_of(10, images)
    budget = Budget(10, plan, held_out=100)
    budget.saw_step(1.0, 64)
    budget.saw_evaluation(6.5)
    assert budget.fitted(state) == pytest.approx(steps, abs=7)


def test_small_images_first_make_more_steps_and_are_seen_in_full_at_last() -> None:
    """Sides of 32, 48 and 64 pixels for the first 60 % of the steps, then 64: a step takes 0.25, 0.5625 or 1 s."""
    plan, state = plan_of(10, 100_000, progressive=True)
    budget = Budget(10, plan, held_out=1)
    budget.saw_step(0.25, 32)
    budget.saw_evaluation(0.0)
    steps = budget.fitted(state)
    seconds = sum({32: 0.25, 48: 0.5625, 64: 1.0}[int(plan.size(step, steps))] for step in range(steps))  # type: ignore[call-overload]
    assert seconds == pytest.approx(600, rel=0.02)
    assert plan.size(steps - 1, steps) == 64
    assert plan.rate(steps - 1, steps) < 0.001 * plan.options.lr


def test_a_slower_machine_gets_fewer_steps_and_a_small_change_none() -> None:
    plan, state = plan_of(10, 100_000)
    budget = Budget(10, plan, held_out=1)
    budget.saw_step(1.0, 64)
    budget.saw_evaluation(0.0)
    state.steps = budget.fitted(state)
    state.step, state.seconds = 100, 101.0
    assert budget.fitted(state) == 600
    state.step, state.seconds = 200, 300.0
    assert budget.fitted(state) == pytest.approx(500, abs=1)


def test_minutes_and_epochs_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--epochs and --minutes"):
        run_train(TrainOptions(epochs=1, minutes=1))


def test_a_training_of_seconds_ends_annealed_and_can_be_resumed(tmp_path: Path, image_folder: Path) -> None:
    options = options_of(image_folder, tmp_path / "short", epochs=None, minutes=0.15)
    with pytest.raises(Stopped):
        run_train(options, stop_after(20))
    detail = run_train(TrainOptions(**vars(options) | {"resume": True})).architecture.training_details[-1]
    lines = [json.loads(line) for line in (tmp_path / "short.metrics.jsonl").read_text().splitlines()]
    assert detail["minutes"] == 0.15
    assert lines[-1]["step"] == detail["steps"] >= 10
    assert detail["epochs"] == pytest.approx(detail["steps"] / 17, abs=0.001)
    assert read_folder(tmp_path / "short").module(torch.zeros(1, 3, 32, 32)).isfinite().all()
