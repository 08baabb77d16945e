"""What each group alone costs and saves."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import grouping_of, short_classifier, small_classifier
from PIL import Image

from slimkit.cli.app import main
from slimkit.core.errors import UsageError
from slimkit.core.folder import read_folder, write_folder
from slimkit.core.pruning import prune_module
from slimkit.core.pruning.choose.sensitivity import (
    RATES,
    GroupSensitivity,
    Sensitivity,
    accuracy_lost,
    read_sensitivity,
)


def test_the_report_is_a_table_json_and_a_picture(
    tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = short_classifier()
    write_folder(model, tmp_path / "base")
    flags = ["--data", str(image_folder), "--threads", "1", "--calibration-images", "8", "-o", str(tmp_path / "out")]
    assert main(["prune", str(tmp_path / "base"), "--sensitivity", *flags]) == 0
    table = capsys.readouterr().out
    assert "down" in table
    assert "points lost" in table
    report = read_sensitivity(tmp_path / "out.sensitivity.json")
    assert len(report.entries) == 3 * len(RATES)  # the stream, the inner layer of its block, the layer behind
    whole = prune_module(model.module, (3, 32, 32), rate=0.5).report
    for entry in report.entries:
        assert entry.width == entry.width_before - int(entry.rate * entry.width_before + 0.5)
        assert 0 < entry.macs_saved < whole.before.macs
        assert 0 < entry.bytes_saved < whole.before.bytes
    # the block's inner layer: at rate 0.5 half of two 3x3 convolutions of 8 channels at 16x16 pixels
    inner = next(e for e in report.entries if e.layers == ("one",) and e.rate == 0.5)
    assert inner.macs_saved == 2 * 4 * 8 * 9 * 16 * 16
    assert inner.bytes_saved == 4 * (2 * 4 * 8 * 9 + 4 * 4)  # and four numbers of BatchNorm a channel
    with Image.open(tmp_path / "out.sensitivity.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 400
        assert picture.height > 300  # of three rows
    assert not (tmp_path / "out").exists()
    assert main(["prune", str(tmp_path / "base"), "--sensitivity", *flags]) == 1  # it is there already


def report(*lost: float, name: str = "conv1") -> Sensitivity:
    entries = tuple(
        GroupSensitivity((name,), rate, 100, round(100 * (1 - rate)), points, 1.0, 1, 1)
        for rate, points in zip((0.2, 0.4, 0.6), lost, strict=True)
    )
    return Sensitivity("model", 70.0, True, 100, 5.0, "fp32", 10**6, 10**6, entries)


def test_the_points_lost_are_interpolated_and_never_fall() -> None:
    lost = accuracy_lost(report(1.0, 0.5, 4.0), ["conv1"], (100,))
    at = [lost(0, width) for width in (100, 90, 80, 60, 50, 40, 20)]
    assert at == pytest.approx([0, 0.5, 1.0, 1.0, 2.5, 4.0, 7.0], abs=0.01)


def test_a_report_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no group of conv1 with 64 channels"):
        accuracy_lost(report(1, 2, 3), ["conv1"], (64,))
    with pytest.raises(UsageError, match="no group of conv2"):
        accuracy_lost(report(1, 2, 3), ["conv2"], (100,))
    file = tmp_path / "report.json"
    file.write_text(json.dumps(dataclasses.asdict(report(1, 2, 3))))
    assert read_sensitivity(file) == report(1, 2, 3)
    file.write_text("[]")
    with pytest.raises(UsageError, match="is no sensitivity report"):
        read_sensitivity(file)


def test_a_budget_is_spent_on_the_groups_that_the_report_calls_cheap(tmp_path: Path, image_folder: Path) -> None:
    model = small_classifier(width=16)
    write_folder(model, tmp_path / "base")
    grouping = grouping_of(model.module, (3, 32, 32))
    entries = [
        GroupSensitivity((name,), 0.5, group.width, group.width // 2, 50.0 * ("layer4" not in name), 1.0, 1, 1)
        for group in grouping.groups
        for name in [group.name]
    ]
    file = tmp_path / "report.json"
    file.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(report(1, 2, 3), entries=tuple(entries)))))
    flags = [
        "--data",
        str(image_folder),
        "--calibration-images",
        "8",
        "--no-reconstruct",
        "--use-sensitivity",
        str(file),
    ]
    cut = str(tmp_path / "cut")
    assert main(["prune", str(tmp_path / "base"), "--macs", "0.9", "--round-to", "none", *flags, "-o", cut]) == 0
    layers = [layer for layer in read_folder(tmp_path / "cut").architecture.layers if layer.type == "Conv2d"]
    assert {layer.name.split(".")[0] for layer in layers if layer.out_channels < layer.width_before} == {"layer4"}
    before = sum(layer.macs for layer in model.architecture.layers)
    assert (
        0.85 * before < sum(layer.macs for layer in read_folder(tmp_path / "cut").architecture.layers) <= 0.9 * before
    )
    assert main(["prune", str(tmp_path / "base"), "--rate", "0.3", *flags, "-o", str(tmp_path / "other")]) == 2
