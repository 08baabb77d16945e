"""Trainings that several processes share, as torchrun starts them: what they learn, what they write, how they end."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from conftest import small_classifier
from test_cli_chain import write_images
from test_resume import newest, same, weights
from torch import Tensor
from torch.nn.functional import cross_entropy

from slimkit.cli.app import main
from slimkit.core.data import open_dataset
from slimkit.core.folder import read_folder
from slimkit.core.options import TrainOptions
from slimkit.core.training.loop import fit
from slimkit.core.training.ranks import ALONE, Ranks, joined_ranks
from slimkit.core.training.stage import fit_options_of
from slimkit.core.training.step import take_step
from slimkit.core.training.views import Batch

SHARED = ("--data=images", "--image-size=64", "--batch-size=12", "--threads=1", "--checkpoint-minutes=0")
TRAIN = ("train", "slimresnet18", "--width=4", *SHARED, "--epochs=4", "--optimizer=sgd", "--lr=0.0001")  # 12 steps
CLOSE = 1e-3  # of the largest number in a tensor; faster steps on such small maps multiply any rounding


def start(count: int, work: Callable[[], object]) -> list[BaseProcess]:
    """`work` in so many forked processes with the environment that torchrun gives them; N.out and N.log get what the
    N-th prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def run(rank: int) -> None:
        numbers = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
        torch.set_num_threads(1)  # OpenMP's threads do not outlive a fork
        os.environ.update(address | {name: str(number) for name, number in numbers.items()})
        with Path(f"{rank}.out").open("w") as sys.stdout, Path(f"{rank}.log").open("w") as sys.stderr:
            code = work()
        os._exit(code if isinstance(code, int) else 0)

    processes = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    return processes  # type: ignore[return-value]  # a ForkProcess is one


