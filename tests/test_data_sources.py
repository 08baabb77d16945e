"""Folders and .zip files of class folders: what is found in them, and what is wrong with them."""

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from slimkit.core.data import ImageSet, check_dataset, label_map, open_dataset, write_image_folder
from slimkit.core.errors import DataError, FolderError, SlimkitError, UsageError


def _paint(path: Path, shade: int = 100, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes 10, 2 and b: 10 training and 3 test images each; an image's shade tells its class and number."""
    root = tmp_path / "shades"
    for split, count in (("train", 10), ("val", 3)):
        for label, name in enumerate(("10", "2", "b")):
            for number in range(count):
                _paint(root / split / name / f"{number}.png", 50 * label + number + (20 if split == "val" else 0))
    return root


def _zipped(folder: Path, prefix: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def _open(path: Path) -> ImageSet:
    return open_dataset(str(path), image_size=4, resize=4)


def _shades(images: object) -> list[int]:
    order = torch.arange(len(images))  # type: ignore[arg-type]
    pixels = torch.cat([pixels for pixels, _, _ in images.batches(order, 4)])  # type: ignore[attr-defined]
    return [int(shade) for shade in pixels[:, 0, 0, 0]]


def test_classes_are_sorted_as_strings(folder: Path) -> None:
    assert _open(folder).class_names == ("10", "2", "b")


def test_a_folder_gives_every_image_once_with_its_class(folder: Path) -> None:
    data = _open(folder)
    learned = sorted(_shades(data.train) + _shades(data.holdout))
    assert learned == sorted(50 * label + number for label in range(3) for number in range(10))
    assert _shades(data.test) == [50 * label + number + 20 for label in range(3) for number in range(3)]
    for images in (data.train, data.holdout, data.test):
        assert images.labels.tolist() == [shade // 50 for shade in _shades(images)]


def test_the_holdout_has_every_class_and_is_always_the_same(folder: Path) -> None:
    first, second = _open(folder), _open(folder)
    assert first.holdout.labels.tolist() == [0, 1, 2]
    assert _shades(first.holdout) == _shades(second.holdout)


@pytest.mark.parametrize("prefix", ["", "shades/"])
def test_a_zip_is_the_folder_that_it_was_made_of(folder: Path, prefix: str) -> None:
    unpacked, packed = _open(folder), _open(_zipped(folder, prefix))
    assert packed.class_names == unpacked.class_names
    for split in ("train", "holdout", "test"):
        assert _shades(getattr(packed, split)) == _shades(getattr(unpacked, split))


def test_test_and_val_together_are_test_and_holdout(folder: Path) -> None:
    for name in ("10", "2", "b"):
        _paint(folder / "test" / name / "only.png", 250)
    data = _open(folder)
    assert set(_shades(data.test)) == {250}
    assert len(data.holdout) == 9
    assert len(data.train) == 30


def test_class_folders_alone_are_split_in_five(folder: Path) -> None:
    data = _open(folder / "train")
    assert data.test.labels.bincount().tolist() == [2, 2, 2]
    everything = _shades(data.train) + _shades(data.holdout) + _shades(data.test)
    assert sorted(everything) == sorted(50 * label + number for label in range(3) for number in range(10))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("car", "train"):
        for number in range(5):
            _paint(tmp_path / name / f"{number}.png")
    assert _open(tmp_path).class_names == ("car", "train")


def test_a_set_for_scoring_alone_has_no_training_images(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "panel").mkdir()
    (folder / "val").rename(tmp_path / "panel" / "val")
    data = _open(tmp_path / "panel")
    assert len(data.test) == 9
    with pytest.raises(DataError, match="no training images"):
        _ = data.train


def test_other_files_are_left_out_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train" / "10" / "notes.txt").write_text("not for learning")
    (folder / "train" / "10" / ".DS_Store").write_bytes(b"")
    (folder / "train" / "10" / "Thumbs.db").write_bytes(b"")
    _paint(folder / "train" / "stray.png")
    with caplog.at_level(logging.WARNING, "slimkit"):
        data = _open(folder)
    assert len(data.train) + len(data.holdout) == 30
    assert "left out 1 files with the suffix '.txt'" in caplog.text
    assert "left out 1 files outside of the class folders" in caplog.text
    assert "DS_Store" not in caplog.text
    assert "Thumbs" not in caplog.text


def test_a_class_that_only_val_lacks_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in (folder / "val" / "2").iterdir():
        file.unlink()
    (folder / "val" / "2").rmdir()
    with caplog.at_level(logging.WARNING, "slimkit"):
        assert _open(folder).test.labels.unique().tolist() == [0, 2]
    assert "has no images of: 2" in caplog.text


def _add_class_to_val(folder: Path) -> None:
    _paint(folder / "val" / "zebra" / "1.png")


def _empty_a_class(folder: Path) -> None:
    (folder / "train" / "aardvark").mkdir()


def _fill_a_class_with_text(folder: Path) -> None:
    (folder / "train" / "aardvark").mkdir()
    (folder / "train" / "aardvark" / "1.txt").write_text("a")


def _leave_one_class(folder: Path) -> None:
    for name in ("2", "b"):
        for split in ("train", "val"):
            (folder / split / name).rename(folder.parent / f"{split}{name}")


def _leave_no_class(folder: Path) -> None:
    for entry in ("train", "val"):
        (folder / entry).rename(folder.parent / entry)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_add_class_to_val, "val.* has classes that train.* lacks: zebra"),
        (_empty_a_class, "aardvark holds no images"),
        (_fill_a_class_with_text, "aardvark holds no images"),
        (_leave_one_class, "only one class, '10'"),
        (_leave_no_class, "no class folders"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        _open(folder)


@pytest.mark.parametrize("name", ["../train/10/x.png", "train/../../x.png", "/train/10/x.png", "C:/x.png", "..\\x.png"])
def test_a_zip_with_names_that_lead_out_of_it_is_refused(folder: Path, name: str) -> None:
    path = _zipped(folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"")
    with pytest.raises(DataError, match="unsafe name"):
        _open(path)


def test_a_damaged_zip_is_named(folder: Path) -> None:
    path = _zipped(folder)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"shades\.zip is not a readable \.zip"):
        _open(path)


def test_a_damaged_image_in_a_zip_is_named(folder: Path) -> None:
    content = (folder / "train" / "10" / "3.png").read_bytes()
    path = _zipped(folder)
    path.write_bytes(path.read_bytes().replace(content, content[:40] + bytes(len(content) - 40)))
    with pytest.raises(DataError, match=r"train/10/3\.png"):
        _shades(_open(path).train)


def test_a_file_that_is_neither_folder_nor_zip(tmp_path: Path) -> None:
    (tmp_path / "data.tar").write_text("tar")
    with pytest.raises(DataError, match=r"data\.tar is neither"):
        _open(tmp_path / "data.tar")


@pytest.mark.parametrize(("spec", "hint"), [("imagenet", "imagenette"), ("digit100", "digits100"), ("xyz", "one of:")])
def test_an_unknown_name_suggests_known_ones(spec: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset(spec)
    assert spec in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize("sizes", [(0, 8), (-1, None), (64, 32), (None, 100)])
def test_sizes_that_cannot_be(folder: Path, sizes: tuple[int | None, int | None]) -> None:
    with pytest.raises(UsageError):
        open_dataset(str(folder), image_size=sizes[0], resize=sizes[1])


def test_default_sizes(folder: Path) -> None:
    def sizes(image_size: int | None = None, resize: int | None = None) -> tuple[int, int]:
        preprocessing = open_dataset(str(folder), image_size=image_size, resize=resize).preprocessing
        return preprocessing.crop, preprocessing.resize

    assert sizes() == (224, 256)
    assert sizes(image_size=112) == (112, 128)
    assert sizes(image_size=64, resize=64) == (64, 64)
    assert sizes(resize=300) == (224, 300)


def test_only_what_is_read_is_decoded(folder: Path) -> None:
    (folder / "train" / "b" / "4.png").write_bytes(b"no image")
    data = _open(folder)
    assert len(_shades(data.test)) == 9
    with pytest.raises(DataError, match=r"train/b/4\.png is not a readable image"):
        _shades(data.train)


def test_a_check_finds_every_unreadable_image(folder: Path) -> None:
    (folder / "train" / "b" / "4.png").write_bytes(b"no image")
    (folder / "val" / "2" / "0.png").write_bytes(b"")
    report = check_dataset(str(folder))
    assert {name: split.images for name, split in report.splits.items()} == {"train": 30, "test": 9}
    assert len(report.broken) == 2
    assert "4.png" in report.broken[0]
    assert "0.png" in report.broken[1]


def test_classes_are_matched_by_name() -> None:
    assert label_map(("a", "b", "c", "d"), ("d", "a")).tolist() == [3, 0]
    with pytest.raises(DataError, match="no class called x, y;"):
        label_map(("a", "b"), ("x", "a", "y"))


def test_what_is_written_as_a_folder_opens_with_the_same_pixels(folder: Path, tmp_path: Path) -> None:
    data = _open(folder)
    write_image_folder(data.train, data.class_names, tmp_path / "copy" / "train")
    write_image_folder(data.test, data.class_names, tmp_path / "copy" / "val")
    copy = _open(tmp_path / "copy")
    assert _shades(copy.test) == _shades(data.test)
    assert sorted(_shades(copy.train) + _shades(copy.holdout)) == sorted(_shades(data.train))
    with pytest.raises(FolderError):
        write_image_folder(data.test, data.class_names, tmp_path / "copy" / "val")


def test_every_error_says_how_to_fix_it(tmp_path: Path) -> None:
    with pytest.raises(SlimkitError) as caught:
        open_dataset(str(tmp_path))
    assert caught.value.hint
