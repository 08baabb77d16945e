"""Training that is killed, interrupted or diverges: what is kept, what it goes on from, and what that ends in."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_classifier
from test_cli_chain import write_images
from torch import Tensor, nn

from slimkit.cli.app import main
from slimkit.core.data import open_dataset
from slimkit.core.errors import FolderError, ModelError, UsageError
from slimkit.core.folder import read_folder
from slimkit.core.options import DistillOptions, TrainOptions
from slimkit.core.progress import Advance
from slimkit.core.stages import run_distill, run_train
from slimkit.core.training.loop import fit
from slimkit.core.training.stage import fit_options_of
from slimkit.core.training.views import Batch

EPOCHS = 4  # of 17 steps each
FLAGS = ("width", "data", "image_size", "epochs", "batch_size", "threads", "output", "teacher", "checkpoint_minutes")


def options_of(images: Path, output: Path, **changed: Any) -> TrainOptions:
    values: dict[str, Any] = {"model": "slimresnet18", "width": 4, "data": str(images), "image_size": 32}
    values |= {"epochs": EPOCHS, "batch_size": 2, "threads": 1, "checkpoint_minutes": 0.0, "output": output}
    return TrainOptions(**values | changed)


def weights(folder: Path) -> dict[str, Tensor]:
    return read_folder(folder).module.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def start(command: str, options: TrainOptions | DistillOptions, log: Path) -> multiprocessing.Process:
    """The command line in a process of its own, which writes to `log`; forked, as importing torch takes seconds."""
    values = {name: value for name, value in vars(options).items() if name in FLAGS and value is not None}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]

    def run() -> None:
        with log.open("a") as sys.stdout:
            sys.stderr = sys.stdout
            code = main([command, options.model, *flags, *["--resume"] * options.resume])
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process  # type: ignore[return-value]  # a ForkProcess


def newest(folder: Path) -> int:
    return max((int(file.stem) for file in folder.glob("*.checkpoint")), default=0)


class Stopped(KeyboardInterrupt):
    """Ctrl-C, so to speak."""


def stop_after(images: int) -> Any:
    """A progress bar during which the user presses Ctrl-C, once so many images are seen in training."""
    seen = 0

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Advance]:
        def advance(units: int, note: str = "") -> None:
            nonlocal seen
            seen += units * description.startswith("epoch")
            if seen >= images:
                raise Stopped

        yield advance

    return progress


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a training that nothing interrupts, and the same one stopped in its third epoch."""
    folder = tmp_path_factory.mktemp("resume")
    write_images(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_train(options_of(Path("images"), Path("whole")))
        with pytest.raises(Stopped):
            run_train(options_of(Path("images"), Path("part")), stop_after(2 * 34 + 11))
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, to work in."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def whole(here: Path) -> dict[str, Tensor]:
    return weights(here / "whole")


@pytest.fixture
def interrupted(here: Path) -> TrainOptions:
    return options_of(Path("images"), Path("part"))


def resume(options: TrainOptions, **changed: Any) -> Path:
    return run_train(TrainOptions(**vars(options) | {"resume": True} | changed)).folder


def test_a_training_that_is_killed_again_and_again_ends_in_the_same_weights(whole: dict[str, Tensor]) -> None:
    moments, folder, log = random.Random(0), Path("killed.checkpoint"), Path("log")
    options = options_of(Path("images"), Path("killed"), resume=True)
    for _ in range(3):
        before, process = newest(folder), start("train", options, log)
        while process.is_alive() and newest(folder) == before:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not Path("killed").exists()
    process = start("train", options, log)
    process.join()
    assert process.exitcode == 0
    assert log.read_text().count("going on after step") == 3
    assert same(weights(Path("killed")), whole)
    assert not folder.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_what_was_done(here: Path, number: signal.Signals, code: int) -> None:
    shared: dict[str, Any] = {"model": "whole", "teacher": "whole", "batch_size": 2, "threads": 1, "data": "images"}
    options = DistillOptions(
        **shared, epochs=20, output=Path("distilled")
    )  # long enough for the signal to come in time
    process, course = start("distill", options, Path("log")), Path("distilled.metrics.jsonl")
    while process.is_alive() and not (course.exists() and course.read_text()):
        time.sleep(0.01)
    os.kill(process.pid or 0, number)
    process.join()
    assert process.exitcode == code
    log = Path("log").read_text()
    assert "the training is saved after step" in log
    assert "--resume" in log
    assert not Path("distilled").exists()
    run_distill(DistillOptions(**vars(options) | {"resume": True}))
    run_distill(DistillOptions(**vars(options) | {"output": Path("at once")}))
    assert same(weights(Path("distilled")), weights(Path("at once")))


def test_every_option_of_training_survives_an_interruption(here: Path) -> None:
    how: dict[str, Any] = {"ema": 0.9, "flip": "alternate", "min_crop": 0.3, "cutout": 0.2, "mixup": 0.4, "cutmix": 1.0}
    options = options_of(Path("images"), Path("at once"), optimizer="muon", **how)
    at_once = weights(run_train(options).folder)
    parted = TrainOptions(**vars(options) | {"output": Path("parted")})
    for seen in (34 + 5, 2 * 34 + 11):
        with pytest.raises(Stopped):
            run_train(TrainOptions(**vars(parted) | {"resume": True}), stop_after(seen))
    assert same(weights(resume(parted)), at_once)


def test_a_streamed_training_is_gone_on_with(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With images that can't be read, of training and held out."""
    monkeypatch.setattr("slimkit.core.data.stores.MEMORY_LIMIT", 1000)
    broken = [Path("images/train/ant/3.png"), *sorted(Path("images/train/bee").iterdir())[5:6]]
    for file in broken:
        file.write_bytes(b"no image")
    run_train(options_of(Path("images"), Path("at once"), epochs=2))
    for file in broken:
        assert caplog.text.count(f"{file} is not a readable image") == 1
    options = options_of(Path("images"), Path("parted"), epochs=2)
    with pytest.raises(Stopped):
        run_train(options, stop_after(34 + 9))
    assert same(weights(resume(options)), weights(Path("at once")))


def test_an_interrupted_epoch_is_gone_on_with(whole: dict[str, Tensor], interrupted: TrainOptions) -> None:
    assert same(weights(resume(interrupted)), whole)


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_taken(
    whole: dict[str, Tensor], interrupted: TrainOptions, caplog: pytest.LogCaptureFixture
) -> None:
    folder = interrupted.output.with_name("part.checkpoint")
    last = folder / f"{newest(folder):06d}.checkpoint"
    last.write_bytes(last.read_bytes()[:-1000])
    assert same(weights(resume(interrupted)), whole)
    assert f"{last} is damaged" in caplog.text


def test_without_any_whole_checkpoint_nothing_is_guessed(interrupted: TrainOptions) -> None:
    for file in interrupted.output.with_name("part.checkpoint").iterdir():
        file.write_bytes(b"")
    with pytest.raises(FolderError, match="damaged"):
        resume(interrupted)


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"lr": 0.5}, "--lr is 0.5"), ({"epochs": 3}, "--epochs is 3"), ({"threads": 2}, "--threads is 2")],
)
def test_other_options_are_refused_by_name(interrupted: TrainOptions, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        resume(interrupted, **changed)


def test_other_images_are_refused(interrupted: TrainOptions) -> None:
    Path("images/train/ant/0.png").rename("images/train/bee/99.png")
    with pytest.raises(UsageError, match="training images"):
        resume(interrupted)


def test_threads_are_kept_where_none_are_asked_for(whole: dict[str, Tensor], interrupted: TrainOptions) -> None:
    torch.set_num_threads(2)
    try:
        assert same(weights(resume(interrupted, threads=None)), whole)
    finally:
        torch.set_num_threads(1)


def test_an_interrupted_training_is_not_lost_unasked(interrupted: TrainOptions, whole: dict[str, Tensor]) -> None:
    with pytest.raises(FolderError, match="interrupted") as caught:
        run_train(interrupted)
    assert "--resume" in caught.value.hint
    anew = TrainOptions(**vars(interrupted) | {"force": True})
    assert same(weights(run_train(anew).folder), whole)
    assert not interrupted.output.with_name("part.checkpoint").exists()


def test_a_full_disk_leaves_the_last_checkpoint_whole(whole: dict[str, Tensor]) -> None:
    """The first checkpoint, of weights alone, finds room; the next, with the optimizer's moments, does not."""
    options = options_of(Path("images"), Path("full"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sum(t.nbytes for t in whole.values()) * 2, hard))
    try:
        with pytest.raises(FolderError, match=r"full\.checkpoint.*can't be written: File too large"):
            run_train(options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in Path("full.checkpoint").iterdir()] == ["000001.checkpoint"]
    assert same(weights(resume(options)), whole)


def test_the_course_is_written_as_lines_of_json(interrupted: TrainOptions) -> None:
    resume(interrupted)
    lines = [json.loads(line) for line in interrupted.output.with_name("part.metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "learning_rate" in line]
    assert steps == list(range(10, EPOCHS * 17 + 1, 10))
    epochs = [line for line in lines if "held_out_accuracy" in line]
    assert [line["step"] for line in epochs] == [17 * epoch for epoch in range(1, EPOCHS + 1)]
    detail = read_folder(interrupted.output).architecture.training_details[-1]
    assert [line["held_out_accuracy"] for line in epochs] == pytest.approx(detail["held_out_accuracy"], abs=1e-3)
    assert [line["loss"] for line in epochs] == pytest.approx(detail["loss"], abs=1e-3)
    assert all(line["images_per_second"] >= 0 for line in lines)


def test_a_file_of_the_users_own_is_not_taken_for_the_course(here: Path) -> None:
    Path("own.metrics.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(FolderError, match=r"own\.metrics\.jsonl"):
        run_train(options_of(Path("images"), Path("own")))


def fail_at(calls: set[int]) -> Any:
    """A loss that is not a number at these calls of it, counted from 1."""
    count = 0

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        nonlocal count
        count += 1
        value = nn.functional.cross_entropy(logits, batch.labels)
        return value * float("nan") if count in calls else value

    return loss


def train_with(loss: Any, images: Path) -> Any:
    student = small_classifier()
    data = open_dataset(str(images), wanted=student.architecture.preprocessing)
    module = nn.Sequential(student.module, nn.Linear(student.architecture.num_classes, 3))
    options = fit_options_of(TrainOptions(device="cpu", lr=0.001, batch_size=2), 2, progressive=False)
    return fit(module, data.class_names, data, options, loss), module


def test_a_loss_that_is_not_finite_is_gone_back_from(image_folder: Path) -> None:
    trained, module = train_with(fail_at({16, 30}), image_folder)
    assert [(each.step, each.loss, each.back_to) for each in trained.rollbacks] == [(16, "nan", 11), (24, "nan", 21)]
    assert len(trained.epochs) == 2
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_the_fourth_loss_that_is_not_finite_ends_it(image_folder: Path) -> None:
    with pytest.raises(ModelError, match="even at 1/8 of the rate"):
        train_with(fail_at({12, 14, 16, 18}), image_folder)
    with pytest.raises(ModelError, match="in step 1: training diverged"):
        train_with(fail_at({1}), image_folder)
