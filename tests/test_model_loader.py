"""The code that travels in a model folder: loading without slimkit, and the panel's command line."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from slimkit.core.folder import Classifier, write_folder

WEIGHTS = "compressed_resnet18.pth"
# Python with nothing but torch, Pillow and the standard library
ALONE = "import sys, runpy; sys.modules |= dict.fromkeys(('slimkit', 'torchvision', 'numpy', 'sklearn')); "


def _run_alone(folder: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    argv = [str(folder / "model_loader.py"), *map(str, arguments)]
    code = ALONE + f"sys.argv = {argv!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # threads that wait for one another crawl on a busy machine
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def _import_loader(folder: Path) -> ModuleType:
    """As a panel imports it, which scores many folders in one process."""
    spec = importlib.util.spec_from_file_location("model_loader", folder / "model_loader.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _answer(classifier: Classifier, file: Path) -> str:
    """The class that the model gives a 48x40 image, computed step by step with Pillow."""
    square = Image.open(file).resize((43, 36), Image.Resampling.BILINEAR).crop((6, 2, 38, 34))
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        logits = classifier.module(((pixels / 255 - mean) / std)[None])
    return classifier.architecture.class_names[int(logits.argmax())]


def test_the_panel_gets_true_figures(
    classifier: Classifier, model_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    done = _run_alone(
        model_folder,
        *("--data_dir", image_folder, "--baseline_size", 40, "--baseline_latency", 20, "--baseline_accuracy", 60),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    files = sorted((image_folder / "val").rglob("*.png"))
    correct = sum(_answer(classifier, file) == file.parent.name for file in files)
    assert (results["images"], results["correct"]) == (len(files), correct)
    assert results["accuracy"] == pytest.approx(100 * correct / len(files))
    assert results["model_size"] == pytest.approx((model_folder / WEIGHTS).stat().st_size / 1048576)
    assert 0 < results["latency_median"] <= results["latency_p90"]
    size_score, latency_score = 40 / results["model_size"], 20 / results["latency"]
    accuracy_score = results["accuracy"] / 60
    assert results["size_score"] == pytest.approx(size_score)
    assert results["latency_score"] == pytest.approx(latency_score)
    assert results["accuracy_score"] == pytest.approx(accuracy_score)
    expected = 0.3 * size_score + 0.3 * latency_score + 0.4 * accuracy_score
    assert results["total_score"] == pytest.approx(expected)
    assert "total_score" in done.stdout


def test_without_data_the_rest_is_measured(model_folder: Path, tmp_path: Path) -> None:
    done = _run_alone(model_folder, "--output_file", tmp_path / "new" / "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "new" / "r.json").read_text())
    assert results["accuracy"] is None
    assert results["total_score"] is None
    assert results["latency"] > 0


def _unknown_class(data: Path) -> None:
    (data / "val" / "bee").rename(data / "val" / "wasp")


def _empty_class(data: Path) -> None:
    for file in (data / "val" / "bee").iterdir():
        file.unlink()


def _damaged_image(data: Path) -> None:
    (data / "val" / "bee" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def _no_classes(data: Path) -> None:
    for folder in (data / "val").iterdir():
        folder.rename(data / folder.name)
    (data / "train").rename(data / "val" / ".hidden")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_unknown_class, "wasp: the model has no class of this name"),
        (_empty_class, "bee holds no images"),
        (_damaged_image, "1.png is not a readable image"),
        (_no_classes, "val holds no images"),
    ],
)
def test_bad_data_are_named_and_nothing_is_written(
    damage: Callable[[Path], None], message: str, model_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    damage(image_folder)
    loader = _import_loader(model_folder)
    architecture = json.loads((model_folder / "trained_pruned_architecture.json").read_text())
    with pytest.raises(ValueError, match=message):
        loader.measure_accuracy(loader.load_model(model_folder), architecture, image_folder)


def test_an_error_is_one_line_and_leaves_no_results(model_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    _damaged_image(image_folder)
    done = _run_alone(model_folder, "--data_dir", image_folder, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "1.png" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {"model", "images"}


def test_a_baseline_of_zero_is_refused(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="above 0"):
        _import_loader(model_folder).score(model_folder, None, 50.0, 0.0, 80.0)


def test_test_is_preferred_to_val_and_both_to_the_folder_itself(model_folder: Path, image_folder: Path) -> None:
    loader = _import_loader(model_folder)
    model = {"class_names": ["ant", "bee", "cat"]}
    assert len(loader.list_images(image_folder, model)[0]) == 12
    assert len(loader.list_images(image_folder / "train", model)[0]) == 36
    (image_folder / "train").rename(image_folder / "test")
    assert len(loader.list_images(image_folder, model)[0]) == 36
    files, _ = loader.list_images(image_folder / "val", {"class_names": ["cat", "bee", "ant"]})
    assert files[0][1] == 2  # ant's place in the model


def test_two_folders_in_one_process_keep_their_own_code(classifier: Classifier, tmp_path: Path) -> None:
    first = write_folder(classifier, tmp_path / "first").folder
    second = write_folder(classifier, tmp_path / "second").folder
    assert first is not None
    assert second is not None
    with (second / "model.py").open("a") as file:
        file.write("\nOWNER = 'second'\n")
    _sign(second)
    sys.modules["model"] = ModuleType("model")  # what another's code left behind
    try:
        models = [_import_loader(folder).load_model(folder) for folder in (first, second)]
    finally:
        del sys.modules["model"]
    owners = [getattr(sys.modules[type(model).__module__], "OWNER", "first") for model in models]
    assert owners == ["first", "second"]


def _sign(folder: Path, change: Callable[[dict[str, Any]], None] = lambda metadata: None) -> None:
    """Make the metadata true again, as one who edits a folder on purpose would, then `change` them."""
    metadata = json.loads((folder / "model_metadata.json").read_text())
    for name in metadata["sha256"]:
        metadata["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    change(metadata)
    (folder / "model_metadata.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=4), "format_version"),
        (lambda m: m.pop("files"), "'files'"),
        (lambda m: m.update(files=[]), "'files'"),
        (lambda m: m["files"].pop("weights"), "'files'"),
        (lambda m: m["files"].update(weights={"a": 1}), "'sha256'"),
        (lambda m: m.pop("sha256"), "'sha256'"),
        (lambda m: m["sha256"].pop(WEIGHTS), "'sha256'"),
        (lambda m: m["sha256"].update({"../other": "0"}), "plain name"),
        (lambda m: m["sha256"].update({WEIGHTS: None}), "changed or damaged"),
    ],
)
def test_metadata_that_are_wrong_name_the_field(
    change: Callable[[dict[str, Any]], None], message: str, model_folder: Path
) -> None:
    _sign(model_folder, change)
    with pytest.raises(ValueError, match=message):
        _import_loader(model_folder).load_model(model_folder)


def test_weights_of_another_type_name_the_layer(model_folder: Path) -> None:
    state = torch.load(model_folder / WEIGHTS, weights_only=True)
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].to(torch.int8)
    torch.save(state, model_folder / WEIGHTS)
    _sign(model_folder)
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1\.weight.*int8"):
        _import_loader(model_folder).load_model(model_folder)


def test_an_architecture_without_a_field_names_it(model_folder: Path) -> None:
    file = model_folder / "trained_pruned_architecture.json"
    architecture = json.loads(file.read_text())
    del architecture["layers"]
    file.write_text(json.dumps(architecture))
    _sign(model_folder)
    with pytest.raises(ValueError, match=r"trained_pruned_architecture\.json: .*'layers'"):
        _import_loader(model_folder).load_model(model_folder)


def test_what_is_no_folder_is_named(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere lacks the file model_metadata\.json"):
        _import_loader(model_folder).load_model(tmp_path / "nowhere")
