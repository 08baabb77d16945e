"""What a stranger's model folder may say: each lie ends in an error that names it, before code or memory is taken."""

import copy
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_classifier
from torch import nn

import slimkit
from slimkit.core.errors import FolderError, ModelError, SlimkitError
from slimkit.core.export import to_onnx
from slimkit.core.folder import Classifier, read_folder, write_folder
from slimkit.core.models.checkpoint import read_checkpoint
from slimkit.core.models.lineage import find_baseline
from slimkit.core.quantization.convert import quantize
from slimkit.standalone.model import CALLS, Int8Network, build_model, check_network

ARCHITECTURE, METADATA, WEIGHTS = "trained_pruned_architecture.json", "model_metadata.json", "compressed_resnet18.pth"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def quantized() -> Classifier:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return quantize(small_classifier(("ant", "bee", "cat")), scheme="static", calibration=[images]).classifier


@pytest.fixture
def folder(quantized: Classifier, tmp_path: Path) -> Path:
    return write_folder(quantized, tmp_path / "model").folder or tmp_path


def rewrite(folder: Path, change: Callable[[Json], object]) -> None:
    """Change the architecture, and hash it anew as a stranger would."""
    architecture = json.loads((folder / ARCHITECTURE).read_text())
    change(architecture)
    replace(folder, ARCHITECTURE, json.dumps(architecture).encode())


def replace(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    metadata = json.loads((folder / METADATA).read_text())
    metadata["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder / METADATA).write_text(json.dumps(metadata))


def refusal(folder: Path) -> str:
    with pytest.raises(FolderError) as error:
        read_folder(folder)
    assert "report" not in str(error.value)
    return str(error.value)


def layer(kind: str, architecture: Json) -> Json:
    found: Json = next(entry for entry in architecture["layers"] if entry["type"] == kind)
    return found


def set_function(name: str, *arguments: object) -> Callable[[Json], object]:
    def change(architecture: Json) -> None:
        entry = layer("Flatten", architecture)
        entry["type"], entry["options"] = "Function", {"function": name, "arguments": list(arguments)}

    return change


@pytest.mark.parametrize(
    "name",
    [
        *("operator.attrgetter", "operator.call", "operator.methodcaller", "Tensor.__reduce__", "Tensor.register_hook"),
        *("functional.__builtins__", "slimkit.__class__", "Tensor.new_empty", "functional.dropout", "eval", ""),
    ],
)
def test_a_function_that_is_not_on_the_list_is_refused_by_its_layers_name(folder: Path, name: str) -> None:
    rewrite(folder, set_function(name, {"input": 0}))
    assert "avgpool" in refusal(folder) or "flatten" in refusal(folder)


@pytest.mark.parametrize(
    "arguments",
    [
        ("functional.relu", {"input": 7}),
        ("functional.relu", {"input": 0}, True, 5),
        ("functional.relu", "x"),
        ("Tensor.reshape", {"input": 0}, [10**9, 10**9]),
        ("Tensor.reshape", {"input": 0}, "abc"),
        ("Tensor.repeat", {"input": 0}, 1, 10**9),
        ("functional.interpolate", {"input": 0}, [10**6, 10**6]),
        ("functional.pad", {"input": 0}, [10**9, 10**9]),
        ("operator.getitem", {"input": 0}, {"slice": ["__class__", 1, 1]}),
        ("operator.pow", {"input": 0}, 10**400),
    ],
    ids=str,
)
def test_arguments_that_a_function_can_not_have_are_refused(folder: Path, arguments: tuple[Any, ...]) -> None:
    rewrite(folder, set_function(*arguments))
    refusal(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: layer("QuantizedConv2d", a).update(out_channels=0), "out_channels"),
        (lambda a: layer("QuantizedConv2d", a).update(out_channels=-5), "out_channels"),
        (lambda a: layer("QuantizedConv2d", a).update(out_channels=2**40), "out_channels"),
        (lambda a: layer("QuantizedConv2d", a).update(kernel_size=[1, 1, 1]), "kernel_size"),
        (lambda a: layer("QuantizedConv2d", a).update(stride=[0, 0]), "stride"),
        (lambda a: layer("QuantizedConv2d", a).update(groups="2"), "groups"),
        (lambda a: layer("QuantizedLinear", a).update(in_channels=2**24, out_channels=2**24), "GiB"),
        (lambda a: layer("QuantizedLinear", a).update(activation="eval"), "activation"),
        (lambda a: a["layers"][3].update(inputs=[a["layers"][5]["name"]]), "inputs"),
        (lambda a: a["layers"][3].update(name=a["layers"][2]["name"]), "name"),
        (lambda a: a["layers"][3].update(name="a" * 10_000), "name"),
        (lambda a: a.update(layers=[]), "layers"),
        (lambda a: a.update(num_classes=0), "num_classes"),
        (lambda a: a.update(num_classes=10**12), "class_names"),
        (lambda a: a.update(class_names=["ant"]), "class_names"),
        (lambda a: a.update(class_names=["ant", "ant", "ant"]), "class_names"),
        (lambda a: a.pop("class_names"), "class_names"),
        (lambda a: a.update(input_shape=[3, 10**9, 10**9]), "input_shape"),
        (lambda a: a["preprocessing"].update(crop=64, resize=32), "crop"),
        (lambda a: a["preprocessing"].update(interpolation="magic"), "interpolation"),
        (lambda a: a["preprocessing"].update(std=[0.0, 1.0, 1.0]), "std"),
        (lambda a: a["preprocessing"].update(resize=10**9, crop=10**9), "resize"),
    ],
)
def test_what_an_architecture_can_not_say_is_named(folder: Path, change: Callable[[Json], object], named: str) -> None:
    rewrite(folder, change)
    assert named in refusal(folder)


