"""Cross-layer equalization: the answers stay, and int8 comes nearer to them where channels vary unequally."""

import dataclasses
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from conftest import short_classifier, small_classifier
from torch import Tensor, nn

from slimkit.cli.app import main
from slimkit.core.folder import Classifier, write_folder
from slimkit.core.progress import silent
from slimkit.core.quantization import quantize
from slimkit.core.quantization.ranges.equalize import equalize, equalize_if_nearer

pytestmark = pytest.mark.numeric


def images(count: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def convolution(inputs: int, outputs: int, kernel: int, activation: type[nn.Module], groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), activation())


def depthwise_network(activation: type[nn.Module], spread: float = 1.0) -> Classifier:
    """A small MobileNet; `spread` is how unequal its channels are made, which its answers don't show."""
    torch.manual_seed(0)
    module = nn.Sequential(
        OrderedDict(
            stem=convolution(3, 16, 3, activation),
            depthwise=convolution(16, 16, 3, activation, groups=16),
            pointwise=convolution(16, 24, 1, nn.Identity),
            expand=convolution(24, 32, 1, activation),
            deep=convolution(32, 32, 3, activation, groups=32),
            last=convolution(32, 24, 1, nn.Identity),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(24, 3),
        )
    ).eval()
    with torch.no_grad():
        for first, second in (("stem", "depthwise"), ("expand", "deep")):
            norm, layer = module.get_submodule(first)[1], module.get_submodule(second)[0]  # type: ignore[index]
            factors = spread ** torch.rand(len(norm.weight))
            norm.weight.div_(factors)
            norm.bias.div_(factors)
            layer.weight.mul_(factors.view(-1, 1, 1, 1))
    return dataclasses.replace(small_classifier(), module=module)


def int8_error(classifier: Classifier, original: Classifier) -> float:
    """Of the static int8 network's logits against the original's, as a share."""
    made = quantize(classifier, scheme="static", calibration=[images()]).classifier
    with torch.no_grad():
        wanted = original.module(images(seed=2))
        return float((made.module(images(seed=2)) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Identity])
def test_the_answers_stay(activation: type[nn.Module]) -> None:
    classifier = depthwise_network(activation, spread=30.0)
    equalized = equalize(classifier, [images(16, seed=3), images()])
    with torch.no_grad():
        torch.testing.assert_close(equalized.module(images()), classifier.module(images()), rtol=1e-4, atol=1e-5)
        assert not torch.equal(equalized.module.stem[1].weight, classifier.module.stem[1].weight)


def test_every_channel_before_a_depthwise_layer_gets_the_whole_range() -> None:
    equalized = equalize(depthwise_network(nn.ReLU, spread=30.0), [images()]).module
    with torch.no_grad():
        largest = equalized.stem(images()).amax((0, 2, 3))
    torch.testing.assert_close(largest, largest.max().expand_as(largest), rtol=1e-4, atol=0)


def test_unequal_channels_lose_little_once_they_are_equalized() -> None:
    original = depthwise_network(nn.ReLU)
    unequal = depthwise_network(nn.ReLU, spread=300.0)
    with torch.no_grad():
        torch.testing.assert_close(unequal.module(images()), original.module(images()), rtol=1e-4, atol=1e-5)
    lost = int8_error(unequal, original)
    chosen, notes = equalize_if_nearer(unequal, [images()], "mse", silent)
    assert int8_error(chosen, original) < 0.5 * lost
    assert int8_error(chosen, original) < 1.5 * int8_error(original, original)
    assert notes[0].startswith("Channels were equalized across layers")


def test_a_residual_network_with_unequal_channels_is_mended_too() -> None:
    original, unequal = small_classifier(), small_classifier()
    block = unequal.module.layer2[0]
    factors = 300 ** torch.rand(len(block.bn1.weight))
    with torch.no_grad():
        block.bn1.weight.div_(factors)
        block.bn1.bias.div_(factors)
        block.conv2.weight.mul_(factors.view(1, -1, 1, 1))
    chosen, _ = equalize_if_nearer(unequal, [images()], "mse", silent)
    assert int8_error(chosen, original) < 0.5 * int8_error(unequal, original)


def test_what_gains_nothing_or_has_no_images_is_left_alone() -> None:
    pointwise = dataclasses.replace(
        small_classifier(), module=nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 32 * 32, 3)).eval()
    )
    assert equalize(pointwise, [images()]) is pointwise
    plain = small_classifier()
    assert equalize_if_nearer(plain, [images()], "mse", silent)[0] is plain
    assert equalize_if_nearer(plain, [], "mse", silent) == (plain, ())


def test_the_command_says_whether_it_was_done(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(short_classifier(), tmp_path / "float").folder
    assert main(["quantize", str(folder), "--data", str(image_folder), "-o", str(tmp_path / "int8")]) == 0
    assert "equalized across layers: the logits' error is" in " ".join(capsys.readouterr().out.split())
