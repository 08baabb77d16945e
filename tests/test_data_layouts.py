"""Folders as people have them: what counts as a split, a class and an image, for slimkit and for submissions alike."""

import logging
import unicodedata
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from slimkit.core.data import ImageSet, label_map, open_dataset
from slimkit.core.errors import DataError
from slimkit.standalone import model_loader

CLASSES = ("cat", "dog")


def _fill(folder: Path, count: int = 2, classes: tuple[str, ...] = CLASSES) -> None:
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (6, 6), (100 * place + number, 0, len(str(folder)))).save(folder / name / f"{number}.png")


def _open(path: Path) -> ImageSet:
    return open_dataset(str(path), image_size=4, resize=4)


def _scored_by_a_submission(path: Path, classes: tuple[str, ...] = CLASSES) -> list[Path]:
    files, _ = model_loader.list_images(path, {"class_names": list(classes)})
    return [file for file, _ in files]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "valid"),
        ("train", "validation"),
        ("train", "val"),
        ("Train", "Test"),
        ("Training", "Testing"),
        ("TRAIN", "eval"),
        ("training_set", "test_set"),
        ("train", "dev"),
        ("trainset", "evaluation"),
    ],
)
@pytest.mark.parametrize("wrapping", ["", "photos"])
@pytest.mark.parametrize("packed", [False, True])
def test_usual_names_of_splits_are_known(train: str, test: str, wrapping: str, packed: bool, tmp_path: Path) -> None:
    root = tmp_path / "set"
    _fill(root / wrapping / train, count=5)
    _fill(root / wrapping / test, count=2)
    if packed:
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for file in root.rglob("*.png"):
                archive.write(file, file.relative_to(root).as_posix())
    data = _open(tmp_path / "set.zip" if packed else root)
    assert data.class_names == CLASSES
    assert len(data.train) + len(data.holdout) == 10
    assert len(data.test) == 4
    assert {file.parents[1].name for file in _scored_by_a_submission(root)} == {test}


def test_of_three_splits_valid_selects_and_test_is_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split, count in (("train", 4), ("valid", 3), ("test", 2)):
        _fill(tmp_path / split, count)
    with caplog.at_level(logging.INFO, "slimkit"):
        data = _open(tmp_path)
    assert [len(images) for images in (data.train, data.holdout, data.test)] == [8, 6, 4]
    assert "valid/ to select models on" in caplog.text
    assert "test/ to score on" in caplog.text


def test_folders_that_are_not_used_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "valid", "old"):
        _fill(tmp_path / split)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "1.jpg").write_bytes(b"unlabelled")
    data = _open(tmp_path)
    assert data.class_names == CLASSES
    assert "old is not used: it is no split" in caplog.text
    assert "test is not used: it holds no class folders" in caplog.text


def test_a_folder_within_a_split_folder_is_looked_into(tmp_path: Path) -> None:
    _fill(tmp_path / "training_set" / "training_set", 3)
    _fill(tmp_path / "test_set" / "test_set", 1)
    assert len(_open(tmp_path).test) == 2
    assert len(_scored_by_a_submission(tmp_path)) == 2


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("fold1", "fold2"), "fold1 and fold2 hold the same folders"),
        (("cat/train", "dog/train", "cat/test", "dog/test"), "cat and dog hold the same folders"),
        (("train", "val", "validation"), "two folders for the val split: val and validation"),
        (("train", "Train"), "two folders for the train split"),
    ],
)
def test_splits_are_never_taken_for_classes(folders: tuple[str, ...], message: str, tmp_path: Path) -> None:
    for folder in folders:
        _fill(tmp_path / folder)
    with pytest.raises(DataError, match=message):
        _open(tmp_path)
    with pytest.raises(ValueError, match=message):
        _scored_by_a_submission(tmp_path)


def test_a_class_beside_the_only_split_is_refused(tmp_path: Path) -> None:
    _fill(tmp_path / "train", classes=("diesel", "steam"))
    _fill(tmp_path, classes=("car",))
    with pytest.raises(DataError, match="images in car/, as a class has, beside train/"):
        _open(tmp_path)


def test_one_folder_in_every_class_is_no_split(tmp_path: Path) -> None:
    for name in CLASSES:
        _fill(tmp_path / name, 3, classes=("images",))
    assert _open(tmp_path).class_names == CLASSES


def test_what_systems_add_is_no_image_for_anyone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _fill(tmp_path / "test")
    junk = ("__MACOSX/cat/._1.png", "test/.ipynb_checkpoints/1.png", "test/cat/.ipynb_checkpoints/1-checkpoint.png")
    junk += ("test/@eaDir/1.png", "test/cat/@eaDir/2.png", "test/cat/Thumbs.db", "test/dog/._1.png", "test/dog/.x.png")
    for name in junk:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    Image.new("RGB", (6, 6)).save(tmp_path / "test" / "cat" / "UPPER.JPG", "JPEG")
    assert len(_open(tmp_path).test) == 5
    assert len(_scored_by_a_submission(tmp_path)) == 5
    assert "left out" not in caplog.text


class TestLinks:
    def test_a_link_that_leads_back_adds_nothing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        _fill(tmp_path / "test", 3)
        (tmp_path / "test" / "cat" / "back").symlink_to(tmp_path / "test", target_is_directory=True)
        (tmp_path / "test" / "dog" / "root").symlink_to("/", target_is_directory=True)
        (tmp_path / "test" / "kitten").symlink_to("cat", target_is_directory=True)
        data = _open(tmp_path)
        assert data.class_names == CLASSES
        assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert len(_scored_by_a_submission(tmp_path)) == 6
        assert "kitten was left out: it is a link" in caplog.text

    def test_links_to_folders_elsewhere_are_followed_once(self, tmp_path: Path) -> None:
        _fill(tmp_path / "pool", 3)
        (tmp_path / "set" / "test").mkdir(parents=True)
        for name in CLASSES:
            (tmp_path / "set" / "test" / name).symlink_to(tmp_path / "pool" / name, target_is_directory=True)
        (tmp_path / "pool" / "cat" / "loop").symlink_to(tmp_path / "pool", target_is_directory=True)
        assert _open(tmp_path / "set").test.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert len(_scored_by_a_submission(tmp_path / "set")) == 6

    def test_a_link_to_nothing_is_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        _fill(tmp_path / "test", 3)
        (tmp_path / "test" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        assert len(_open(tmp_path).test) == 6
        assert "gone.png was left out" in caplog.text


def test_class_names_match_in_every_normal_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != decomposed
    _fill(tmp_path / "train", classes=(composed, "tea"))
    _fill(tmp_path / "val", classes=(decomposed, "tea"))
    data = _open(tmp_path)
    assert data.class_names == (composed, "tea")
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert label_map((decomposed, "tea"), (composed,)).tolist() == [0]
    assert len(_scored_by_a_submission(tmp_path, (composed, "tea"))) == 4
    assert len(_scored_by_a_submission(tmp_path, (decomposed, "tea"))) == 4


def test_an_error_names_the_file_and_not_the_stream(tmp_path: Path) -> None:
    _fill(tmp_path / "test")
    (tmp_path / "test" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png is not a readable image") as caught:
        list(_open(tmp_path).test.batches(torch.arange(4), 4))
    assert "BytesIO" not in str(caught.value)
