"""`slimkit tune`: what may be searched, and a small real study that is killed, gone on with and shared."""

import importlib.util
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli_chain import write_images

from slimkit.cli.app import main
from slimkit.core.errors import UsageError
from slimkit.core.tune.run import run_tune
from slimkit.core.tune.space import Interval, read_space

needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason='Optuna is not installed: pip install "slimkit[tune]"'
)

NETWORK = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
        )
"""
RECIPE: dict[str, Any] = {
    "model": "net.py:Net",
    "data": "images",
    "image_size": 32,
    "train": {"epochs": 1, "batch_size": 11},
    "prune": {"rate": 0.3, "reconstruction_images": 8, "round_to": "none"},
    "distill": {"epochs": 0},
    "quantize": {"calibration_images": 8, "min_agreement": 0},
    "score": {"runs": 2},
    "search": {"prune.rate": {"low": "0.2", "high": 0.7}, "distill.teacher": ["tuned/common/runs/train", "gone"]},
}


def with_search(**search: Any) -> dict[str, Any]:
    """The keys are written with __ for the dot."""
    return {**RECIPE, "search": {name.replace("__", "."): said for name, said in search.items()}}


def test_lists_are_choices_and_ranges_are_of_the_options_kind() -> None:
    space = read_space(
        with_search(
            quantize__weight_bits=["8", 4],
            distill__lr={"low": "1e-4", "high": "1e-2", "log": True},
            distill__epochs={"low": "1", "high": "4"},
        ),
        "r.yaml",
    )
    bits, rate, epochs = (dimension.values for dimension in space.dimensions)
    assert bits == (8, 4)
    assert rate == Interval(0.0001, 0.01, log=True)
    assert epochs == Interval(1, 4)
    assert space.common == ("train", "prune")


def test_a_trial_is_the_recipe_with_its_values_and_shares_what_no_value_changes() -> None:
    space = read_space(with_search(distill__lr=[0.1, 0.2], quantize__weight_bits=[8, 4]), "r.yaml")
    trial = space.recipe({"distill.lr": 0.2, "quantize.weight_bits": 4}, Path("trials/1"), Path("common"))
    places = [(options.model, str(options.output)) for options in trial.stages.values()]
    assert places[:3] == [
        ("net.py:Net", "common/runs/train"),
        ("common/runs/train", "common/runs/prune"),
        ("common/runs/prune", "trials/1/runs/distill"),
    ]
    assert (vars(trial.stages["distill"])["lr"], vars(trial.stages["quantize"])["weight_bits"]) == (0.2, 4)
    assert read_space(with_search(image_size=[32, "32x48"]), "r.yaml").common == ()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "resnet18"}, "no section `search`"),
        (with_search(prune__raet=[0.1]), "'rate'"),
        (with_search(prun__rate=[0.1]), "prun.rate is in no stage"),
        (with_search(score__runs=[1]), "score.runs is in no stage"),
        (with_search(prune__output=["a", "b"]), "prune.output is no choice"),
        ({**with_search(prune__rate=[0.1]), "prune": 0.3}, "mapping"),
        ({**with_search(prune__rate=[0.1, 1.5]), "prune": None}, "prune: rate is 1.5"),
        (with_search(prune__rate=0.5), "neither a list"),
        (with_search(prune__rate=[]), "neither a list"),
        (with_search(prune__rate=["much"]), "of type float"),
        (with_search(prune__rate={"low": 0.1}), "lacks the field 'high'"),
        (with_search(prune__rate={"low": 0.1, "hihg": 0.2}), "'hihg'"),
        (with_search(prune__rate={"low": 0.5, "high": 0.2}), "low < high"),
        (with_search(distill__lr={"low": 0, "high": 1, "log": True}), "above 0"),
        (with_search(prune__rate=[0.2, 1.5]), "prune: rate is 1.5"),
        (with_search(prune__macs=[0.5]), "several budgets"),
        ({**RECIPE, "output": "x"}, "output is one place"),
        ({**RECIPE, "prune": {"output": "x"}}, "prune: output is one place"),
    ],
)
def test_what_no_trial_could_have_is_named_before_the_first(settings: Mapping[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_space(settings, "r.yaml")


def test_without_optuna_it_is_said_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    Path("recipe.yaml").write_text("search:\n  prune.rate: [0.3, 0.5]\n")
    assert main(["tune"]) == 2
    assert 'pip install "slimkit[tune]"' in capsys.readouterr().err


def tune_elsewhere(trials: int) -> Any:
    def run() -> None:
        torch.set_num_threads(1)  # OpenMP's threads do not outlive a fork
        run_tune(RECIPE, Path("tuned"), trials=trials, seed=1)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


@needs_optuna
def test_a_study_is_killed_gone_on_with_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"))
    Path("net.py").write_text(NETWORK)
    killed = tune_elsewhere(3)
    while killed.is_alive() and not Path("tuned/trials/0000/runs").exists():
        time.sleep(0.005)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    trained = Path("tuned/common/runs/train/compressed_net.pth").stat().st_mtime_ns
    together = [tune_elsewhere(3) for _ in range(2)]
    for process in together:
        process.join()
    assert [process.exitcode for process in together] == [0, 0]
    report = run_tune(RECIPE, Path("tuned"), trials=3, seed=1)  # finds nothing left to do
    assert Path("tuned/common/runs/train/compressed_net.pth").stat().st_mtime_ns == trained
    assert [trial.number for trial in report.trials] == [0, 1, 2]
    for trial in report.trials:
        if trial.values["distill.teacher"] == "gone":
            assert (trial.state, trial.figures) == ("failed", None)
            assert "gone" in (trial.reason or "")
            continue
        assert trial.figures is not None
        made = json.loads((Path("tuned/trials") / f"{trial.number:04d}/submission/model_metadata.json").read_text())
        assert trial.figures.accuracy == made["figures"]["accuracy"]
        assert "kept out of training" in made["figures"]["accuracy_split"]
    assert {trial.state for trial in report.trials} == {"complete", "failed"}
    others = [trial.figures for trial in report.trials if trial.figures]
    for best in (trial.figures for trial in report.best):
        assert best is not None
        assert not any(
            other.accuracy >= best.accuracy and other.latency <= best.latency and other.size <= best.size
            for other in others
            if other != best
        )
    assert json.loads(report.file.read_text())["best"] == [trial.number for trial in report.best]
    assert report.picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="of another recipe"):
        run_tune({**RECIPE, "seed": 5}, Path("tuned"), trials=3)
