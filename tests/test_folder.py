"""Model folders: what is written is read again, and what was damaged is found and named."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimkit.core.errors import FolderError
from slimkit.core.folder import ARCHITECTURE, METADATA, Classifier, read_folder, write_folder

WEIGHTS = "compressed_resnet18.pth"


def _sign_again(folder: Path) -> None:
    """Write the true sha256 of each file into the metadata, as one who edits a folder on purpose would."""
    metadata = json.loads((folder / METADATA).read_text())
    for name in metadata["sha256"]:
        metadata["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    for name in (METADATA, "metadata.json"):
        (folder / name).write_text(json.dumps(metadata))


def _edit_architecture(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((folder / ARCHITECTURE).read_text())
    change(data)
    (folder / ARCHITECTURE).write_text(json.dumps(data))
    _sign_again(folder)


def test_a_folder_has_the_files_of_the_contract(model_folder: Path) -> None:
    assert {file.name for file in model_folder.iterdir()} == {
        WEIGHTS,
        ARCHITECTURE,
        METADATA,
        "metadata.json",
        "model.py",
        "model_loader.py",
        "requirements.txt",
        "README.md",
    }
    assert (model_folder / METADATA).read_bytes() == (model_folder / "metadata.json").read_bytes()


def test_metadata_hold_the_sha256_of_every_other_file(model_folder: Path) -> None:
    sums = json.loads((model_folder / METADATA).read_text())["sha256"]
    assert set(sums) == {f.name for f in model_folder.iterdir()} - {METADATA, "metadata.json"}
    for name, value in sums.items():
        assert value == hashlib.sha256((model_folder / name).read_bytes()).hexdigest()


def test_what_is_read_gives_the_logits_of_what_was_written(classifier: Classifier, model_folder: Path) -> None:
    again = read_folder(model_folder)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.module(images), classifier.module(images))
    assert again.architecture == classifier.architecture
    assert not again.module.training


def test_the_weights_are_plain_tensors(model_folder: Path) -> None:
    state = torch.load(model_folder / WEIGHTS, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_nothing_is_overwritten_without_force(classifier: Classifier, model_folder: Path) -> None:
    before = (model_folder / METADATA).read_bytes()
    with pytest.raises(FolderError, match="exists already"):
        write_folder(classifier, model_folder)
    assert (model_folder / METADATA).read_bytes() == before
    write_folder(classifier, model_folder, force=True, figures={"accuracy": 12.0})
    assert json.loads((model_folder / METADATA).read_text())["figures"] == {"accuracy": 12.0}


def test_force_replaces_model_folders_only(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    with pytest.raises(FolderError, match="not a model folder"):
        write_folder(classifier, tmp_path / "thesis", force=True)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "precious"


def test_a_failed_write_leaves_nothing_behind(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_folder(classifier, tmp_path / "model", figures={"accuracy": object()})
    assert list(tmp_path.iterdir()) == []


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="There is no folder"):
        read_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [WEIGHTS, ARCHITECTURE, METADATA, "model.py"])
def test_a_missing_file_is_named(model_folder: Path, name: str) -> None:
    (model_folder / name).unlink()
    with pytest.raises(FolderError, match=name.replace(".", r"\.")):
        read_folder(model_folder)


@pytest.mark.parametrize("damage", ["truncated", "flipped bit"])
def test_damaged_weights_fail_their_sum(model_folder: Path, damage: str) -> None:
    content = bytearray((model_folder / WEIGHTS).read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    (model_folder / WEIGHTS).write_bytes(content)
    with pytest.raises(FolderError, match=f"{WEIGHTS}.*sha256|sha256.*{WEIGHTS}"):
        read_folder(model_folder)


def test_weights_of_another_shape_name_the_layer(model_folder: Path) -> None:
    state = torch.load(model_folder / WEIGHTS, weights_only=True)
    state["layer2.0.conv1.weight"] = state["layer2.0.conv1.weight"][:-1]
    torch.save(state, model_folder / WEIGHTS)
    _sign_again(model_folder)
    with pytest.raises(FolderError, match=r"layer2\.0\.conv1"):
        read_folder(model_folder)


def test_a_missing_tensor_names_the_layer(model_folder: Path) -> None:
    state = torch.load(model_folder / WEIGHTS, weights_only=True)
    del state["layer3.1.bn2.weight"]
    torch.save(state, model_folder / WEIGHTS)
    _sign_again(model_folder)
    with pytest.raises(FolderError, match=r"layer3\.1\.bn2"):
        read_folder(model_folder)


def test_an_unknown_layer_is_named(model_folder: Path) -> None:
    _edit_architecture(model_folder, lambda data: data["layers"][3].update(name="layer9.conv"))
    with pytest.raises(FolderError, match=r"layer9\.conv"):
        read_folder(model_folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_classes", "three"), ("class_names", "ant"), ("layers", {}), ("input_shape", [3, 32.5, 32]), ("nonsense", 1)],
)
def test_a_field_of_a_wrong_type_is_named(model_folder: Path, field: str, value: object) -> None:
    _edit_architecture(model_folder, lambda data: data.update({field: value}))
    with pytest.raises(FolderError, match=field):
        read_folder(model_folder)


def test_an_architecture_that_is_no_json_is_named(model_folder: Path) -> None:
    (model_folder / ARCHITECTURE).write_text("{ not json")
    _sign_again(model_folder)
    with pytest.raises(FolderError, match=ARCHITECTURE):
        read_folder(model_folder)


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def test_code_in_a_pickle_is_never_executed(model_folder: Path, tmp_path: Path) -> None:
    torch.save({"conv1.weight": _Bomb(tmp_path / "executed")}, model_folder / WEIGHTS)
    _sign_again(model_folder)
    with pytest.raises(FolderError, match=WEIGHTS):
        read_folder(model_folder)
    assert not (tmp_path / "executed").exists()
    (model_folder / WEIGHTS).write_bytes(pickle.dumps(_Bomb(tmp_path / "executed")))
    _sign_again(model_folder)
    with pytest.raises(FolderError, match=WEIGHTS):
        read_folder(model_folder)
    assert not (tmp_path / "executed").exists()


def test_a_moved_folder_loads_without_slimkit(classifier: Classifier, model_folder: Path, tmp_path: Path) -> None:
    moved = model_folder.rename(tmp_path / "elsewhere")
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    with torch.no_grad():
        torch.save((images, classifier.module(images)), tmp_path / "expected.pt")
    code = (
        "import sys, torch\n"
        f"sys.path.insert(0, {str(moved)!r})\n"
        "from model_loader import load_model\n"
        f"images, expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        f"assert torch.equal(load_model({str(moved)!r})(images), expected)\n"
        f"assert torch.equal(load_model({str(moved / WEIGHTS)!r})(images), expected)\n"
        "assert not any(name.startswith('slimkit') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd="/", check=True)
