"""What is kept on disk is found once, and is never another thing than what would be found now."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import short_classifier
from numpy.typing import NDArray

from slimkit.core.folder import write_folder
from slimkit.core.options import PruneOptions
from slimkit.core.shelf import Shelf
from slimkit.core.stages import run_prune


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setenv("SLIMKIT_CACHE", str(tmp_path / "cache"))
    return Shelf("things", most=1000)


def counting(calls: list[str], value: float = 1.0) -> Callable[[], NDArray[np.float32]]:
    def find() -> NDArray[np.float32]:
        calls.append("found")
        return np.full((2, 3), value, np.float32)

    return find


def test_what_depends_on_the_same_is_found_once(shelf: Shelf) -> None:
    calls: list[str] = []
    for _ in range(3):
        assert np.array_equal(shelf.get("a", (2, 3), np.float32, counting(calls)), np.ones((2, 3)))
    assert len(calls) == 1
    assert shelf.get("b", (2, 3), np.float32, counting(calls, 2.0))[0, 0] == 2.0
    assert len(calls) == 2


@pytest.mark.parametrize("damage", [b"", b"no numbers at all", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_made_again(shelf: Shelf, damage: bytes) -> None:
    calls: list[str] = []
    shelf.get("a", (2, 3), np.float32, counting(calls))
    (file,) = shelf.folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage)
    shelf.get("a", (2, 3), np.float32, counting(calls))
    assert len(calls) == 2
    assert file.read_bytes() == whole


def test_an_array_of_another_shape_is_none_of_these(shelf: Shelf) -> None:
    calls: list[str] = []
    shelf.get("a", (2, 3), np.float32, counting(calls))
    (file,) = shelf.folder.iterdir()
    np.save(file, np.zeros((2, 4), np.float32))
    assert shelf.get("a", (2, 3), np.float32, counting(calls)).shape == (2, 3)
    assert len(calls) == 2


def test_those_that_were_not_used_for_longest_go_first(shelf: Shelf) -> None:
    calls: list[str] = []
    size = 128 + 6 * 4  # of a file
    for age, name in enumerate("abcdef"):
        shelf.get(name, (2, 3), np.float32, counting(calls))
        newest = max(shelf.folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, (0, 1000 + age))
    shelf.get("a", (2, 3), np.float32, counting(calls))  # is of use
    shelf.get("g", (2, 3), np.float32, counting(calls))
    assert sum(file.stat().st_size for file in shelf.folder.iterdir()) <= shelf.most < 7 * size
    found = len(calls)
    for name in "ag":
        shelf.get(name, (2, 3), np.float32, counting(calls))
    assert len(calls) == found
    shelf.get("b", (2, 3), np.float32, counting(calls))
    assert len(calls) == found + 1


def test_where_nothing_can_be_kept_it_is_given_all_the_same(
    shelf: Shelf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert shelf.get("a", (2, 3), np.float32, counting([])).sum() == 6
    assert "not kept" in caplog.text


def test_another_budget_finds_the_scores_and_the_cut_is_as_if_they_were_measured(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(short_classifier(), tmp_path / "model")

    def cut(name: str, cache: str, params: float) -> bytes:
        monkeypatch.setenv("SLIMKIT_CACHE", str(tmp_path / cache))
        common = {"model": str(tmp_path / "model"), "data": str(image_folder), "round_to": "none"}
        run_prune(PruneOptions(**common, output=tmp_path / name, params=params))
        (weights,) = (tmp_path / name).glob("*.pth")
        return weights.read_bytes()

    cut("half", "one", 0.5)
    kept = [file.stat().st_mtime_ns for file in (tmp_path / "one" / "channel-scores").iterdir()]
    assert len(kept) == 1
    assert cut("less", "one", 0.7) == cut("alone", "another", 0.7)
    assert len(list((tmp_path / "one" / "channel-scores").iterdir())) == 1
