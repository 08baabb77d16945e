"""A teacher with another preprocessing sees each image as it was trained to, and the student as before."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import small_classifier
from PIL import Image
from torch import Tensor

from slimkit.core.architecture import Preprocessing
from slimkit.core.data import ImageSet, open_dataset
from slimkit.core.distillation.teacher import require_knowledge, teacher_view
from slimkit.core.errors import UsageError
from slimkit.core.folder import Classifier, write_folder
from slimkit.core.options import DistillOptions, TrainOptions
from slimkit.core.stages import run_distill
from slimkit.core.training.loop import fit
from slimkit.core.training.stage import fit_options_of
from slimkit.core.training.views import Batch

WANTED = Preprocessing(resize=60, crop=48, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2), interpolation="bicubic")
SHADES = {"ant": 51, "bee": 102, "cat": 204}


def _teacher() -> Classifier:
    classifier = small_classifier()
    architecture = dataclasses.replace(classifier.architecture, preprocessing=WANTED, input_shape=(3, 48, 48))
    return dataclasses.replace(classifier, architecture=architecture)


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """Images of one shade each, which tells their class whatever part of them is seen."""
    for split in ("train", "val"):
        for name, shade in SHADES.items():
            folder = tmp_path / "shades" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (70, 64), (shade, shade, shade)).save(folder / f"{number}.png")
    return tmp_path / "shades"


def test_both_see_the_same_image_each_in_its_own_preprocessing(shades: Path) -> None:
    student = small_classifier()
    data = open_dataset(str(shades), wanted=student.architecture.preprocessing)
    view = teacher_view(_teacher(), data)
    assert view is not None
    seen = []

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        seen.append((batch.seen_by_loss, batch.labels))
        return logits.square().mean()

    options = fit_options_of(TrainOptions(device="cpu", lr=0.001, batch_size=3), 1, progressive=False)
    fit(student.module, student.architecture.class_names, data, options, loss, loss_data=view)
    assert sum(len(labels) for _, labels in seen) == len(data.train)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (WANTED.mean, WANTED.std))
    for inputs, labels in seen:
        assert inputs.shape[1:] == (3, 48, 48)
        shade = torch.tensor(list(SHADES.values()))[labels].view(-1, 1, 1, 1) / 255
        torch.testing.assert_close(inputs, ((shade - mean) / std).expand_as(inputs), atol=1e-4, rtol=0)


def test_both_see_the_same_mixed_image(shades: Path) -> None:
    """Of images of one shade each, blended: the teacher's pixels say the same as the labels."""
    student = small_classifier()
    data = open_dataset(str(shades), wanted=student.architecture.preprocessing)
    seen = []

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        seen.append((batch.seen_by_loss, batch.labels))
        return logits.square().mean()

    options = fit_options_of(TrainOptions(device="cpu", lr=0.001, batch_size=3, mixup=1.0), 1, progressive=False)
    view = data.prepared(WANTED)
    fit(student.module, student.architecture.class_names, data, options, loss, loss_data=view)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (WANTED.mean, WANTED.std))
    for inputs, labels in seen:
        shade = labels @ torch.tensor(list(SHADES.values())).float() / 255
        torch.testing.assert_close(inputs * std + mean, shade.view(-1, 1, 1, 1).expand_as(inputs), atol=1e-4, rtol=0)
    assert not all(torch.equal(labels, labels.round()) for _, labels in seen)


def test_a_teacher_with_the_students_preprocessing_needs_none_of_its_own(shades: Path) -> None:
    student = small_classifier()
    data = open_dataset(str(shades), wanted=student.architecture.preprocessing)
    assert teacher_view(student, data) is None


def _short_distillation(shades: Path, folder: Path) -> DistillOptions:
    """Of a student by a teacher of another size, in `folder`."""
    write_folder(_teacher(), folder / "teacher")
    write_folder(small_classifier(), folder / "student")
    return DistillOptions(
        model=str(folder / "student"),
        teacher=str(folder / "teacher"),
        data=str(shades),
        epochs=1,
        batch_size=4,
        output=folder / "distilled",
        threads=1,
    )


def test_distillation_from_a_teacher_of_another_size(shades: Path, tmp_path: Path) -> None:
    options = _short_distillation(shades, tmp_path)
    architecture = run_distill(options).architecture
    assert architecture.preprocessing == small_classifier().architecture.preprocessing


def test_the_control_is_the_same_training_without_the_teacher(shades: Path, tmp_path: Path) -> None:
    alpha = 0.0  # of the teacher's loss: both learn the same
    options = dataclasses.replace(_short_distillation(shades, tmp_path), alpha=alpha, control=2)
    figures = run_distill(options).figures
    assert figures["control_seeds"] == 2
    assert figures["accuracy_with_teacher"] == figures["accuracy_labels_alone"]
    assert figures["accuracy_with_teacher_deviation"] == figures["accuracy_labels_alone_deviation"]
    other = run_distill(dataclasses.replace(options, seed=1, control=0, output=tmp_path / "other")).figures["accuracy"]
    assert figures["accuracy_with_teacher"] == (figures["accuracy"] + other) / 2


CLASSES = tuple("abcdefghij")


def _set_of(folder: Path, images: int) -> ImageSet:
    """Ten classes of one shade, which no network can tell apart, with so many images of each to train on."""
    for split, count in (("train", images), ("val", 1)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (99, 99, 99)).save(folder / split / name / f"{number}.png")
    return open_dataset(str(folder), image_size=32, resize=32)


def test_a_teacher_that_guesses_is_refused_where_there_are_images_to_tell(tmp_path: Path) -> None:
    classifier = small_classifier(CLASSES)
    assert require_knowledge(classifier, _set_of(tmp_path / "few", 4), "guesser", torch.device("cpu")) == 10.0
    with pytest.raises(UsageError, match=r"guesser answers 10\.0 % .* guessing gives 10\.0 %"):
        require_knowledge(classifier, _set_of(tmp_path / "many", 500), "guesser", torch.device("cpu"))
