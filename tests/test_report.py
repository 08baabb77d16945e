"""The page of what the commands left: it says what the JSON says, loads nothing, and a browser shows it."""

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from conftest import small_classifier
from PIL import Image
from test_cli_chain import slimkit

from slimkit.core.folder import read_folder, write_folder
from slimkit.core.htmlreport.charts import Bar, Interval, Line, bars, curves, heat_map, histograms, intervals
from slimkit.core.htmlreport.collect import collect
from slimkit.core.htmlreport.page import render
from slimkit.core.measure.answers import Answers
from slimkit.core.pruning import prune
from slimkit.core.quantization import quantize
from slimkit.core.scoring.details import write_details

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
RESULTS = {
    "model_size": 0.05,
    "latency": 1.5,
    "accuracy": 60.0,
    "size_score": 4.0,
    "latency_score": 2.0,
    "accuracy_score": 0.9,
    "total_score": 2.16,
    "degenerate": False,
    "accuracy_confidence": [55.0, 65.0],
    "images": 400,
    "data": "<photos>",
    "difference": {"lost": 30, "won": 10, "p_value": 0.002},
    "runs": 4,
    "threads": 2,
    "latency_samples": [1.4, 1.5, 1.6, 9.0],
    "baseline": {
        "model_size": 0.2,
        "latency": 3.0,
        "accuracy": 66.0,
        "sources": {"size": "given"},
        "latency_samples": [2.9, 3.1],
    },
    "environment": {
        "cpu": {"model": "Some CPU", "instruction_sets": ["avx2"], "usable_cores": 2},
        "versions": {},
        "os": "Linux",
        "torch_threads": 2,
    },
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the commands leave it: trained, cut and quantized, with scores; and a stray model beside them."""
    root = tmp_path_factory.mktemp("work")
    trained = write_folder(
        small_classifier(width=32),
        root / "runs" / "train",
        figures={"accuracy": 66.0, "accuracy_images": 40, "accuracy_split": "held out"},
    )
    sha = json.loads((root / "runs" / "train" / "metadata.json").read_text())["sha256"]
    base = {"name": "slimresnet18", "weights_sha256": sha["compressed_resnet18.pth"]}
    source = dataclasses.replace(trained, architecture=dataclasses.replace(trained.architecture, base=base))
    cut = prune(source, rate=0.5, importance="l1").classifier
    write_folder(cut, root / "runs" / "prune")
    write_folder(quantize(cut, scheme="dynamic", calibration=None).classifier, root / "submission")
    write_folder(small_classifier(width=4), root / "runs" / "other")
    (root / "results.json").write_text(json.dumps(RESULTS))
    return root


class Page(HTMLParser):
    """The texts of a page, its tags, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_the_page_says_what_the_files_say(work: Path) -> None:
    page = Page(render(collect(work)))
    for said in (
        "0.050 MB",
        "of 0.20",
        "4.0 times",
        "60.00 %",
        "55.0 to 65.0",
        "2.16",
        "400 test images of <photos>",
        "30 right",
        "a real difference",
        "Some CPU",
    ):
        assert said in page.text
    assert page.loaded == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 5  # widths, bytes, multiply-adds, bits, latencies
    submission = read_folder(work / "submission").architecture
    first = next(layer for layer in submission.layers if layer.width_before not in (None, layer.out_channels))
    assert f"{first.width_before} → {first.out_channels}" in page.text


def test_what_other_commands_measured_is_in_the_page(work: Path, tmp_path: Path) -> None:
    root = shutil.copytree(work, tmp_path / "work")
    own = collect(root).result.sha256
    layers = [{"name": "conv1", "ms": 0.3}, {"name": "fc", "ms": 0.1}]
    times = [
        {"weights_sha256": "another", "total_ms": 9.0, "layers": [{"name": "x", "ms": 9.0}]},
        {"weights_sha256": own, "total_ms": 0.4, "layers": layers},
    ]
    (root / "cpu.json").write_text(json.dumps({"layer_times": times, "threads": 2, "batch_size": 1}))
    faster = {"value": 0.5, "low": 0.4, "high": 0.6}
    candidates = [
        {"model": "<small>", "backend": "torch", "threads": 1, "ratio": faster, "verdict": "2.00 x as fast"},
        {"model": "large", "backend": "torch", "threads": 1, "ratio": None, "verdict": ""},
    ]
    benchmark = {"candidates": candidates, "reference": 1, "starts": 4, "batch_size": 1, "warnings": ["It was loud."]}
    (root / "benchmark.json").write_text(json.dumps(benchmark | {"environment": RESULTS["environment"]}))
    answers = Answers(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]), torch.ones(4))
    write_details(answers, ("ant", "bee"), root / "details")
    page = Page(render(collect(root)))
    for said in (
        "0.300 ms (75.0%)",
        "<small> (torch, 1 thread)",
        "0.500: 2.00 x as fast",
        "Beware: It was loud.",
        "ant answered as bee: 33%",
        "bee answered as bee: 100%",
    ):
        assert said in page.text
    assert "9.000 ms" not in page.text
    assert "--layer-times -o cpu.json" not in page.text  # nothing is said to be missing that is there


