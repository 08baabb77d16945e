"""Views that are seen again: the teacher is asked about each once, and the student learns the same as if anew."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import small_classifier
from torch import Tensor

from slimkit.core.data import augment, open_dataset
from slimkit.core.distillation.known_logits import know_logits
from slimkit.core.errors import UsageError
from slimkit.core.files import cache_folder
from slimkit.core.folder import write_folder
from slimkit.core.options import DistillOptions
from slimkit.core.stages import run_distill
from slimkit.core.training.precision import autocast, prefers_bfloat16
from slimkit.core.training.stage import fit_options_of
from slimkit.core.training.views import Views


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMKIT_CACHE", str(tmp_path / "cache"))


def kept() -> dict[str, int]:
    """The files of logits, each with its inode: one that is written again has another."""
    return {file.name: file.stat().st_ino for file in (cache_folder() / "teacher-logits").glob("*.npy")}


def test_what_is_known_is_what_the_teacher_answers_to_each_view(image_folder: Path) -> None:
    teacher = small_classifier()
    data = open_dataset(str(image_folder), wanted=teacher.architecture.preprocessing)
    options = fit_options_of(DistillOptions(device="cpu", views=2, batch_size=3, seed=5), 5, progressive=False)
    known = know_logits(teacher, data, torch.tensor([2, 0, 1]), options)
    views = Views(data, None, torch.arange(3), 3, options)
    for epoch in range(5):
        for batch in views.batches(epoch, torch.arange(len(data.train)), lambda: data.preprocessing.crop):
            assert batch.view == epoch % 2
            with torch.no_grad(), autocast(batch.inputs, prefers_bfloat16(torch.device("cpu"))):
                asked = teacher.module(batch.inputs)[:, [2, 0, 1]]
            torch.testing.assert_close(known(batch), asked.float(), atol=2e-3, rtol=2e-3)


def test_views_differ_and_come_back(image_folder: Path) -> None:
    teacher = small_classifier()
    data = open_dataset(str(image_folder), wanted=teacher.architecture.preprocessing)
    options = fit_options_of(DistillOptions(device="cpu", views=2, batch_size=64), 5, progressive=False)
    views = Views(data, None, torch.arange(3), 3, options)

    def seen(epoch: int) -> Tensor:
        order = torch.arange(len(data.train))
        return torch.cat([batch.inputs for batch in views.batches(epoch, order, lambda: data.preprocessing.crop)])

    assert torch.equal(seen(0), seen(2))
    assert not torch.equal(seen(0), seen(1))
    pixels, _, indices = next(data.train.batches(torch.arange(len(data.train)), 64))
    plain = augment(pixels, indices, data.preprocessing, epoch=1, seed=0, flip=data.flip)
    assert torch.equal(seen(1), plain)


def test_the_teacher_is_asked_once_for_all_trainings(image_folder: Path, tmp_path: Path) -> None:
    student, teacher = tmp_path / "student", tmp_path / "teacher"
    write_folder(small_classifier(width=4), student)
    write_folder(small_classifier(), teacher)

    def distill(name: str) -> bytes:
        told = {"views": 2, "epochs": 3, "device": "cpu", "batch_size": 12, "data": str(image_folder)}
        run_distill(DistillOptions(model=str(student), teacher=str(teacher), output=tmp_path / name, **told))
        return (tmp_path / name / "compressed_resnet18.pth").read_bytes()

    first, files = distill("first"), kept()
    assert len(files) == 2
    assert distill("again") == first
    assert kept() == files


@pytest.mark.parametrize(("changes", "asked"), [({"views": 3}, 1), ({"seed": 1}, 2), ({"min_crop": 0.5}, 2)])
def test_only_other_views_are_asked_about(image_folder: Path, changes: dict[str, float], asked: int) -> None:
    teacher = small_classifier()
    data = open_dataset(str(image_folder), wanted=teacher.architecture.preprocessing)

    def ask(options: DistillOptions) -> None:
        know_logits(teacher, data, torch.arange(3), fit_options_of(options, 9, progressive=False))

    options = DistillOptions(device="cpu", views=2)
    ask(options)
    before = kept()
    ask(dataclasses.replace(options, **changes))
    assert before.items() <= kept().items()
    assert len(kept()) == len(before) + asked


def test_no_more_views_are_asked_about_than_are_seen(image_folder: Path) -> None:
    teacher = small_classifier()
    data = open_dataset(str(image_folder), wanted=teacher.architecture.preprocessing)
    options = fit_options_of(DistillOptions(device="cpu", views=8), 2, progressive=False)
    know_logits(teacher, data, torch.arange(3), options)
    assert len(kept()) == 2


def test_changed_images_are_asked_about_anew(image_folder: Path) -> None:
    teacher = small_classifier()
    options = fit_options_of(DistillOptions(device="cpu", views=1), 1, progressive=False)

    def ask() -> None:
        data = open_dataset(str(image_folder), wanted=teacher.architecture.preprocessing)
        know_logits(teacher, data, torch.arange(3), options)

    ask()
    one = next((image_folder / "train").rglob("*.png"))
    other = next(file for file in sorted((image_folder / "train").rglob("*.png"), reverse=True) if file != one)
    one.write_bytes(other.read_bytes())
    ask()
    assert len(kept()) == 2


def test_mixed_images_are_never_seen_again(image_folder: Path, tmp_path: Path) -> None:
    write_folder(small_classifier(), tmp_path / "student")
    options = DistillOptions(
        model=str(tmp_path / "student"),
        teacher=str(tmp_path / "student"),
        data=str(image_folder),
        output=tmp_path / "out",
        views=2,
        mixup=0.2,
        device="cpu",
    )
    with pytest.raises(UsageError, match="exclude each other"):
        run_distill(options)
