"""Training and distillation: what is learned, and what the numbers in between are."""

import math
from pathlib import Path

import pytest
import torch

from slimkit.core.errors import DataError, ModelError, UsageError
from slimkit.core.folder import read_folder
from slimkit.core.options import DistillOptions, TrainOptions
from slimkit.core.stages import run_distill, run_train
from slimkit.core.training.layout import memory_format
from slimkit.core.training.precision import SMALLEST_SAFE, precision_of, prefers_bfloat16
from slimkit.core.training.schedule import learning_rate, training_size


def _train(root: Path, images: Path, **options: object) -> Path:
    values = {"model": "slimresnet18", "width": 8, "data": str(images), "image_size": 32, "epochs": 8, "batch_size": 8}
    return run_train(TrainOptions(**values | {"output": root / "train"} | options)).folder  # type: ignore[arg-type]


def test_a_network_learns_what_is_plain_to_see(tmp_path: Path, image_folder: Path) -> None:
    """The weights of the best epoch are kept, so it counts, whichever it is on this CPU."""
    folder = _train(tmp_path, image_folder, epochs=12)
    details = read_folder(folder).architecture.training_details
    assert [detail["stage"] for detail in details] == ["train"]
    assert max(details[0]["held_out_accuracy"]) == 100.0
    assert len(details[0]["held_out_accuracy"]) == 12
    small, full = SMALLEST_SAFE - 1, 32  # the last epoch has images of 32 pixels
    assert details[0]["precision"][-1] == precision_of(prefers_bfloat16(torch.device("cpu")), full)
    assert precision_of(True, small) == "float32"


@pytest.mark.parametrize("channels", [1, 2, 5, 7, 8, 15, 16])
def test_a_narrow_network_is_trained_by_its_true_gradient(channels: int) -> None:
    """A strided 1x1 convolution, whose gradient oneDNN gets wrong in some layouts, by the formula in float64."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(channels, 12, 1, stride=2, bias=False)
    layer = layer.to(memory_format=memory_format(layer))
    images = torch.randn(8, channels, 16, 16).contiguous(memory_format=memory_format(layer))
    outputs = layer(images)
    slope = torch.randn_like(outputs)
    outputs.backward(slope)
    expected = torch.einsum("nohw,nihw->oi", slope.double(), images.double()[:, :, ::2, ::2])
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad[:, :, 0, 0].double(), expected, rtol=1e-4, atol=1e-3)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path, image_folder: Path) -> None:
    states = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        folder = _train(tmp_path, image_folder, output=tmp_path / name, seed=seed, epochs=2, threads=1)
        states.append(read_folder(folder).module.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])


@pytest.mark.parametrize("batch_size", [2, 3, 31, 32, 33, 1000])
def test_any_batch_size_trains_even_where_one_image_is_left_over(
    tmp_path: Path, image_folder: Path, batch_size: int
) -> None:
    folder = _train(tmp_path, image_folder, epochs=1, batch_size=batch_size)
    assert all(value.isfinite().all() for value in read_folder(folder).module.state_dict().values())


def test_training_that_diverges_is_an_error_and_writes_nothing(tmp_path: Path, image_folder: Path) -> None:
    with pytest.raises(ModelError, match="diverged"):
        _train(tmp_path, image_folder, optimizer="sgd", lr=1e30)
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [({"lr": -1.0}, "--lr"), ({"lr": math.nan}, "--lr"), ({"batch_size": 1}, "--batch-size"), ({"epochs": -1}, "--ep")],
)
def test_an_impossible_option_is_named(
    tmp_path: Path, image_folder: Path, options: dict[str, object], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        _train(tmp_path, image_folder, **options)


def test_distillation_finds_its_teacher_and_records_it(tmp_path: Path, image_folder: Path) -> None:
    teacher = _train(tmp_path, image_folder)
    student = _train(tmp_path, image_folder, output=tmp_path / "student", width=4, epochs=0)
    options = DistillOptions(
        model=str(student), teacher=str(teacher), output=tmp_path / "distill", epochs=16, batch_size=8, lr=0.01
    )
    architecture = run_distill(options).architecture
    assert architecture.training_details[-1]["teacher"] == teacher.name
    assert max(architecture.training_details[-1]["held_out_accuracy"]) == 100.0
    assert read_folder(teacher).module(torch.zeros(1, 3, 32, 32)).isfinite().all()


def test_a_student_without_a_teacher_is_told_how_to_name_one(tmp_path: Path, image_folder: Path) -> None:
    student = _train(tmp_path, image_folder, epochs=0)
    with pytest.raises(UsageError, match="teacher") as caught:
        run_distill(DistillOptions(model=str(student), output=tmp_path / "distill"))
    assert "--teacher" in caught.value.hint


def test_data_with_other_classes_are_refused_by_name(tmp_path: Path, image_folder: Path) -> None:
    folder = _train(tmp_path, image_folder, epochs=0)
    for split in ("train", "val"):
        (image_folder / split / "cat").rename(image_folder / split / "dog")
    with pytest.raises(DataError, match="dog"):
        run_distill(DistillOptions(model=str(folder), teacher=str(folder), output=tmp_path / "distill"))


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[14] == pytest.approx(1.0)
    assert rates[0] == pytest.approx(1 / 15)
    assert rates[15:] == sorted(rates[15:], reverse=True)
    assert rates[15 + 42] == pytest.approx(0.5 * (1 + math.cos(math.pi * 42 / 85)))


def test_images_grow_to_their_full_size() -> None:
    assert [training_size(epoch, 10, 224) for epoch in (0, 6, 9)] == [112, 224, 224]
    assert training_size(0, 10, 64) == 32
    assert training_size(0, 10, 28) == 28
