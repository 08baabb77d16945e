"""`run_benchmark`: models beside their baseline, in several backends."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_classifier
from PIL import Image

from slimkit.cli.app import main
from slimkit.core import run_benchmark
from slimkit.core.benchmark import streams
from slimkit.core.benchmark.answers import compared, own_logits
from slimkit.core.benchmark.candidates import open_candidates
from slimkit.core.benchmark.layers import run_layer_times
from slimkit.core.benchmark.report import Result, warnings_of
from slimkit.core.benchmark.statistics import Estimate
from slimkit.core.data import random_images
from slimkit.core.errors import FolderError
from slimkit.core.export.agreement import Agreement
from slimkit.core.folder import Classifier, write_folder
from slimkit.core.load import Strain
from slimkit.core.measure import layer_times
from slimkit.core.models.lineage import record_baseline, remember
from slimkit.core.options import BenchmarkOptions
from slimkit.core.progress import silent
from slimkit.core.quantization import quantize

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ("ant", "bee", "cat")
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
QUICK: dict[str, Any] = {"restarts": 0, "min_seconds": 0.02}


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """The folder of a small network in int8, which is soon exported; its baseline is twice as wide, and float."""
    baseline = write_folder(small_classifier(CLASSES, width=16), tmp_path / "baseline")
    small = quantize(small_classifier(CLASSES), scheme="dynamic", calibration=None).classifier
    write_folder(Classifier(small.module, record_baseline(small.architecture, baseline)), tmp_path / "small")
    remember(tmp_path / "baseline", data=None)
    return tmp_path / "small"


def test_a_model_is_timed_beside_its_baseline_and_in_onnx_runtime(family: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "benchmark.json"
    options = BenchmarkOptions(model=str(family), batch_size=2, output=output, restarts=1, min_seconds=0.02, plot=True)
    report = run_benchmark(options)
    results = json.loads(output.read_text())
    assert results == report.to_dict()
    small, onnx, baseline = results["candidates"]
    assert [(each["role"], each["backend"], each["threads"]) for each in (small, onnx, baseline)] == [
        ("model", "torch", 1),
        ("model", "onnxruntime", 1),
        ("baseline", "torch", 1),
    ]
    assert (results["reference"], results["starts"], baseline["ratio"]) == (2, 2, None)
    assert baseline["model"] == str(tmp_path / "baseline")
    assert baseline["size"] > 8 * small["size"]  # twice the width everywhere, and four bytes for one
    _check_samples(results, output)
    for each in results["candidates"]:
        assert each["agreement"]["images"] == "random images"
        assert each["agreement"]["count"] == 64
        assert each["agreement"]["agreement"] > 90
        close = 1e-4 if each is baseline else 0.1  # int8 has its ranges from the batch, and none in ONNX Runtime
        assert each["agreement"]["max_difference"] < close * max(1, each["agreement"]["max_logit"])
        assert len(each["load_ms"]) == len(each["first_call_ms"]) == 2
        assert 10 < each["peak_memory"] < 4000
    assert results["environment"]["strain"]["seconds"] > 0
    with Image.open(options.beside[1]) as picture:
        assert picture.format == "PNG"


def _check_samples(results: dict[str, Any], output: Path) -> None:
    """The figures follow from the runs beside them."""
    samples = np.load(output.with_name(f"{output.name}.samples.npz"))
    levels = []
    for i, each in enumerate(results["candidates"]):
        ms, start, turn = (samples[f"{i}.{name}"] for name in ("ms", "start", "turn"))
        assert len(ms) == each["runs"]
        assert each["seconds"] == pytest.approx(ms.sum() / 1e3)
        assert each["median"]["value"] == pytest.approx(np.median(ms))
        assert each["p90"]["value"] == pytest.approx(np.percentile(ms, 90))
        assert (each["p99"] is None) == (len(ms) < 1000)
        assert each["throughput"]["value"] == pytest.approx(results["batch_size"] * 1e3 / ms.mean())
        medians = {(s, t): np.median(ms[(start == s) & (turn == t)]) for s, t in {*zip(start, turn, strict=True)}}
        turns = 1 + max(t for _, t in medians)
        levels.append(np.log([[medians[s, t] * medians[s, t + 1] for t in range(0, turns, 2)] for s in (0, 1)]) / 2)
    for own, each in zip(levels[:2], results["candidates"], strict=False):
        ratio = np.exp(np.median(own - levels[2], axis=1).mean())
        assert each["ratio"]["value"] == pytest.approx(ratio)
        assert each["ratio"]["low"] <= ratio <= each["ratio"]["high"]


def test_several_models_are_compared_with_the_one_that_is_named(family: Path, tmp_path: Path) -> None:
    other = write_folder(small_classifier(CLASSES, width=4), tmp_path / "other").folder
    options = BenchmarkOptions(
        model=str(family),
        others=(str(other), str(family)),
        baseline=str(other),
        backend=("torch",),
        output=tmp_path / "benchmark.json",
        **QUICK,
    )
    report = run_benchmark(options)
    assert [(each.role, each.model) for each in report.candidates] == [
        ("model", str(family)),
        ("model", str(other)),
        ("baseline", str(other)),
    ]
    assert [each.ratio is None for each in report.candidates] == [False, False, True]


def test_a_model_alone_has_no_ratio_and_its_answers_are_compared_on_held_out_images(
    model_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    options = BenchmarkOptions(
        model=str(model_folder),
        data=str(image_folder),
        backend=("torch",),
        output=tmp_path / "benchmark.json",
        **QUICK,
    )
    (alone,) = run_benchmark(options).candidates
    assert alone.ratio is None
    assert alone.verdict == ""
    assert alone.agreement.images == "held-out images of images"
    assert 3 <= alone.agreement.count <= 6  # at least one of each class, of 36 training images


def test_one_thread_stands_beside_several(model_folder: Path) -> None:
    torch.set_num_threads(3)
    with open_candidates(BenchmarkOptions(model=str(model_folder), backend=("torch",)), silent) as candidates:
        assert [(each.backend, each.threads) for each in candidates] == [("torch", 3), ("torch", 1)]
        assert len({each.logits for each in candidates}) == 2


def test_streams_do_together_what_each_does_alone(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "DURATION", 100.0)
    options = BenchmarkOptions(model=str(model_folder), backend=("torch",), batch_size=2, threads=1)
    with open_candidates(options, silent) as candidates:
        (both,) = streams.run_streams(candidates, 2, 2, silent)
        assert streams.run_streams(candidates, 1, 2, silent) == (None,)
    assert both is not None
    assert both.count == 2
    # by their medians two processes at once do 2 * 2 images in that time; the slowest runs take it below
    assert 0.1 < both.throughput / (2 * 2 * 1e3 / both.median) < 1.5


def test_answers_of_another_network_are_noticed(classifier: Classifier, model_folder: Path) -> None:
    options = BenchmarkOptions(model=str(model_folder), backend=("torch",))
    with open_candidates(options, silent) as (candidate,):
        ours = own_logits(candidate.model)
        np.save(candidate.logits, ours.roll(1, 1).numpy())  # every answer is the next class
        agreement = compared(candidate, ours)
    assert agreement.agreement == 0
    assert agreement.max_difference > 0.01


@pytest.mark.parametrize("batch_size", [1, 7, 64, 100])
def test_a_network_is_shown_whole_batches_that_differ(model_folder: Path, batch_size: int) -> None:
    options = BenchmarkOptions(model=str(model_folder), backend=("torch",), batch_size=batch_size)
    with open_candidates(options, silent) as (candidate,):
        images = candidate.model.images.numpy()
    assert len(images) >= 64
    first, second, *_ = np.split(images, len(images) // batch_size)
    assert len(first) == batch_size
    assert not np.array_equal(first, second)


def test_the_layers_are_timed_one_by_one_where_they_lie(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_times, "PASSES", 1)
    output = tmp_path / "cpu.json"
    options = BenchmarkOptions(model=str(family), others=("baseline",), layer_times=True, output=output, threads=1)
    with contextlib.chdir(tmp_path):
        report = run_layer_times(options)
    small, baseline = report.models
    assert json.loads(output.read_text()) == report.to_dict()
    assert small.weights_sha256 == hashlib.sha256(next(family.glob("*.pth")).read_bytes()).hexdigest()
    for model, width, runtime in ((small, 8, "int8"), (baseline, 16, "fp32")):
        layers = {each.name: each for each in model.layers}
        assert len(layers) == 21  # of a ResNet18: 20 convolutions, and the last layer
        assert {each.runtime for each in model.layers} == {runtime}
        shapes = {name: (each.layer.inputs, each.layer.outputs, each.layer.height) for name, each in layers.items()}
        assert shapes["conv1"] == (3, width, 32)
        assert shapes["layer1.0.conv1"] == (width, width, 8)  # halved by the first convolution, and by the pooling
        assert shapes["layer2.0.conv1"] == (width, 2 * width, 8)
        assert shapes["layer2.0.conv2"] == (2 * width, 2 * width, 4)
        assert shapes["fc"] == (8 * width, 3, None)
        assert model.total == pytest.approx(sum(each.ms for each in model.layers))
        assert min(each.ms for each in model.layers) > 0


def result(**changes: Any) -> Result:
    """One that nothing is to be said against."""
    known = Estimate(10.0, 9.9, 10.1)
    good = Result(
        role="model",
        model="small",
        backend="torch",
        threads=1,
        size=1.0,
        ratio=Estimate(0.5, 0.49, 0.51),
        typical=known,
        median=known,
        p90=known,
        p99=None,
        throughput=known,
        load_ms=(5.0,),
        first_call_ms=(20.0,),
        peak_memory=300.0,
        runs=500,
        seconds=5.0,
        settled=True,
        agreement=Agreement("random images", 64, 100.0, 1e-6, 2.0),
        streams=None,
    )
    return dataclasses.replace(good, **changes)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Estimate(0.5, 0.4, 0.6), "2.00 x as fast"),
        (Estimate(1.5, 1.4, 1.6), "takes 1.50 x as long"),
        (Estimate(0.99, 0.97, 1.01), "no difference shown"),
        (Estimate(0.5, None, None), "no difference shown"),
    ],
)
def test_a_ratio_is_put_in_words(ratio: Estimate, verdict: str) -> None:
    assert result(ratio=ratio).verdict == verdict


def test_what_makes_figures_worth_less_is_said() -> None:
    quiet = Strain(10.0, 0.0, 0.0)

    def said(precision: float = 5.0, strain: Strain = quiet, governor: str | None = None, **changes: Any) -> str:
        results = [result(**changes), result(ratio=None, typical=Estimate(1.0, 0.5, 1.5))]  # the other's time is free
        return "\n".join(warnings_of(results, precision, strain, governor))

    assert said() == ""
    assert "its ratio is known to 4.0 % only, not to 2 %" in said(precision=2.0)
    assert "no interval" in said(ratio=Estimate(0.5, None, None))
    assert "still getting faster" in said(settled=False)
    assert "90.0 % of 64 photos only" in said(agreement=Agreement("photos", 64, 90.0, 1.0, 2.0))
    assert "1.5 cores busy" in said(strain=Strain(10.0, 1.5, None))
    assert "virtual machines took 0.30 cores" in said(strain=Strain(10.0, None, 0.3))
    assert "powersave" in said(governor="powersave")
    assert said(governor="performance") == ""


@pytest.mark.skipif(shutil.which("cc") is None, reason="torch.compile needs a C compiler")
@pytest.mark.skipif(not HAS_OPENVINO, reason="OpenVINO is not installed: slimkit[openvino]")
def test_every_backend_gives_the_same_answers(tmp_path: Path) -> None:
    model = write_folder(small_classifier(CLASSES, width=4), tmp_path / "model").folder
    backends = ("torch", "compile", "onnxruntime", "openvino")
    options = BenchmarkOptions(model=str(model), backend=backends, output=tmp_path / "benchmark.json", **QUICK)
    report = run_benchmark(options)
    assert [each.backend for each in report.candidates] == list(backends)
    assert [each.agreement.agreement for each in report.candidates] == [100.0] * 4


@pytest.mark.skipif(HAS_OPENVINO, reason="OpenVINO is installed")
def test_a_backend_that_is_not_installed_is_named(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", str(model_folder), "--backend", "openvino"]) == 2
    said = capsys.readouterr().err
    assert "openvino is not installed" in said
    assert 'pip install "slimkit[openvino]"' in said
    assert not (tmp_path / "benchmark.json").exists()


def test_an_unknown_backend_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "nowhere", "--backend", "torch,tensorflow"]) == 2
    assert "'tensorflow' is no backend" in capsys.readouterr().err


def test_the_older_flag_says_which_backends(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "benchmark.json"
    flags = ["--restarts", "0", "--min-seconds", "0.02", "--threads", "1", "-o", str(output), "--json"]
    assert main(["benchmark", str(model_folder), "--no-onnx", *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [each["backend"] for each in report["candidates"]] == ["torch"]
    assert json.loads(output.read_text()) == report


def test_random_images_are_not_all_alike_to_a_network() -> None:
    images = random_images((3, 32, 32), 64)
    assert images.shape == (64, 3, 32, 32)
    assert torch.equal(images, random_images((3, 32, 32), 64))
    means = images.mean(dim=(2, 3))
    assert means.std(dim=0).min() > 0.1  # noise alone has 1 / 32


@pytest.mark.parametrize("name", ["benchmark.json", "benchmark.json.samples.npz", "benchmark.json.png"])
def test_nothing_is_overwritten(name: str, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(FolderError, match=f"{name} exists already"):
        run_benchmark(BenchmarkOptions(model=str(model_folder), output=tmp_path / "benchmark.json", plot=True))
    assert (tmp_path / name).read_text() == "mine"
