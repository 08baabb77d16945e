"""The check of a data set: each flaw is named, and the figures are those of the pixels."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_classifier
from PIL import Image

from slimkit.cli.app import main
from slimkit.core.architecture import Preprocessing
from slimkit.core.data import check_dataset, open_dataset
from slimkit.core.errors import DataError
from slimkit.core.folder import write_folder
from slimkit.core.options import PruneOptions, QuantizeOptions, TrainOptions
from slimkit.core.stages import run_prune, run_quantize, run_train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes in two splits; every image has a shade of its own, and all but one the size 4x6."""
    for number, (split, name) in enumerate([("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")]):
        place = tmp_path / "set" / split / name
        place.mkdir(parents=True)
        for index in range(3 - number % 2):
            Image.new("RGB", (6, 4), (10 * number + index, 200, 100)).save(place / f"{index}.png")
    Image.new("RGB", (12, 8), (0, 51, 255)).save(tmp_path / "set" / "train" / "a" / "large.png")
    return tmp_path / "set"


def test_a_clean_set_has_no_flaws_and_its_classes_are_counted(folder: Path) -> None:
    found = check_dataset(str(folder))
    assert found.flaws == ()
    assert {name: split.classes for name, split in found.splits.items()} == {
        "train": {"a": 4, "b": 2},
        "test": {"a": 3, "b": 2},
    }
    assert found.sizes == ((4, 6), (4, 6), (8, 12))


def test_mean_and_deviation_are_those_of_all_pixels(folder: Path) -> None:
    pixels = np.concatenate([np.asarray(Image.open(file)).reshape(-1, 3) / 255 for file in folder.rglob("*.png")])
    found = check_dataset(str(folder))
    assert found.mean == pytest.approx(pixels.mean(0))
    assert found.std == pytest.approx(pixels.std(0))


def test_what_is_broken_empty_or_odd_is_named(folder: Path) -> None:
    whole = (folder / "train" / "b" / "1.png").read_bytes()
    (folder / "train" / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "val" / "b" / "empty.png").write_bytes(b"")
    (folder / "train" / "a" / "notes.txt").write_text("mine")
    found = check_dataset(str(folder))
    assert len(found.broken) == 2
    assert "train/a/cut.png is not a readable image" in found.broken[0]
    assert "val/b/empty.png is not a readable image: it is empty" in found.broken[1]
    assert len(found.left_out) == 1
    assert "'.txt'" in found.left_out[0]
    assert len(found.flaws) == 3


def test_the_same_image_is_found_in_another_split_class_and_format(folder: Path) -> None:
    shutil.copy(folder / "train" / "a" / "0.png", folder / "val" / "b" / "again.png")
    Image.open(folder / "train" / "b" / "0.png").save(folder / "train" / "b" / "other.bmp")
    Image.new("RGB", (4, 6), (0, 200, 100)).save(folder / "train" / "a" / "turned.png")  # as many pixels, another shape
    assert sorted(check_dataset(str(folder)).duplicates) == [
        ("train/a/0.png", "test/b/again.png"),
        ("train/b/0.png", "train/b/other.bmp"),
    ]


def test_a_class_without_images_in_a_split_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "val" / "b")
    assert check_dataset(str(folder)).flaws == ("test has no images of: b.",)


def test_a_zip_and_photos_without_classes_are_checked_alike(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
        for file in folder.rglob("*.png"):
            packed.write(file, file.relative_to(folder))
    assert check_dataset(str(tmp_path / "set.zip")) == check_dataset(str(folder))
    found = check_dataset(str(folder / "train" / "a"))
    assert (found.splits["train"].images, found.splits["train"].classes, found.flaws) == (4, {}, ())


def test_arrays_are_checked_in_their_channels(tmp_path: Path) -> None:
    for name, value in (("a", 0.25), ("b", 0.75)):
        for index in range(2):
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            pixels = np.full((3, 4, 5), value, np.float32)
            pixels[0, 0, 0] = index
            np.save(tmp_path / "set" / name / f"{index}.npy", pixels)
    found = check_dataset(str(tmp_path / "set"), channels=5)
    assert (found.flaws, found.sizes[0], len(found.mean)) == ((), (3, 4), 5)
    assert found.mean[1:] == pytest.approx((0.5,) * 4)
    with pytest.raises(DataError, match="7 channels"):
        check_dataset("digits100", channels=7)


def test_training_leaves_out_what_can_not_be_read_and_names_it(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The teacher's view of the images, in another preprocessing, leaves out the same ones."""
    (folder / "train" / "a" / "1.png").write_bytes(b"")
    options = TrainOptions(model="slimresnet18", width=4, image_size=32, data=str(folder), output=tmp_path / "model")
    detail = run_train(dataclasses.replace(options, epochs=1)).architecture.training_details[-1]
    assert "Left out: " in caplog.text
    assert "a/1.png is not a readable image: it is empty" in caplog.text
    data = open_dataset(str(folder), image_size=8)
    kept = data.without_unreadable()
    assert detail["train_images"] == len(kept.train) == len(data.train) - 1
    view = kept.prepared(Preprocessing(resize=12, crop=12))
    shades = [
        {
            int(label) * 100 + int(image[0, 0, 0])
            for pixels, labels, _ in each.train.batches(torch.arange(3), 3)
            for image, label in zip(pixels, labels, strict=True)
        }
        for each in (kept, view)
    ]
    assert shades[0] == shades[1]


def test_the_command_in_each_form(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(folder), "--strict"]) == 0
    assert "Nothing is wrong" in capsys.readouterr().out
    (folder / "train" / "a" / "0.png").write_bytes(b"")
    assert main(["data", "check", str(folder)]) == 0
    assert "it is empty" in capsys.readouterr().out
    assert main(["data", "check", str(folder), "--strict", "--json"]) == 3
    out, err = capsys.readouterr()
    assert len(json.loads(out)["flaws"]) == 1
    assert "1 thing is wrong with set" in err


def test_what_looks_at_few_images_leaves_out_what_can_not_be_read(
    image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(small_classifier(), tmp_path / "model")
    broken = [image_folder / "train" / "bee" / f"{number}.png" for number in range(6)]
    for file in broken:
        file.write_bytes(b"")
    common = {"model": str(tmp_path / "model"), "data": str(image_folder)}
    run_prune(PruneOptions(**common, output=tmp_path / "cut", params=0.8, round_to="none"))
    run_quantize(QuantizeOptions(**common, output=tmp_path / "int8", min_agreement=0))
    for file in broken:
        assert caplog.text.count(f"bee/{file.name} is not a readable image: it is empty") == 2  # once by each
