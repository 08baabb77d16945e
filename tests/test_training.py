"""Training and distillation: what is learned, and what the numbers in between are."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from slimkit.core.architecture import Preprocessing
from slimkit.core.digests import weights_digest
from slimkit.core.errors import DataError, ModelError, UsageError
from slimkit.core.folder import read_folder
from slimkit.core.options import DistillOptions, Optimizer, TrainOptions
from slimkit.core.stages import run_distill, run_train
from slimkit.core.training.average import Average
from slimkit.core.training.layout import memory_format
from slimkit.core.training.muon import Muon
from slimkit.core.training.optimizer import make_optimizer
from slimkit.core.training.precision import SMALLEST_SAFE, precision_of, prefers_bfloat16
from slimkit.core.training.probe import takes_smaller_images
from slimkit.core.training.schedule import learning_rate, training_size
from slimkit.core.training.stage import fit_options_of


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


def test_the_average_is_what_is_evaluated_and_kept(tmp_path: Path, image_folder: Path) -> None:
    """With a decay of nearly 1 the average of two steps is by hand: 1/10 of the start, then 2/11 of what was there."""
    states = []
    for name, ema, steps in (("start", None, 0), ("plain", None, 1), ("averaged", 0.9999, 1)):
        how = {"output": tmp_path / name, "ema": ema, "epochs": steps, "batch_size": 64, "threads": 1, "flip": "none"}
        states.append(read_folder(_train(tmp_path, image_folder, **how)).module.state_dict())
    start, plain, averaged = states
    for name in ("conv1.weight", "bn1.running_mean", "layer1.0.bn1.weight", "fc.bias"):
        torch.testing.assert_close(averaged[name], start[name] / 10 + plain[name] * 9 / 10)
    assert averaged["bn1.num_batches_tracked"] == plain["bn1.num_batches_tracked"] == 1


def test_the_average_forgets_at_its_decay() -> None:
    module = torch.nn.BatchNorm1d(1)
    average = Average(module, 0.5)
    for steps, value in enumerate((2.0, 4.0), start=100):
        torch.nn.init.constant_(module.weight, value)
        module.running_mean.fill_(10 * value)
        average.update(module, steps)
    assert average.module.weight.tolist() == [0.25 * 1 + 0.25 * 2 + 0.5 * 4]
    assert average.module.running_mean.tolist() == [0.25 * 0 + 0.25 * 20 + 0.5 * 40]


@pytest.mark.parametrize("shape", [(6, 10), (12, 5), (8, 3, 3, 3)])
def test_muon_is_that_of_torch(shape: tuple[int, ...]) -> None:
    """Which computes in bfloat16, of 8 bits, and takes matrices alone."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.flatten(1).clone())
    steps = [
        Muon([{"params": [ours], "is_muon": True}], lr=0.1, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.flatten(1).clone()
        for optimizer in steps:
            optimizer.step()
    torch.testing.assert_close((ours - start).flatten(1), theirs - start.flatten(1), atol=0.01, rtol=0.05)


def test_muon_leaves_the_first_and_the_last_matrix_and_depthwise_kernels_to_adamw() -> None:
    first, depthwise, hidden, last = (
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 1),
        nn.Linear(8, 2),
    )
    module = nn.Sequential(first, depthwise, hidden, nn.Flatten(), last)
    optimizer = make_optimizer(module, "muon", 0.002, 0.05)
    muon, adamw, vectors = (group["params"] for group in optimizer.param_groups)
    assert [id(p) for p in muon] == [id(hidden.weight)]
    assert [id(p) for p in adamw] == [id(each.weight) for each in (first, depthwise, last)]
    assert len(vectors) == 4


def test_a_network_learns_with_everything_on(tmp_path: Path, image_folder: Path) -> None:
    how = {"optimizer": "muon", "ema": 0.9, "min_crop": 0.3, "cutout": 0.2, "mixup": 0.2, "cutmix": 1.0, "epochs": 12}
    detail = read_folder(_train(tmp_path, image_folder, **how)).architecture.training_details[0]
    assert max(detail["held_out_accuracy"]) > 50  # of three classes
    assert detail["ema"] == 0.9
    assert detail["augmentation"] == {"flip": "random", "min_crop": 0.3, "cutout": 0.2, "mixup": 0.2, "cutmix": 1.0}


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


def test_a_network_that_insists_on_its_size_is_trained_at_full_size(
    tmp_path: Path, image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "fixed.py").write_text(
        "from torch import nn\n"
        "def fixed(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.Flatten(), nn.Linear(4 * 3 * 3, num_classes))\n"
    )
    caplog.set_level("INFO", "slimkit")
    how = {"model": f"{tmp_path / 'fixed.py'}:fixed", "width": None, "image_size": 48, "epochs": 2}
    detail = read_folder(_train(tmp_path, image_folder, **how)).architecture.training_details[0]
    assert len(detail["loss"]) == 2
    assert "all images are seen at full size, as the network takes none of 32 pixels" in caplog.text


def test_looking_for_smaller_sizes_changes_nothing() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before, state = weights_digest(module), torch.random.get_rng_state()
    assert takes_smaller_images(module, Preprocessing(resize=64, crop=64))
    assert weights_digest(module) == before
    assert torch.equal(torch.random.get_rng_state(), state)


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


@pytest.mark.parametrize(("name", "lr", "decay"), [("sgd", 0.1, 5e-4), ("adam", 0.001, 0.0), ("muon", 0.002, 0.05)])
def test_an_optimizer_has_its_usual_rate_and_decay(name: Optimizer, lr: float, decay: float) -> None:
    for options in (TrainOptions(device="cpu", optimizer=name), DistillOptions(device="cpu", optimizer=name)):
        found = fit_options_of(options, 1, progressive=False)
        assert (found.lr, found.weight_decay) == (lr, decay)
    given = fit_options_of(TrainOptions(device="cpu", optimizer=name, lr=0.5, weight_decay=0.0), 1, progressive=False)
    assert (given.lr, given.weight_decay) == (0.5, 0.0)
