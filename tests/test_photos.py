"""Photos without classes: enough to cut and to quantize with, and refused by name where labels are needed."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import small_classifier
from own_network import Net
from test_cli_chain import slimkit, write_images

from slimkit.core.errors import DataError
from slimkit.core.folder import read_folder
from slimkit.core.models.classes import numbered, read_class_names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """photos/ side by side, the same in classes in images/, and weights for seven classes."""
    write_images(tmp_path / "images")
    (tmp_path / "photos").mkdir()
    for i, file in enumerate(sorted((tmp_path / "images" / "train").rglob("*.png"))):
        shutil.copy(file, tmp_path / "photos" / f"{i}.png")
    torch.save(small_classifier(tuple("abcdefg"), width=32).module.state_dict(), tmp_path / "weights.pth")
    torch.save(Net(num_classes=7).state_dict(), tmp_path / "own.pth")
    return tmp_path


NAMED = ("slimresnet18", "--weights", "weights.pth", "--image-size", "32")
OWN_FILE = Path(__file__).with_name("own_network.py")
OWN = (f"{OWN_FILE}:Net", "--weights", "own.pth", "--image-size", "32")  # which is smaller


def test_a_network_is_cut_and_quantized_on_photos_alone(folder: Path) -> None:
    for command in (
        ("prune", *OWN, "--data", "photos", "--rate", "0.2", "--round-to", "none"),
        ("quantize", "runs/prune", "--min-agreement", "0"),
        (
            "benchmark",
            "submission",
            "--data",
            "photos",
            "--restarts",
            "0",
            "--min-seconds",
            "0.02",
            "--backend",
            "torch",
        ),
        ("export", "submission", "--data", "photos"),
    ):
        result = slimkit(*command, "--threads", "1", cwd=folder)
        assert result.returncode == 0, result.stderr
        if command[0] == "quantize":
            assert "photos holds photos without classes" in result.stderr  # hence no accuracy
    metadata = json.loads((folder / "submission" / "model_metadata.json").read_text())
    assert "accuracy" not in metadata["figures"]
    assert metadata["figures"]["agreement_images"] == 36
    assert read_folder(folder / "submission").architecture.class_names == tuple("0123456")


def test_a_set_with_one_image_of_each_class_is_enough_to_quantize_with(folder: Path) -> None:
    for i, name in enumerate("abcdefg"):
        (folder / "few" / name).mkdir(parents=True)
        shutil.copy(folder / "photos" / f"{i}.png", folder / "few" / name)
    result = slimkit("quantize", *OWN, "--data", "few", "--min-agreement", "0", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "No accuracy was measured: no class has two images" in result.stderr
    result = slimkit(
        "score",
        "--data",
        "few",
        "--runs",
        "2",
        "--baseline-size",
        "1",
        "--baseline-latency",
        "1",
        "--baseline-accuracy",
        "50",
        "--threads",
        "1",
        "--min-accuracy",
        "0",
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((folder / "results.json").read_text())["images"] == 7
    assert "reads high" in result.stderr


def test_classes_come_from_a_file(folder: Path) -> None:
    (folder / "classes.txt").write_text("bee\nant\ncat\ndog\neel\nfox\ngnu\n\n")
    for data, output in (("photos", "a"), ("images", "b")):
        options = ("--classes", "classes.txt", "--data", data, "--scheme", "dynamic", "--min-agreement", "0")
        result = slimkit("quantize", *OWN, *options, "-o", output, cwd=folder)
        assert result.returncode == 0, result.stderr
        assert read_folder(folder / output).architecture.class_names[:3] == ("bee", "ant", "cat")


def test_a_zip_of_photos_is_the_same(folder: Path) -> None:
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for file in (folder / "photos").iterdir():
            archive.write(file, file.name)
    options = ("--data", "photos.zip", "--scheme", "dynamic", "--min-agreement", "0")
    result = slimkit("quantize", *OWN, *options, cwd=folder)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("train", "slimresnet18", "--width", "8"), "Training"),
        (("quantize", *NAMED, "--qat-epochs", "1"), "--qat-epochs"),
        (("quantize", *NAMED, "--max-drop", "1"), "--max-drop"),
        (("prune", *NAMED, "--finetune-epochs", "1"), "--finetune-epochs"),
        (("prune", *NAMED, "--max-drop", "1"), "--max-drop"),
        (("score", *NAMED), "Measuring accuracy"),
    ],
)
def test_what_needs_labels_says_so_before_any_work(folder: Path, command: tuple[str, ...], said: str) -> None:
    result = slimkit(*command, "--data", "photos", "-o", "out", cwd=folder)
    assert result.returncode == 1
    assert f"{said} takes labelled images; photos holds photos without classes" in result.stderr
    assert not (folder / "out").exists()


def test_an_own_network_on_photos_has_the_classes_of_its_weights_or_its_own(folder: Path) -> None:
    options = ("--data", "photos", "--image-size", "32", "--min-agreement", "0", "--scheme", "dynamic")
    for name, weights, classes in (("Net", ("--weights", "own.pth"), 7), ("Net", (), 10), ("NormLast", (), 3)):
        result = slimkit("quantize", f"{OWN_FILE}:{name}", *weights, *options, "-o", "out", "-f", cwd=folder)
        assert result.returncode == 0, result.stderr
        assert read_folder(folder / "out").architecture.num_classes == classes


@pytest.mark.parametrize(("content", "said"), [("a\nb\na\n", "'a' twice"), ("\n", "names no classes")])
def test_a_file_of_classes_names_each_once(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(DataError, match=said):
        read_class_names(tmp_path / "classes.txt")


def test_a_folder_has_classes_of_its_own(folder: Path) -> None:
    (folder / "classes.txt").write_text("a\nb\n")
    slimkit("train", "slimresnet18", "--width", "8", "--epochs", "0", "--data", "images", cwd=folder)
    result = slimkit("quantize", "runs/train", "--classes", "classes.txt", cwd=folder)
    assert result.returncode == 2
    assert "--classes" in result.stderr


def test_numbers_are_sorted_as_the_logits_are() -> None:
    assert numbered(3) == ("0", "1", "2")
    assert list(numbered(1000)) == sorted(numbered(1000))
