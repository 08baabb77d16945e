"""Tuning a cut network on the uncut one's answers, without labels."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_classifier, unsettled
from test_cli_chain import slimkit, write_images

from slimkit.core.data import ImageSet, open_dataset
from slimkit.core.distillation.relations import relation_loss
from slimkit.core.folder import Classifier, read_folder
from slimkit.core.progress import silent
from slimkit.core.pruning import prune
from slimkit.core.pruning.tune import HELD_SHARE, Tuned, tune

TINY = 1e-6  # minutes: the fewest steps, however fast the machine


def test_the_loss_is_what_numpy_says() -> None:
    ours, theirs = (torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    p, q = (np.exp(x.numpy() / 2) / np.exp(x.numpy() / 2).sum(1, keepdims=True) for x in (ours, theirs))
    between = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    within = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    assert float(relation_loss(ours, theirs, temperature=2)) == pytest.approx(4 * (between + within), rel=1e-5)
    assert float(relation_loss(ours, ours)) == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("tune")
    write_images(folder)
    return open_dataset(str(folder), image_size=32)


def pair() -> tuple[Classifier, torch.nn.Module]:
    """A network cut by half without repair, and the whole one."""
    torch.manual_seed(0)
    whole = small_classifier(width=32)
    unsettled(whole.module)
    return prune(whole, rate=0.5, importance="random").classifier, whole.module


def tuned(data: ImageSet) -> tuple[Tuned, torch.nn.Module]:
    cut, whole = pair()
    return tune(cut, whole, data, minutes=TINY, seed=0, device=torch.device("cpu"), progress=silent), whole


def test_the_answers_come_nearer_and_the_whole_network_stays(data: ImageSet) -> None:
    made, whole = tuned(data)
    assert made.after < made.before
    untouched = pair()[1].state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in whole.state_dict().items())
    assert made.classifier.architecture.training_details[-1]["stage"] == "tune"
    assert "Tuned without labels" in made.note


def test_the_same_seed_gives_the_same_weights(data: ImageSet) -> None:
    first, second = (tuned(data)[0].classifier.module.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_does_not_come_nearer_is_not_kept(data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimkit.core.pruning.tune.RATE", 1e4)
    start = copy.deepcopy(pair()[0].module.state_dict())
    made, _ = tuned(data)
    assert all(torch.equal(t, start[name]) for name, t in made.classifier.module.state_dict().items())
    assert "left as it was" in made.note


def test_the_command_tunes_on_photos_without_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "photos").mkdir()
    for i, file in enumerate(sorted((tmp_path / "images" / "train").rglob("*.png"))):
        file.rename(tmp_path / "photos" / f"{i}.png")
    torch.save(small_classifier(width=32).module.state_dict(), tmp_path / "weights.pth")
    named = ("slimresnet18", "--weights", "weights.pth", "--image-size", "32", "--data", "photos")
    result = slimkit("prune", *named, "--rate", "0.3", "--tune-minutes", "0.0001", "--round-to", "none", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Tuned without labels in 50 steps" in result.stderr
    details = read_folder(tmp_path / "runs" / "prune").architecture.training_details
    assert [detail["stage"] for detail in details] == ["prune", "tune"]
    assert details[-1]["train_images"] == 36
    assert HELD_SHARE < 0.5
