"""The float networks: torchvision's ResNets under another name, at any width, from JSON alone."""

from typing import Any

import pytest
import torch
from torch import nn

from slimkit.core.compat import import_torchvision
from slimkit.core.models.describe import describe_layers
from slimkit.standalone.model import SlimResNet18, SlimResNet34, SlimResNet50, build_model


@pytest.mark.parametrize(
    ("ours", "name"), [(SlimResNet18, "resnet18"), (SlimResNet34, "resnet34"), (SlimResNet50, "resnet50")]
)
def test_resnets_are_torchvisions(ours: type[nn.Module], name: str) -> None:
    theirs = import_torchvision().models.get_model(name, weights=None, num_classes=7).eval()
    network = ours(7, width=64).eval()
    network.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images))


def test_the_contests_variant_has_half_of_torchvisions_widths() -> None:
    network = SlimResNet18(num_classes=100)
    assert network.conv1.weight.shape == (32, 3, 7, 7)
    widths = [getattr(network, f"layer{i}")[1].conv2.out_channels for i in (1, 2, 3, 4)]
    assert widths == [32, 64, 128, 256]
    assert network.fc.weight.shape == (100, 256)


def architecture_of(network: nn.Module, model_type: str, num_classes: int) -> dict[str, Any]:
    layers = [dict(vars(layer)) for layer in describe_layers(network, (3, 64, 64))]
    return {"model_type": model_type, "num_classes": num_classes, "layers": layers}


def entry(architecture: dict[str, Any], name: str) -> dict[str, Any]:
    return next(layer for layer in architecture["layers"] if layer["name"] == name)


def test_every_layer_can_have_a_width_of_its_own() -> None:
    architecture = architecture_of(SlimResNet18(5), "SlimResNet18", 5)
    for name, key in (("layer2.0.conv1", "out_channels"), ("layer2.0.conv2", "in_channels")):
        entry(architecture, name)[key] = 23
    entry(architecture, "layer2.0.bn1")["in_channels"] = entry(architecture, "layer2.0.bn1")["out_channels"] = 23
    network = build_model(architecture)
    assert not network.training
    assert network.get_submodule("layer2.0.conv1").weight.shape == (23, 32, 3, 3)
    assert network.get_submodule("layer2.0.conv2").weight.shape == (64, 23, 3, 3)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_families_are_rebuilt_from_json(name: str) -> None:
    theirs = import_torchvision().models.get_model(name, weights=None, num_classes=7).eval()
    network = build_model(architecture_of(theirs, name, 7))
    network.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(images), theirs(images))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "layer9.conv1"}, "layer9.conv1"),
        ({"type": "Linear"}, "conv1"),
        ({"out_channels": -1}, "conv1"),
        ({"groups": 7}, "conv1"),
    ],
)
def test_a_layer_that_does_not_fit_is_named(change: dict[str, Any], named: str) -> None:
    architecture = architecture_of(SlimResNet18(5), "SlimResNet18", 5)
    entry(architecture, "conv1").update(change)
    with pytest.raises(ValueError, match=f"{named!r}"):
        build_model(architecture)


def test_a_layer_that_is_left_out_is_named() -> None:
    architecture = architecture_of(SlimResNet18(5), "SlimResNet18", 5)
    architecture["layers"] = [layer for layer in architecture["layers"] if layer["name"] != "layer3.1.bn2"]
    with pytest.raises(ValueError, match=r"'layer3\.1\.bn2' is missing"):
        build_model(architecture)