def codes(processes: Sequence[BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def slimkit(count: int, *arguments: str) -> list[BaseProcess]:
    return start(count, lambda: main(arguments))


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two tensors of one name, in units of the largest number in them."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp(min=1e-6)) for name in one)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with images, `alone` as one process trains it, and `two` as two do."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_images(folder / "images")
        assert codes(slimkit(1, *TRAIN, "-o", "alone")) == [0]
        assert codes(slimkit(2, *TRAIN, "-o", "two", "--json")) == [0, 0], Path("0.log").read_text()
        yield folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_processes_learn_what_one_does(here: Path) -> None:
    assert furthest(weights(Path("alone")), weights(Path("two"))) < CLOSE
    one, two = (read_folder(Path(name)).architecture.training_details[-1] for name in ("alone", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=CLOSE)
    assert (two["processes"], two["batch_size"], two["steps"]) == (2, 12, one["steps"])


def test_the_first_alone_speaks(here: Path) -> None:
    assert json.loads(Path("0.out").read_text())["output"] == "two"
    assert "2 processes share each batch of 12 images" in Path("0.log").read_text()
    assert (Path("1.out").read_text(), Path("1.log").read_text()) == ("", "")


def test_a_process_that_is_killed_ends_the_rest_and_a_resumed_training_is_as_if_it_never_was(here: Path) -> None:
    arguments, checkpoints = (*TRAIN, "-o", "killed", "--resume"), Path("killed.checkpoint")
    first, second = slimkit(2, *arguments)
    while first.is_alive() and newest(checkpoints) < 2:
        time.sleep(0.005)
    second.kill()
    assert codes([first]) == [1]
    assert "Another process of this training has ended" in Path("0.log").read_text()
    assert not Path("killed").exists()
    assert codes(slimkit(2, *arguments)) == [0, 0]
    assert "going on after step" in Path("0.log").read_text()
    assert same(weights(Path("killed")), weights(Path("two")))


def test_a_signal_to_one_stops_all_and_any_number_goes_on(here: Path) -> None:
    arguments = (*TRAIN, "-o", "stopped", "--resume")
    first, second = slimkit(2, *arguments)
    while first.is_alive() and newest(Path("stopped.checkpoint")) < 2:
        time.sleep(0.005)
    os.kill(second.pid or 0, signal.SIGTERM)
    assert codes([first, second]) == [143, -signal.SIGTERM]
    assert "the training is saved after step" in Path("0.log").read_text()
    assert codes(slimkit(1, *arguments)) == [0]
    assert "The number of processes was 2: the weights will not be those" in Path("0.log").read_text()
    assert furthest(weights(Path("stopped")), weights(Path("two"))) < CLOSE


def test_minutes_are_the_same_number_of_steps_for_all(here: Path) -> None:
    arguments = ("distill", "two", "--teacher", "alone", *SHARED, "--minutes=0.05", "-o", "distilled")
    assert codes(slimkit(2, *arguments)) == [0, 0], Path("0.log").read_text()
    detail = read_folder(Path("distilled")).architecture.training_details[-1]
    course = [json.loads(line) for line in Path("distilled.metrics.jsonl").read_text().splitlines()]
    assert course[-1]["step"] == detail["steps"] > 0


def loss_of(logits: Tensor, batch: Batch) -> Tensor:
    return cross_entropy(logits, batch.labels, label_smoothing=0.1)


def step_of(ranks: Ranks, images: int) -> dict[str, Tensor]:
    """The weights of a small network after a step that `ranks` take on a batch of so many images."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(images, 3, 64, 64, generator=generator)
    labels = torch.randint(0, 3, (images,), generator=generator)
    own = ranks.share(torch.arange(images))
    seen = own if len(own) else torch.tensor([0])
    batch = Batch(inputs[seen], inputs[seen], labels[seen], seen, 0, images - len(own), counts=len(own) > 0)
    module = small_classifier().module.train()
    take_step(module, torch.optim.SGD(module.parameters(), lr=0.1), loss_of, batch, 0.1, False, ranks)
    return module.state_dict()


@pytest.mark.parametrize(("images", "count"), [(8, 2), (5, 2), (2, 3)])
def test_a_batch_may_be_shared_unequally_or_be_too_small_for_all(
    images: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def work() -> None:
        with joined_ranks("cpu", count) as ranks:
            torch.save(step_of(ranks, images), f"{ranks.rank}.pth")

    assert codes(start(count, work)) == [0] * count
    together = [torch.load(f"{rank}.pth") for rank in range(count)]
    assert all(same(each, together[0]) for each in together)
    assert furthest(step_of(ALONE, images), together[0]) < CLOSE


def test_a_loss_that_is_not_finite_in_one_takes_all_back(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image_folder.parent)

    def work() -> None:
        calls = 0

        def loss(logits: Tensor, batch: Batch) -> Tensor:
            nonlocal calls
            calls += 1
            return loss_of(logits, batch) * (float("nan") if (calls, ranks.rank) == (5, 1) else 1.0)

        with joined_ranks("cpu", 4) as ranks:
            student = small_classifier()
            data = open_dataset("images", wanted=student.architecture.preprocessing)
            options = TrainOptions(device="cpu", lr=0.001, batch_size=4)
            fit_options = fit_options_of(options, 1, progressive=False, ranks=ranks)
            trained = fit(student.module, data.class_names, data, fit_options, loss)
            torch.save(
                [[rollback.step for rollback in trained.rollbacks], student.module.state_dict()], f"{ranks.rank}"
            )

    assert codes(start(2, work)) == [0, 0], Path("1.log").read_text()
    (steps, one), (same_steps, other) = (torch.load(str(rank)) for rank in range(2))
    assert steps == same_steps == [5]
    assert same(one, other)
    assert all(value.isfinite().all() for value in one.values())


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the first of three processes that torchrun started."""
    monkeypatch.chdir(tmp_path)
    for name, number in {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, number)


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("arguments", [["prune"], ["compress"], ["env"], ["data", "check", "images"]])
def test_other_commands_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert "train and distill alone" in error
    assert "by itself" in hint


@pytest.mark.usefixtures("launched")
def test_a_batch_has_to_be_shared_equally(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "slimresnet18"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert "--batch-size 128" in error
    assert "129" in hint