def test_intervals_stand_where_their_values_are() -> None:
    svg = intervals([Interval("a", 0.5, 0.25, 1.0, ""), Interval("b", 2.0, None, None, "")], "title")
    low, high = (float(re.findall(rf'class="line" [^>]*{end}="([\d.]+)"', svg)[0]) for end in ("x1", "x2"))
    half, double = (float(x) for x in re.findall(r'class="dot0" cx="([\d.]+)"', svg))
    assert half - low == pytest.approx(high - half, abs=0.2)  # on a logarithmic scale
    assert double - high == pytest.approx(high - half, abs=0.2)
    assert svg.count('class="line"') == 1


def test_other_work_in_the_folder_is_left_out(work: Path) -> None:
    assert [stage.folder.name for stage in collect(work).stages] == ["train", "prune", "submission"]


def test_a_model_folder_alone_has_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    write_folder(small_classifier(), tmp_path / "model")
    result = slimkit("report", "model", "-o", "page.html", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    page = Page((tmp_path / "page.html").read_text())
    assert "run slimkit score" in page.text
    assert "not measured" in page.text
    again = slimkit("report", "model", "-o", "page.html", cwd=tmp_path)
    assert again.returncode == 1
    assert slimkit("report", "nothing", "-o", "b.html", cwd=tmp_path).returncode == 1
    assert not (tmp_path / "b.html").exists()


def test_bars_are_as_long_as_their_values() -> None:
    svg = bars([Bar("a", 50, 100, "x"), Bar("b", 25, None, "y")], "title")
    lengths = [float(width) for width in re.findall(r'<rect class="(?:pale|bar)" [^>]*width="([\d.]+)"', svg)]
    assert lengths[1] / lengths[0] == pytest.approx(0.5, rel=1e-2)
    assert lengths[2] / lengths[0] == pytest.approx(0.25, rel=1e-2)


def test_charts_take_odd_values() -> None:
    for svg in (
        curves([Line("one", [5.0])], "t", " %"),
        curves([Line("a", [1.0, float("nan"), 3.0]), Line("b", [2.0, 2.0, 2.0])], "t", ""),
        histograms([Line("same", [1.0, 1.0])], "t", "ms"),
        bars([], "t"),
        bars([Bar("<b>", 0)], "t"),
        intervals([Interval("<b>", 1.0, None, None)], "t"),
        heat_map([[0.0, 1.0], [0.0, 0.0]], ["<b>", "c"]),
    ):
        assert "nan" not in svg
        assert "<b>" not in svg


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [390, 1100])
def test_a_browser_shows_it(width: int, work: Path, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(render(collect(work)))
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'user'}",
    )
    command = [str(BROWSER), *flags, f"--window-size={width},900"]
    page = (tmp_path / "page.html").as_uri()
    subprocess.run(
        [*command, f"--screenshot={tmp_path / 'shot.png'}", page], check=True, capture_output=True, timeout=90
    )
    shown = subprocess.run(
        [*command, "--dump-dom", page], check=True, capture_output=True, text=True, timeout=90
    ).stdout
    assert "What is not shown" in shown
    with Image.open(tmp_path / "shot.png") as shot:
        assert len(set(shot.convert("L").getdata())) > 20  # text and charts, not an empty page
