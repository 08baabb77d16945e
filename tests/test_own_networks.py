"""Networks of the user's own as model arguments: what stands in a file or a package goes through the whole chain."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import unsettled
from own_network import Heads, Net
from test_cli_chain import slimkit, write_images

from slimkit.core.architecture import IMAGENET_MEAN, Preprocessing
from slimkit.core.errors import ModelError, UsageError
from slimkit.core.folder import Classifier, read_folder, write_folder
from slimkit.core.models.own import build_own, is_own, own_base, parse_arguments
from slimkit.core.models.resolve import as_classifier
from slimkit.core.pruning.prune import prune
from slimkit.core.quantization.convert import quantize

FILE = str(Path(__file__).with_name("own_network.py"))
CLASSES = ("ant", "bee", "cat")
LOAD = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import model_loader
model = model_loader.load_model(sys.argv[1])
torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
assert not {"slimkit", "torchvision", "own_network"} & set(sys.modules)
"""


def classifier() -> tuple[Net, Classifier]:
    torch.manual_seed(0)
    module = unsettled(Net(num_classes=3)).eval()
    assert isinstance(module, Net)
    return module, as_classifier(module, CLASSES, Preprocessing(36, 32), model=f"{FILE}:Net")


def images(count: int = 5, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_a_folder_gives_the_networks_own_bits_without_slimkit_and_its_code(tmp_path: Path) -> None:
    module, made = classifier()
    write_folder(made, tmp_path / "model")
    torch.save(images(), tmp_path / "images.pt")
    places = [str(tmp_path / name) for name in ("model", "images.pt", "logits.pt")]
    subprocess.run([sys.executable, "-c", LOAD, *places], check=True, cwd=tmp_path)
    with torch.no_grad():
        wanted = module(images())
    assert torch.equal(torch.load(places[2]), wanted)
    assert "torchvision" not in (tmp_path / "model" / "requirements.txt").read_text()
    assert str(Path(FILE).parent) not in (tmp_path / "model" / "trained_pruned_architecture.json").read_text()


def test_a_folder_keeps_names_parameters_and_other_sizes_of_images(tmp_path: Path) -> None:
    module, made = classifier()
    write_folder(made, tmp_path / "model")
    read = read_folder(tmp_path / "model").module
    counted = {name for name in module.state_dict() if name.endswith("num_batches_tracked")}
    assert read.state_dict().keys() == module.state_dict().keys() - counted
    assert {name for name, _ in read.named_parameters()} == {name for name, _ in module.named_parameters()}
    with torch.no_grad():
        assert torch.equal(read(images(2, 48)), module(images(2, 48)))


def test_a_folder_is_trained_as_the_network_is(tmp_path: Path) -> None:
    module, made = classifier()
    write_folder(made, tmp_path / "model")
    read = read_folder(tmp_path / "model").module
    for network in (module, read):
        network.train()
        torch.manual_seed(0)  # of dropout
        network(images()).square().sum().backward()
    gradients = dict(read.named_parameters())
    for name, parameter in module.named_parameters():
        assert torch.allclose(gradients[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)
    assert torch.allclose(read.get_buffer("stem.1.running_mean"), module.get_buffer("stem.1.running_mean"))


def test_a_folder_is_cut_written_and_cut_again(tmp_path: Path) -> None:
    _, made = classifier()
    for round_ in range(2):
        write_folder(made, tmp_path / f"{round_}")
        before = read_folder(tmp_path / f"{round_}")
        result = prune(before, rate=0.25)
        assert result.report.difference < 1e-4
        assert result.classifier.architecture.parameters < before.architecture.parameters
        made = result.classifier
    first = next(layer for layer in made.architecture.layers if layer.name == "stem.0")
    assert first.width_before == 16
    assert first.out_channels == made.module.get_parameter("stem.0.weight").shape[0] < 16


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_a_folder_is_quantized(scheme: str, tmp_path: Path) -> None:
    module, made = classifier()
    write_folder(made, tmp_path / "float")
    calibration = [images(32)] if scheme == "static" else None
    quantized = quantize(read_folder(tmp_path / "float"), scheme=scheme, calibration=calibration).classifier
    write_folder(quantized, tmp_path / "int8")
    assert quantized.architecture.format_version == 1
    with torch.no_grad():
        wanted, given = module(images()), read_folder(tmp_path / "int8").module(images())
    assert torch.nn.functional.cosine_similarity(wanted.flatten(), given.flatten(), dim=0) > 0.99


def test_the_whole_chain_from_a_file(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    data = ("--data", "images", "--image-size", "32", "--threads", "1")
    model_args = json.dumps({"width": 8})
    for command in (
        ("train", f"{FILE}:Net", "--model-args", model_args, "--epochs", "2", "--batch-size", "8", *data),
        ("prune", "--rate", "0.25", "--round-to", "none"),
        ("quantize", "runs/prune", "--min-agreement", "0"),
        ("score", "--runs", "3"),
        ("inspect", "submission"),
    ):
        result = slimkit(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    architecture = json.loads((tmp_path / "submission" / "trained_pruned_architecture.json").read_text())
    assert architecture["base"]["name"] == "own_network.py:Net"
    assert (tmp_path / "submission" / "compressed_net.pth").is_file()


def test_weights_of_an_own_network_are_read_from_a_checkpoint(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    torch.manual_seed(0)
    module = unsettled(Net(num_classes=3))
    torch.save({"state_dict": {f"module.{key}": t for key, t in module.state_dict().items()}}, tmp_path / "best.pth")
    options = ("--weights", "best.pth", "--data", "images", "--image-size", "32", "--round-to", "none", "--rate", "0.1")
    result = slimkit("prune", f"{FILE}:Net", *options, "--no-reconstruct", "-o", "cut", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    head = read_folder(tmp_path / "cut").module.get_parameter("head.bias")
    assert torch.equal(head, module.head.bias)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nowhere.py:Net", "no file nowhere.py"),
        (f"{FILE}:Nett", "nothing called Nett"),
        (f"{FILE}:NUMBER", "int, no class or function"),
        (f"{FILE}:broken", "KeyError: 'checkpoint'"),
        (f"{FILE}:tiny", "missing 1 required positional argument: 'classes'"),
        ("no_such_package.nets:Net", "No module named 'no_such_package'"),
        ("collections:OrderedDict", "gives a OrderedDict, no torch.nn.Module"),
    ],
)
def test_what_gives_no_network_is_named(model: str, said: str) -> None:
    with pytest.raises((UsageError, ModelError)) as error:
        build_own(model, 3, {})
    assert said in str(error.value)
    assert error.value.hint


def test_code_that_does_not_run_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\nx = 1 / 0\n")
    with pytest.raises(ModelError, match=r"net.py:2: ZeroDivisionError"):
        build_own(f"{tmp_path}/net.py:Net", 3, {})
    (tmp_path / "typo.py").write_text("import torch\nclass Net(:\n")
    with pytest.raises(ModelError, match=r"typo.py:2: SyntaxError"):
        build_own(f"{tmp_path}/typo.py:Net", 3, {})


def test_a_file_called_like_a_library_does_not_replace_it(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(1, 1)\n")
    build_own(f"{tmp_path}/json.py:net", 3, {})
    assert sys.modules["json"] is json
    sys.path.remove(str(tmp_path))


def test_a_file_imports_its_neighbours_and_a_package_is_imported(tmp_path: Path) -> None:
    (tmp_path / "parts_of_a_net.py").write_text("from torch import nn\nclass Part(nn.Linear): ...\n")
    (tmp_path / "net.py").write_text("from parts_of_a_net import Part\ndef net(): return Part(2, 3)\n")
    assert build_own(f"{tmp_path}/net.py:net", 3, {}).weight.shape == (3, 2)
    assert isinstance(build_own("own_network:Net", 3, {"width": 8}), Net)
    sys.path.remove(str(tmp_path))


def test_the_number_of_classes_is_given_where_it_is_taken() -> None:
    assert build_own(f"{FILE}:Net", 7, {}).head.out_features == 7
    assert build_own(f"{FILE}:Net", 7, {"num_classes": 4}).head.out_features == 4
    assert build_own(f"{FILE}:tiny", 7, {"classes": 5}).head.out_features == 5
    assert build_own(f"{FILE}:READY", 7, {}).head.out_features == 3


def test_a_function_that_loads_its_weights_is_a_baseline(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    code = "from own_network import Net\ndef loaded():\n    return Net(num_classes=3, width=8)\n"
    (tmp_path / "trained.py").write_text(code)
    data = ("--data", "images", "--image-size", "32")
    quantized = ("--scheme", "dynamic", "--min-agreement", "0")
    made = slimkit("quantize", "trained.py:loaded", *data, *quantized, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "the weights that its code gives it" in made.stderr
    scored = slimkit("score", "submission", "--baseline", "trained.py:loaded", *data, "--runs", "3", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr


def test_half_precision_is_computed_in_float32() -> None:
    assert {p.dtype for p in build_own(f"{FILE}:Half", 3, {}).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Net(num_classes=5), "gives 5 logits for an image; the data have 3 classes"),
        ("Map", "not [2, classes]"),
        ("Regression", "a regression"),
        ("Heads", "2 outputs"),
    ],
)
def test_what_is_no_classifier_of_the_data_is_refused(module: torch.nn.Module | str, said: str) -> None:
    network = build_own(f"{FILE}:{module}", 3, {}) if isinstance(module, str) else module
    with pytest.raises(ModelError) as error:
        as_classifier(network, CLASSES, Preprocessing(36, 32, mean=IMAGENET_MEAN), model="net.py:Net")
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["{", "[1]", "5", "{'a': 1}"])
def test_model_args_are_one_json_object(text: str) -> None:
    with pytest.raises(UsageError, match="--model-args"):
        parse_arguments(text)


def test_model_arguments_tell_code_from_folders(tmp_path: Path) -> None:
    assert is_own("net.py:Net")
    assert is_own("a.b:Net")
    assert is_own("timm:resnet18.a1_in1k")
    assert not any(is_own(name) for name in ("resnet18", "runs/train", ":Net", "C:\\models\\run 1", str(tmp_path)))
    assert own_base("/home/me/nets/net.py:Net") == "net.py:Net"


def test_a_file_without_a_name_gets_the_form_as_its_hint(tmp_path: Path) -> None:
    result = slimkit("train", "net.py", cwd=tmp_path)
    assert result.returncode == 2
    assert "net.py:NAME" in result.stderr


def test_the_images_of_an_own_network_are_prepared_as_it_wants(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    own = ("--mean", "0.1", "0.2", "0.3", "--std", "0.4", "0.5", "0.6", "--interpolation", "bicubic")
    options = ("--data", "images", "--image-size", "32", "--scheme", "dynamic", "--min-agreement", "0")
    result = slimkit("quantize", f"{FILE}:Net", *own, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    made = read_folder(tmp_path / "submission").architecture.preprocessing
    assert made == Preprocessing(37, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    again = slimkit("quantize", "-c", "submission.yaml", "-o", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert read_folder(tmp_path / "again").architecture.preprocessing == made
    said = slimkit("quantize", f"{FILE}:Net", *options, "-o", "plain", cwd=tmp_path).stderr
    assert "ImageNet's mean" in said


@pytest.mark.parametrize(
    ("numbers", "said"),
    [(("--std", "0", "1", "1"), "--std 0 1 1"), (("--mean", "nan", "0", "0"), "--mean nan 0 0")],
)
def test_what_is_no_mean_and_no_deviation_is_named(numbers: tuple[str, ...], said: str, tmp_path: Path) -> None:
    result = slimkit("train", "resnet18", *numbers, cwd=tmp_path)
    assert result.returncode == 2
    assert said in result.stderr


@pytest.mark.parametrize("index", [0, 1])
def test_of_several_outputs_one_is_named(index: int) -> None:
    torch.manual_seed(0)
    module = unsettled(Heads()).eval()
    made = as_classifier(module, None, Preprocessing(36, 32), output_index=index)
    with torch.no_grad():
        assert torch.equal(made.module(images()), module(images())[index])
    assert ("second.weight" in made.module.state_dict()) == (index == 1)
