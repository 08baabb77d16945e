"""A full disk and a read-only one: a clear error, and nothing half written."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slimkit.cli.app import main


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; the smallest model here has 700 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def _train(images: Path, output: Path) -> int:
    options = ["--width", "8", "--epochs", "0", "--image-size", "32", "--data", str(images), "-o", str(output)]
    return main(["train", "slimresnet18", *options])


def test_a_full_disk_is_named_and_left_as_it_was(
    small_disk: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "precious").write_text("kept")
    assert _train(image_folder, small_disk / "model") == 1
    error = capsys.readouterr().err
    assert "disk" in error
    assert str(small_disk) in error
    assert "hint: " in error
    assert [file.name for file in small_disk.iterdir()] == ["precious"]


def test_a_read_only_disk_is_named(small_disk: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert _train(image_folder, small_disk / "model") == 1
    error = capsys.readouterr().err
    assert str(small_disk) in error
    assert "hint: " in error
    assert list(small_disk.iterdir()) == []
