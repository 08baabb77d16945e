"""Class folders without a split: scored whole, unless the model was made with them."""

import logging
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import short_classifier

from slimkit.core.folder import read_folder, write_folder
from slimkit.core.options import PruneOptions, ScoreOptions, TrainOptions
from slimkit.core.scoring.report import ScoreReport
from slimkit.core.scoring.run import run_score
from slimkit.core.stages import run_prune, run_train
from slimkit.standalone import model_loader


@pytest.fixture
def classes(image_folder: Path) -> Path:
    """Three class folders of 12 images each."""
    return image_folder / "train"


@pytest.fixture
def trained(classes: Path, tmp_path: Path) -> Path:
    """A model that was trained on `classes`."""
    options = TrainOptions(
        model="slimresnet18",
        width=4,
        data=str(classes),
        image_size=32,
        epochs=1,
        output=tmp_path / "trained",
        threads=1,
    )
    return run_train(options).folder


def _score(model: Path, data: Path) -> ScoreReport:
    output = data.parent / f"{model.name}.{data.name}.json"
    return run_score(
        ScoreOptions(
            model=str(model), data=str(data), runs=1, output=output, force=True, baseline_accuracy=50, threads=1
        )
    )


def test_a_stranger_s_folder_of_classes_is_scored_whole_as_its_loader_does(
    classes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(short_classifier(), tmp_path / "model").folder
    assert folder is not None
    with caplog.at_level(logging.INFO, "slimkit"):
        report = _score(folder, classes)
    assert report.accuracy.images == 36
    assert "all its 36 images are scored" in caplog.text
    panel = model_loader.score(folder, classes, 50, 10, 80)
    assert (panel["images"], panel["correct"]) == (36, report.accuracy.correct)


def test_a_folder_with_one_image_a_class_can_be_scored(classes: Path, tmp_path: Path) -> None:
    folder = write_folder(short_classifier(), tmp_path / "model").folder
    assert folder is not None
    for file in classes.glob("*/*.png"):
        if file.name != "0.png":
            file.unlink()
    assert _score(folder, classes).accuracy.images == 3


def test_what_a_model_learned_from_is_not_what_it_is_scored_on(
    trained: Path, classes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned = run_prune(
        PruneOptions(model=str(trained), data=str(classes), output=tmp_path / "pruned", threads=1, round_to="none")
    ).folder
    copy = tmp_path / "copy"
    shutil.copytree(classes, copy)
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in classes.rglob("*.png"):
            archive.write(file, f"wrapped/{file.relative_to(classes)}")
    with caplog.at_level(logging.INFO, "slimkit"):
        for model, data in ((pruned, classes), (trained, copy), (trained, packed)):
            assert _score(model, data).accuracy.images == 6  # a fifth of 12, in each of three classes
    assert "scored on the 6 that were set aside" in caplog.text
    assert "has changed" not in caplog.text
    model_loader.score(pruned, classes, 50, 10, 80)
    assert "the model was made with images of" in capsys.readouterr().err
    architecture = (pruned / "trained_pruned_architecture.json").read_text()
    assert len(read_folder(pruned).architecture.data_seen) == 1
    assert "0.png" not in architecture


def test_a_folder_that_has_changed_a_little_is_known_again(
    trained: Path, classes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (classes / "ant" / "11.png").unlink()
    assert _score(trained, classes).accuracy.images == 6
    assert "has changed since" in caplog.text


def test_the_training_folder_of_a_split_set_is_said_to_read_high(
    image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = TrainOptions(
        model="slimresnet18", width=4, data=str(image_folder), image_size=32, epochs=1, output=tmp_path / "m", threads=1
    )
    folder = run_train(options).folder
    assert _score(folder, image_folder / "train").accuracy.images == 36
    assert "reads high" in caplog.text
    caplog.clear()
    assert _score(folder, image_folder / "val").accuracy.images == 12
    assert "reads high" not in caplog.text