SURPRISES = [
    None,
    0,
    -1,
    1,
    2**63,
    0.5,
    True,
    "",
    "relu",
    "Tensor.mean",
    [],
    {},
    [[1]],
    {"input": 0},
    {"slice": [1, 2, 3]},
]


def change_at_random(folder: Path, times: int, values: list[Any]) -> None:
    """Put random values at random places of the architecture, many times; what is built after one gives logits."""
    original = (folder / ARCHITECTURE).read_bytes()
    draws = random.Random(0)
    for _ in range(times):
        architecture = json.loads(original)
        for _ in range(draws.randint(1, 3)):
            place: Any = architecture
            while True:
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                key = draws.choice(keys)
                if not isinstance(place[key], dict | list) or not place[key] or draws.random() < 0.2:
                    break
                place = place[key]
            place[key] = copy.deepcopy(draws.choice(values))
        replace(folder, ARCHITECTURE, json.dumps(architecture).encode())
        try:
            classifier = read_folder(folder)
        except SlimkitError:
            continue
        with torch.no_grad():
            logits = classifier.module(torch.zeros(1, *classifier.architecture.input_shape))
        assert logits.shape == (1, classifier.architecture.num_classes)


def test_any_change_of_an_architecture_ends_in_a_network_or_a_clear_error(folder: Path) -> None:
    change_at_random(folder, 150, SURPRISES)


def test_an_architecture_that_makes_no_onnx_graph_is_refused(folder: Path) -> None:
    rewrite(folder, lambda a: a.update(output_shape=[7]))
    with pytest.raises(ModelError, match="no valid ONNX graph"):
        to_onnx(read_folder(folder))


def test_a_key_that_is_given_twice_is_refused(folder: Path) -> None:
    text = (folder / ARCHITECTURE).read_text().replace('"num_classes": 3', '"num_classes": 9, "num_classes": 3')
    replace(folder, ARCHITECTURE, text.encode())
    assert "twice" in refusal(folder)


def test_layers_that_the_weights_file_can_not_fill_take_no_memory(folder: Path) -> None:
    big = {"name": "big", "type": "Constant", "inputs": [], "options": {"shape": [2**14, 2**15]}}
    rewrite(folder, lambda a: a["layers"].insert(0, big))
    assert "bytes of weights; the weights file holds" in refusal(folder)


