"""int8 for torchvision's families: every layer in int8, and answers that stay close to the float network's."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import small_classifier
from families import FAMILIES, family
from torch import Tensor

from slimkit.core.folder import Classifier, read_folder, write_folder
from slimkit.core.models.describe import describe_layers
from slimkit.core.quantization import quantize

pytestmark = pytest.mark.numeric

CLASSES = tuple("abcdefghij")


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def classifier_of(name: str) -> Classifier:
    module = family(name)
    architecture = dataclasses.replace(
        small_classifier().architecture,
        base={"name": name},
        num_classes=len(CLASSES),
        class_names=CLASSES,
        output_shape=(len(CLASSES),),
        layers=describe_layers(module, (3, 32, 32)),
    )
    return Classifier(module, architecture)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_is_int8_and_the_answers_stay_close(name: str, tmp_path: Path) -> None:
    classifier, batch = classifier_of(name), images(8, seed=2)
    with torch.no_grad():
        wanted = classifier.module(batch)
    for scheme in ("static", "dynamic"):
        made = quantize(classifier, scheme=scheme, calibration=[images(16, seed=1)])  # type: ignore[arg-type]  # a loop
        assert made.notes == ()
        assert {layer.type for layer in made.classifier.architecture.layers} & {"Conv2d", "Linear"} == set()
        got = read_folder(write_folder(made.classifier, tmp_path / scheme).folder or tmp_path).module(batch)
        assert (got - wanted).norm() < 0.1 * wanted.norm()
