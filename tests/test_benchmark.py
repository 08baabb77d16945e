"""`run_benchmark`: a model beside its baseline and its ONNX export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import small_classifier

from slimkit.core.benchmark import compare_logits, run_benchmark
from slimkit.core.data import random_images
from slimkit.core.errors import FolderError
from slimkit.core.export import export_onnx
from slimkit.core.folder import Classifier, write_folder
from slimkit.core.models.lineage import record_baseline, remember
from slimkit.core.options import BenchmarkOptions

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are no faster with more, and far slower where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_model_is_timed_beside_its_baseline_and_its_export(tmp_path: Path) -> None:
    baseline = write_folder(small_classifier(CLASSES, width=16), tmp_path / "baseline")
    small = small_classifier(CLASSES)
    architecture = record_baseline(small.architecture, baseline)
    write_folder(Classifier(small.module, architecture), tmp_path / "small")
    remember(tmp_path / "baseline", data=None)
    options = BenchmarkOptions(
        model=str(tmp_path / "small"), runs=2, batch_size=2, output=tmp_path / "out" / "benchmark.json"
    )
    report = run_benchmark(options)
    results = json.loads(options.output.read_text())
    assert results == report.to_dict()
    timings = results["timings"]
    assert [(each["role"], each["runtime"]) for each in timings] == [
        ("model", "torch"),
        ("baseline", "torch"),
        ("onnx", "onnxruntime"),
    ]
    assert timings[1]["name"] == str(tmp_path / "baseline")
    assert timings[1]["size"] > 3 * timings[0]["size"]  # twice the width everywhere
    for each in timings:
        assert (each["latency"]["runs"], each["latency"]["batch_size"], each["latency"]["threads"]) == (2, 2, 1)
        assert each["model_speedup"] == pytest.approx(each["latency"]["median"] / timings[0]["latency"]["median"])
    assert results["onnx_check"]["inputs"] == "random images"
    assert results["onnx_check"]["agreement"] == 100
    assert results["onnx_check"]["max_difference"] < 1e-4 * max(1, results["onnx_check"]["max_logit"])


def test_without_baseline_and_onnx_the_model_is_timed_alone(model_folder: Path, tmp_path: Path) -> None:
    options = BenchmarkOptions(model=str(model_folder), runs=1, onnx=False, output=tmp_path / "benchmark.json")
    report = run_benchmark(options)
    assert [each.role for each in report.timings] == ["model"]
    assert report.onnx_check is None


def test_logits_are_compared_on_held_out_images_of_the_data(
    model_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    options = BenchmarkOptions(
        model=str(model_folder), data=str(image_folder), runs=1, output=tmp_path / "benchmark.json"
    )
    check = run_benchmark(options).onnx_check
    assert check is not None
    assert check.inputs == "held-out images of images"
    assert 3 <= check.count <= 6  # at least one of each class, of 36 training images


def test_an_export_of_another_network_is_noticed(classifier: Classifier, tmp_path: Path) -> None:
    export_onnx(classifier, tmp_path / "model.onnx")
    state = {name: tensor.clone() for name, tensor in classifier.module.state_dict().items()}
    turned = {"fc.weight": state["fc.weight"].roll(1, 0), "fc.bias": state["fc.bias"].roll(1, 0)}
    classifier.module.load_state_dict(state | turned)
    check = compare_logits(classifier, tmp_path / "model.onnx", None)
    assert check.agreement == 0  # every answer is the next class
    assert check.max_difference > 0.01


def test_random_images_are_not_all_alike_to_a_network() -> None:
    images = random_images((3, 32, 32), 64)
    assert images.shape == (64, 3, 32, 32)
    assert torch.equal(images, random_images((3, 32, 32), 64))
    means = images.mean(dim=(2, 3))
    assert means.std(dim=0).min() > 0.1  # noise alone has 1 / 32


def test_nothing_is_overwritten(model_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "benchmark.json"
    output.write_text("mine")
    with pytest.raises(FolderError, match="exists already"):
        run_benchmark(BenchmarkOptions(model=str(model_folder), output=output))
    assert output.read_text() == "mine"
