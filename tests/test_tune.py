"""Tuning without labels: what it leaves is nearer to the uncut network, or as it was."""

import copy
import dataclasses

import pytest
import torch
from conftest import small_classifier
from torch import nn
from torch.nn import functional

from slimkit.core.data import ImageSet, evaluation_input, open_dataset
from slimkit.core.errors import UsageError
from slimkit.core.folder import Classifier
from slimkit.core.pruning.repair import tune as tuning
from slimkit.core.pruning.repair.tune import tune

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return open_dataset("digits100", image_size=32, resize=32)


def damaged(classifier: Classifier) -> Classifier:
    """The same network with noise on its weights, which makes of it what a cut might."""
    module = copy.deepcopy(classifier.module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() == 4:
                weight += 0.5 * weight.std() * torch.randn(weight.shape, generator=generator)
    return Classifier(module, classifier.architecture)


def divergence(cut: nn.Module, uncut: nn.Module, data: ImageSet) -> float:
    """On held-out images, which the tuning never sees."""
    pixels, _, _ = next(data.holdout.batches(torch.arange(200), 200))
    inputs = evaluation_input(pixels, data.preprocessing)
    with torch.inference_mode():
        ours, theirs = (functional.log_softmax(network.eval()(inputs), 1) for network in (cut, uncut))
    return float((theirs.exp() * (theirs - ours)).sum(1).mean())


def test_the_answers_come_nearer_to_those_of_the_uncut_network(digits: ImageSet) -> None:
    classifier = small_classifier(digits.class_names)
    cut = damaged(classifier)
    weights = copy.deepcopy(classifier.module.state_dict())
    before = divergence(cut.module, classifier.module, digits)
    tuned = tune(cut, classifier.module, digits, minutes=0.1, seed=0, device=CPU)
    assert tuned.after < tuned.before
    assert divergence(tuned.classifier.module, classifier.module, digits) < before
    assert "fell from" in tuned.note
    detail = tuned.classifier.architecture.training_details[-1]
    assert (detail["stage"], detail["steps"]) == ("tune", tuned.steps)
    for name, value in classifier.module.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_what_is_no_nearer_is_not_kept(digits: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "RATE", 1e4)  # which ruins any network
    classifier = small_classifier(digits.class_names)
    cut = damaged(classifier)
    weights = copy.deepcopy(cut.module.state_dict())
    tuned = tune(cut, classifier.module, digits, minutes=0.02, seed=0, device=CPU)
    assert "not kept" in tuned.note
    for name, value in tuned.classifier.module.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_too_few_images_are_refused(digits: ImageSet) -> None:
    nine = digits.train.subset(torch.arange(9))
    few = dataclasses.replace(digits, splits={**digits.splits, "train": nine})
    classifier = small_classifier(digits.class_names)
    with pytest.raises(UsageError, match="9 training images"):
        tune(classifier, classifier.module, few, minutes=1, seed=0, device=CPU)