def test_weights_of_a_named_network_are_bounded(tmp_path: Path) -> None:
    names = {"a"}
    torch.save({"a": torch.zeros(1).expand(2**31, 16)}, tmp_path / "repeated.pth")
    with pytest.raises(FolderError, match="would take"):
        read_checkpoint(tmp_path / "repeated.pth", names)
    torch.save({"a": torch.zeros(2**23)}, tmp_path / "zeros.pth")
    with (
        zipfile.ZipFile(tmp_path / "zeros.pth") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    with pytest.raises(FolderError, match="would unpack"):
        read_checkpoint(tmp_path / "bomb.pth", names)
    assert len(read_checkpoint(tmp_path / "zeros.pth", names)["a"]) == 2**23


def test_a_worker_runs_the_slimkit_that_its_parent_runs(tmp_path: Path) -> None:
    """A copy in the current folder, as `python -c` and notebooks find it, beside another that is installed."""
    root = Path(slimkit.__file__).parents[1]
    shutil.copytree(root / "slimkit", tmp_path / "slimkit", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import subprocess, sys, slimkit; from slimkit.core.measure.processes import worker_environment as made\n"
        "ask = [sys.executable, '-c', 'import slimkit; print(slimkit.__file__)']\n"
        "print(slimkit.__file__); sys.stdout.flush(); subprocess.run(ask, cwd='/', env=made(1), check=True)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert shown.stdout.split() == [str(tmp_path / "slimkit" / "__init__.py")] * 2, shown.stderr


@pytest.mark.parametrize("text", ["[" * 100_000, '{"layers": NaN}', "{", "", "5", "\x00"])
def test_json_that_is_none_is_refused(folder: Path, text: str) -> None:
    replace(folder, ARCHITECTURE, text.encode())
    assert ARCHITECTURE in refusal(folder)


class Harmful:
    """A pickle that would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.file, "run"))


def test_a_pickle_is_never_executed(folder: Path, tmp_path: Path) -> None:
    torch.save({"conv1.weight": Harmful(tmp_path / "run")}, tmp_path / "w.pth")
    replace(folder, WEIGHTS, (tmp_path / "w.pth").read_bytes())
    assert WEIGHTS in refusal(folder)
    replace(folder, WEIGHTS, pickle.dumps(Harmful(tmp_path / "run")))
    assert "no weights file" in refusal(folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [b"", b"http://example.org/weights.pth\n", b"PK\x03\x04 damaged", b"\x80\x02}q\x00."]
)
def test_what_is_no_weights_file_is_called_so(folder: Path, content: bytes) -> None:
    replace(folder, WEIGHTS, content)
    assert WEIGHTS in refusal(folder)


def test_weights_under_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    torch.save({5: torch.zeros(1)}, tmp_path / "w.pth")
    replace(folder, WEIGHTS, (tmp_path / "w.pth").read_bytes())
    assert "under 5" in refusal(folder)


def test_weights_that_unpack_to_more_than_the_architecture_has_are_refused(folder: Path, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(30 * 2**18)}, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    replace(folder, WEIGHTS, (tmp_path / "bomb.pth").read_bytes())
    assert "compressed" in refusal(folder)
    replace(folder, WEIGHTS, (tmp_path / "w.pth").read_bytes())
    assert "bytes of weights" in refusal(folder)


@pytest.mark.parametrize(
    "base", [{"folder": 5}, {"folder": "/etc"}, {"weights_sha256": 5}, {"weights_sha256": "0" * 64}]
)
def test_a_baseline_that_a_folder_names_is_not_followed(folder: Path, base: Json) -> None:
    rewrite(folder, lambda a: a.update(base={"name": "resnet18", **base}))
    assert find_baseline(read_folder(folder)) is None


def test_a_written_folder_names_no_path_of_this_machine(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.suffix in (".json", ".md", ".txt"):
            assert str(tmp_path) not in file.read_text(), file.name


def test_a_layer_that_is_too_large_to_compute_is_refused() -> None:
    entry = {"name": "a", "type": "Function", "inputs": ["input"]}
    entry["options"] = {"function": "Tensor.repeat", "arguments": [{"input": 0}, 1, 8, 8, 8]}
    layers = [entry, {**entry, "name": "b", "inputs": ["a"]}]
    architecture = {"layers": layers, "num_classes": 2, "model_type": "x", "input_shape": [3, 64, 64]}
    network = build_model(architecture)
    assert isinstance(network, Int8Network)
    with pytest.raises(ValueError, match="'b'"):
        check_network(network, [3, 64, 64], 2)


def test_every_function_on_the_list_is_a_plain_function_of_tensors() -> None:
    for name, call in CALLS.items():
        assert not name.endswith("_"), name
        assert callable(call.function)
    assert not any(isinstance(call.function, type | nn.Module) for call in CALLS.values())
