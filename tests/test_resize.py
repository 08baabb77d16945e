"""--image-size with a model folder: the result is one for that size, or it is refused; never a mixture of both."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import short_classifier, small_classifier
from torch import nn

from slimkit.cli.app import main
from slimkit.core.architecture import Preprocessing
from slimkit.core.folder import Classifier, read_architecture, read_folder, write_folder
from slimkit.core.models.resolve import as_classifier

NAMES = ("ant", "bee", "cat")


class Flat(nn.Module):
    """A network that takes images of 32 pixels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, 4), nn.Linear(8 * 8 * 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().flatten(1))


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_folder: Path) -> None:
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> int:
    return main([*words, "--threads", "1", "-q"])


def prune(*words: str) -> int:
    few = ("--calibration-images", "16", "--no-reconstruct", "--rate", "0.3", "--round-to", "none")
    return run("prune", "net", "-o", "cut", "--data", "images", *few, *words)


def macs_by_hand(classifier: Classifier, height: int, width: int) -> int:
    found = 0

    def count(layer: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal found
        found += layer.weight[0].numel() * output[0].numel()

    for layer in classifier.module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    classifier.module(torch.zeros(1, 3, height, width))
    return found


@pytest.mark.parametrize("make", [small_classifier, short_classifier])  # stored by its class, and as its graph
def test_what_is_made_at_another_size_is_for_that_size(make: Callable[[], Classifier]) -> None:
    write_folder(make(), Path("net"))
    assert prune("--image-size", "24x40") == 0
    made = read_folder(Path("cut"))
    assert made.architecture.input_shape == (3, 24, 40)
    assert made.architecture.preprocessing.crop == (24, 40)
    assert made.architecture.macs == macs_by_hand(made, 24, 40)


def test_a_folder_is_measured_at_its_own_size(capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(small_classifier(), Path("net"))
    own = read_architecture(Path("net")).preprocessing
    asked = ("--image-size", "24")
    for words in (("score", "net", "--data", "images"), ("benchmark", "net"), ("benchmark", "net", "--data", "images")):
        assert run(*words, *asked) == 2
        assert f"net is for images of {own.crop} pixels" in capsys.readouterr().err


def test_int8_stays_at_the_size_that_it_was_calibrated_at(capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(small_classifier(), Path("net"))
    assert run("quantize", "net", "-o", "int8", "--data", "images", "--min-agreement", "0") == 0
    assert run("export", "int8", "-o", "int8.onnx", "--image-size", "24") == 1
    assert "is int8, and was calibrated on images of" in capsys.readouterr().err
    assert run("export", "net", "-o", "float.onnx", "--image-size", "24") == 0


def test_a_network_that_insists_on_its_size_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    write_folder(as_classifier(Flat().eval(), NAMES, Preprocessing(resize=36, crop=32)), Path("net"))
    assert prune("--image-size", "48") == 1
    assert "takes images of 32 pixels; it fails on some of 48" in capsys.readouterr().err
    assert not Path("cut").exists()
    assert prune("--image-size", "32") == 0
