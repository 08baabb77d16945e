"""Pruning for another machine: its times are asked of its file, and nothing is timed here."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import small_classifier
from test_cli_chain import slimkit

from slimkit.core.benchmark.layers import run_layer_times
from slimkit.core.errors import UsageError
from slimkit.core.folder import write_folder
from slimkit.core.options import BenchmarkOptions, PruneOptions
from slimkit.core.pruning.cost.machine import read_machine
from slimkit.core.stages import run_prune


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """This machine, by a small network, as a file of another one whose kernels take channels by two."""
    folder = tmp_path_factory.mktemp("machine")
    write_folder(small_classifier(width=4), folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slimkit.core.measure.layer_times.PASSES", 1)
        options = BenchmarkOptions(
            model=str(folder / "model"), layer_times=True, widths=True, threads=1, output=folder / "cpu.json"
        )
        run_layer_times(options)
    content = json.loads((folder / "cpu.json").read_text())
    machine = content["machine"]
    machine |= {"cpu": "Another 9000", "steps": {"fp32": 2, "int8": 2}}
    for times in machine["layers"].values():  # in proportion to the MACs of a pixel
        for key in times:
            fields = dict(part.split("=", 1) for part in key.replace(", ", ",").split())
            times[key] = int(fields["inputs"]) * int(fields["outputs"]) / 1000
    for times in machine["networks"].values():
        times |= {"fp32": 10.0, "int8": 4.0}
    return content


@pytest.fixture
def machine(described: dict[str, Any], tmp_path: Path) -> Path:
    write_folder(small_classifier(width=4), tmp_path / "model")
    (tmp_path / "cpu.json").write_text(json.dumps(described))
    return tmp_path / "cpu.json"


def options_for(machine: Path, images: Path, **options: Any) -> PruneOptions:
    folder = machine.parent
    return PruneOptions(
        model=str(folder / "model"), data=str(images), target_machine=machine, output=folder / "cut", **options
    )


@pytest.mark.parametrize(("target", "limit", "uncut"), [("fp32", "6ms", 10.0), ("int8", "2.5", 4.0)])
def test_the_latency_is_kept_by_the_times_of_the_other_machine(
    machine: Path, image_folder: Path, target: str, limit: str, uncut: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMKIT_CACHE", str(machine.parent / "cache"))
    made = run_prune(options_for(machine, image_folder, latency=limit, target=target))
    figures = made.figures
    assert figures["latency_machine"] == "Another 9000"
    assert figures["latency_before"] == pytest.approx(uncut)
    assert 0.8 * float(limit.removesuffix("ms")) < figures["latency"] <= float(limit.removesuffix("ms"))
    assert any("Another 9000" in note and "not measured" in note for note in made.notes)
    widths = [layer.out_channels for layer in made.architecture.layers if layer.type == "Conv2d"]
    assert all(width % 2 == 0 for width in widths)
    assert not (machine.parent / "cache" / "layer-times").exists()  # nothing was timed here


def test_another_network_is_refused(machine: Path, image_folder: Path) -> None:
    write_folder(small_classifier(width=12), machine.parent / "other")
    options = dataclasses.replace(
        options_for(machine, image_folder, latency="2ms"), model=str(machine.parent / "other")
    )
    with pytest.raises(UsageError, match="no time of"):
        run_prune(options)


def test_a_batch_of_another_size_is_refused(machine: Path, image_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"batches of 1; --batch-size is 8"):
        run_prune(options_for(machine, image_folder, latency="2ms", batch_size=8))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"layer_times": []}',
        '{"machine": {"cpu": "x"}}',
        '{"machine": {"cpu": "x", "threads": 1, "batch_size": 1, "steps": {}, "layers": {}, "networks": {}}}',
        '{"machine": {"cpu": "x", "threads": 1, "batch_size": 1, "steps": {"fp32": 8, "int8": "8"}, "layers": {}, '
        '"networks": {}}}',
        '{"machine": {"cpu": "x", "threads": 1, "batch_size": 1, "steps": {"fp32": 8, "int8": 8}, "layers": '
        '{"fp32": {"type=Linear": -1}}, "networks": {}}}',
        '{"machine": {"cpu": "x", "threads": 1, "batch_size": 1, "steps": {"fp32": 8, "int8": 8}, "layers": '
        '{"fp32": []}, "networks": {}}}',
    ],
)
def test_what_describes_no_machine_is_named(content: str, tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"cpu\.json does not describe a machine"):
        read_machine(file, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prune", "model", "--rate", "0.3", "--target-machine", "cpu.json"], "--target-machine is for a --latency"),
        (["prune", "model", "--latency", "4ms", "--target-machine", "gone.json"], "gone.json"),
        (
            ["prune", "model", "--latency", "4ms", "--target-machine", "cpu.json", "--sensitivity"],
            "--sensitivity measures this machine",
        ),
        (["benchmark", "model", "--widths"], "--layer-times"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(
    machine: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(machine.parent)
    done = slimkit(*words, cwd=machine.parent)
    assert done.returncode in (1, 2)
    assert said in done.stderr
