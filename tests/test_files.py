"""Files and folders are there whole or not at all, whenever the process is stopped."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slimkit.core import files
from slimkit.core.data import open_dataset, write_image_folder
from slimkit.core.errors import FolderError
from slimkit.core.files import recover_folder, staged_folder, write_atomically
from slimkit.core.folder import Classifier, read_folder, write_folder


def write(path: Path, text: str) -> None:
    with staged_folder(path) as staging:
        (staging / "file").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["in one step", "in two steps"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system that can exchange two names, and as on one that can't."""
    if request.param == "in two steps":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)


@pytest.mark.usefixtures("either_way")
def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write(tmp_path / "folder", text)
        assert (tmp_path / "folder/file").read_text() == text
        assert names(tmp_path) == ["folder"]


@pytest.mark.usefixtures("either_way")
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder").symlink_to("elsewhere")
    (tmp_path / "text").symlink_to("elsewhere.txt")
    write(tmp_path / "folder", "new")
    write_atomically(tmp_path / "text", "new")
    assert (tmp_path / "elsewhere/file").read_text() == (tmp_path / "elsewhere.txt").read_text() == "new"
    assert names(tmp_path) == ["elsewhere", "elsewhere.txt", "folder", "text"]


@pytest.mark.usefixtures("either_way")
def test_what_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    write(tmp_path / "folder", "old")
    with pytest.raises(TypeError):
        write(tmp_path / "folder", 5)  # type: ignore[arg-type]  # it fails after the folder was begun
    assert (tmp_path / "folder/file").read_text() == "old"
    assert names(tmp_path) == ["folder"]


STOPPED = """
import os, signal, sys
from pathlib import Path
from slimkit.core import files
files._exchange = lambda one, other: False
rename, count = Path.rename, 0
def stopped(self, target):
    global count
    count += 1
    if count == 2:
        os.kill(os.getpid(), int(sys.argv[1]))
    return rename(self, target)
Path.rename = stopped
with files.staged_folder(Path("folder")) as staging:
    (staging / "file").write_text("new")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stop_between_two_renames_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    write(tmp_path / "folder", "old")
    command = [sys.executable, "-c", STOPPED, str(int(number))]
    process = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.returncode != 0
    recover_folder(tmp_path / "folder")
    assert (tmp_path / "folder/file").read_text() in ("old", "new")
    write(tmp_path / "folder", "newest")
    assert (tmp_path / "folder/file").read_text() == "newest"
    assert ".folder.old" not in names(tmp_path)


def test_a_model_that_lost_its_name_is_read_again(classifier: Classifier, tmp_path: Path) -> None:
    path = write_folder(classifier, tmp_path / "model").folder or tmp_path
    path.rename(tmp_path / ".model.old")
    assert read_folder(path).architecture == classifier.architecture
    assert names(tmp_path) == ["model"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_access_is_named(tmp_path: Path, classifier: Classifier) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(FolderError, match="closed takes no files"):
        write_folder(classifier, tmp_path / "closed" / "model")


def test_a_damaged_model_folder_is_not_replaced(classifier: Classifier, model_folder: Path) -> None:
    (model_folder / "model_metadata.json").write_text("{")
    with pytest.raises(FolderError, match="no whole model folder"):
        write_folder(classifier, model_folder, force=True)


def test_images_replace_none_but_images_of_its_own(image_folder: Path, tmp_path: Path) -> None:
    data = open_dataset(str(image_folder), image_size=16)
    with pytest.raises(FolderError, match="not written by slimkit"):
        write_image_folder(data.test, data.class_names, image_folder / "val", force=True)
    out = tmp_path / "out"
    for _ in range(2):
        write_image_folder(data.test, data.class_names, out, force=True)
    assert len(open_dataset(str(out), image_size=16).train.labels) > 0
    (out / "ant" / "mine.png").write_bytes(b"mine")
    with pytest.raises(FolderError, match=r"mine\.png"):
        write_image_folder(data.test, data.class_names, out, force=True)
