"""Networks by name, with the weights that torchvision's own builders save."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from slimkit.core.architecture import Preprocessing
from slimkit.core.compat import import_torchvision
from slimkit.core.folder import read_folder, write_folder
from slimkit.core.models import catalog
from slimkit.core.models.resolve import open_named
from slimkit.core.options import ModelOptions
from slimkit.standalone.model_loader import normalize

CLASSES = tuple("abcde")
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def torchvisions(name: str, **options: bool) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = import_torchvision().models.get_model(
        name, weights=None, num_classes=len(CLASSES), init_weights=False, **options
    )
    return module.eval()


@pytest.mark.parametrize("name", WITH_AUXILIARY_HEADS)
def test_weights_saved_with_auxiliary_heads_give_torchvisions_answers(name: str, tmp_path: Path) -> None:
    theirs = torchvisions(name)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    options = ModelOptions(model=name, weights=tmp_path / "weights.pth")
    classifier = open_named(options, CLASSES, Preprocessing(resize=96, crop=96))
    assert not any("aux" in key.lower() for key in classifier.module.state_dict())
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(classifier.module(images), theirs(images))


def test_a_family_that_asks_for_its_version_is_written_and_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = import_torchvision().models.mnasnet0_5(num_classes=len(CLASSES)).eval()
    torch.save(dict(theirs.state_dict()), tmp_path / "weights.pth")
    options = ModelOptions(model="mnasnet0_5", weights=tmp_path / "weights.pth")
    classifier = open_named(options, CLASSES, Preprocessing(resize=64, crop=64))
    again = read_folder(write_folder(classifier, tmp_path / "model").folder or tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again.module(images), theirs(images))


@pytest.mark.parametrize("name", WITH_AUXILIARY_HEADS)
def test_imagenet_weights_get_the_normalization_that_torchvision_trained_them_with(name: str) -> None:
    pixels = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    default = Preprocessing(resize=8, crop=8)
    theirs = torchvisions(name, transform_input=True)._transform_input(normalize(pixels, dataclasses.asdict(default)))
    ours = normalize(pixels, dataclasses.asdict(catalog.pretrained_preprocessing(name, default)))
    torch.testing.assert_close(ours, theirs)
    assert catalog.pretrained_preprocessing("resnet18", default) == default
