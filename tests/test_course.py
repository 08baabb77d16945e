"""The course of a training: drawn beside its result, and written for TensorBoard."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_cli_chain import write_images
from test_resume import Stopped, options_of, resume, stop_after

from slimkit.core.errors import FolderError, UsageError
from slimkit.core.stages import run_train


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"))


def test_the_course_is_drawn_beside_the_result() -> None:
    run_train(options_of(Path("images"), Path("drawn"), plot=True, epochs=2))
    with Image.open("drawn.curves.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (1100, 400))


def test_a_picture_of_the_users_own_is_not_replaced_unasked() -> None:
    Path("new.curves.png").write_bytes(b"mine")
    with pytest.raises(FolderError, match=r"new\.curves\.png exists"):
        run_train(options_of(Path("images"), Path("new"), plot=True))


def test_tensorboard_shows_each_step_once_after_an_interruption() -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = options_of(Path("images"), Path("shown"), tensorboard=True, epochs=2)
    with pytest.raises(Stopped):
        run_train(options, stop_after(34 + 11))
    resume(options)
    events = accumulator.EventAccumulator("shown.tensorboard").Reload()
    lines = [json.loads(line) for line in Path("shown.metrics.jsonl").read_text().splitlines()]
    for tag, key, kind in (
        ("loss", "loss", "learning_rate"),
        ("learning rate", "learning_rate", "learning_rate"),
        ("loss of the epoch", "loss", "held_out_accuracy"),
        ("held-out accuracy", "held_out_accuracy", "held_out_accuracy"),
    ):
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        assert shown == [(line["step"], pytest.approx(line[key], rel=1e-5)) for line in lines if kind in line]


def test_without_tensorboard_it_is_said_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        run_train(options_of(Path("nowhere"), Path("shown"), tensorboard=True))
    assert "slimkit[tensorboard]" in caught.value.hint
