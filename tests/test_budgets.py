"""Budgets: what is found for them, and what is said where they can't be kept."""

import json
from pathlib import Path

import pytest
import torch
from conftest import grouping_of, short_classifier, small_classifier
from families import family
from torch import nn

from slimkit.cli.app import main
from slimkit.core.errors import MissedError, UsageError
from slimkit.core.folder import read_architecture, read_metadata, write_folder
from slimkit.core.pruning.choose.budgets import (
    Chosen,
    Point,
    absolute,
    fit_accuracy,
    fit_latency,
    fit_severity,
    parse_latency,
    spend_rest,
)
from slimkit.core.pruning.choose.narrowing import narrow_down
from slimkit.core.pruning.cost.shapes import Cost, Shapes
from slimkit.core.pruning.cut.surgery import cut_channels


@pytest.fixture
def base(tmp_path: Path, image_folder: Path) -> Path:
    """A model folder with 16 to 128 channels beside a data set."""
    write_folder(small_classifier(width=16), tmp_path / "base")
    return tmp_path / "base"


def prune(base: Path, *flags: str) -> int:
    data = ["--data", str(base.parent / "images"), "--threads", "1", "--calibration-images", "16", "-q"]
    return main(["prune", str(base), "-o", str(base.parent / "cut"), "--no-reconstruct", *data, *flags])


def sizes(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """MACs by the formula of a convolution, parameters and bytes, all by looking at the network itself."""
    macs = 0

    def count(layer: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(layer, nn.Conv2d):
            kernel = layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels // layer.groups
            macs += kernel * layer.out_channels * output.shape[2] * output.shape[3]
        elif isinstance(layer, nn.Linear):
            macs += layer.in_features * layer.out_features

    for layer in module.modules():
        layer.register_forward_hook(count)
    module(torch.zeros(1, *shape))
    parameters = sum(p.numel() for p in module.parameters())
    return macs, parameters, sum(t.numel() * t.element_size() for t in module.state_dict().values())


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "resnext", "vgg"])
def test_the_cost_is_told_from_the_widths_without_cutting(name: str) -> None:
    grouping = grouping_of(family(name), (3, 64, 64))
    groups, shapes = grouping.groups, Shapes(grouping, (3, 64, 64))
    chosen = [torch.arange(int(0.37 * group.width)) for group in groups]
    cost = shapes.cost(tuple(g.width - len(lost) for g, lost in zip(groups, chosen, strict=True)))
    cut = cut_channels(grouping, chosen).network()
    assert (cost.macs, cost.parameters, cost.bytes) == sizes(cut, (3, 64, 64))
    assert shapes.cost(shapes.full) == Cost(*sizes(grouping.graph.network(), (3, 64, 64)))


def lost(*counts: int) -> Chosen:
    return tuple(torch.arange(count) for count in counts)


def test_the_search_ends_at_the_least_cut_within_the_budget() -> None:
    def choose(severity: float) -> Chosen:
        return lost(int(100 * severity), int(50 * severity))

    def cost(chosen: Chosen) -> float:
        return 150.0 - sum(map(len, chosen))

    within, beyond = fit_severity(choose, cost, 100, what="channels")
    assert [len(c) for c in within] == [34, 17]  # before 0.34 33 and 16 go
    assert cost(beyond) == 101
    with pytest.raises(MissedError, match=r"1\.5 channels was missed.* 2 to 150 channels"):
        fit_severity(choose, cost, 1.5, what="channels")


def test_what_the_steps_leave_of_a_budget_is_spent_on_single_groups() -> None:
    within, beyond = lost(20, 20, 20), lost(10, 10, 10)
    prices = (5, 3, 1)  # of a channel in each group

    def cost(chosen: Chosen) -> float:
        return sum(price * (100 - len(c)) for price, c in zip(prices, chosen, strict=True))

    assert [len(c) for c in spend_rest(within, beyond, cost, 720 + 65)] == [10, 20, 10]  # 50 and 10; 30 would not fit


def test_the_accuracy_is_kept_by_the_most_severe_cut_that_was_tried() -> None:
    def choose(severity: float) -> Chosen:
        return lost(round(1000 * severity))

    def try_out(chosen: Chosen) -> tuple[int, float]:
        return len(chosen[0]), 90 - len(chosen[0]) / 50  # 80 % at 500

    kept = fit_accuracy(choose, try_out, 80.0)
    assert 500 - 990 / 2**6 <= kept <= 500
    with pytest.raises(MissedError, match=r"95\.00 % was not kept"):
        fit_accuracy(choose, try_out, 95.0)


def test_the_group_that_loses_least_for_a_ms_is_narrowed_first() -> None:
    # both groups lose 1 a step; one saves 1 ms, the other 3 ms, until there is nothing left to take from it
    per_step = (1.0, 3.0)
    path = narrow_down(
        (16, 16),
        steps=(4, 4),
        max_rate=0.5,
        lost=lambda group, width: (16 - width) / 4,
        saved=lambda group, widths, width: per_step[group] * (widths[group] - width) / 4,
    )
    assert path == ((16, 16), (16, 12), (16, 8), (12, 8), (8, 8))


POINTS = tuple(Point((width,), width / 10) for width in range(100, 9, -1))  # predicted: 10 ms down to 1


@pytest.mark.parametrize(("factor", "constant"), [(1.0, 0.0), (1.7, 0.0), (0.4, 2.0)])
def test_a_latency_budget_is_met_whatever_the_machine_adds(factor: float, constant: float) -> None:
    measured = []

    def measure(point: Point) -> float:
        measured.append(factor * point.ms + constant)
        return measured[-1]

    found = factor * fit_latency(POINTS, measure, 5.0).ms + constant
    assert 0.9 * 5 <= found <= 5
    assert len(measured) <= 5


def test_a_latency_out_of_reach_tells_the_range() -> None:
    with pytest.raises(MissedError, match=r"0\.5 ms was missed.* 2 to 20 ms"):
        fit_latency(POINTS, lambda point: 2 * point.ms, 0.5)
    with pytest.raises(UsageError, match="takes 20 ms already"):
        fit_latency(POINTS, lambda point: 2 * point.ms, 21)


def test_budgets_are_shares_or_numbers() -> None:
    assert absolute("macs", 0.5, 80) == 40
    assert absolute("macs", 60, 80) == 60
    for given in (0, -1, float("nan"), 1.0, 81):
        with pytest.raises(UsageError, match="--macs"):
            absolute("macs", given, 80)


def test_a_latency_may_have_a_unit() -> None:
    assert [parse_latency(text) for text in ("4ms", "4", "0.004 s", "4000us")] == pytest.approx([4.0] * 4)
    for text in ("4 minutes", "-4ms", "fast", "0", "1.2.3"):
        with pytest.raises(UsageError, match="is no time"):
            parse_latency(text)


@pytest.mark.parametrize(("flag", "figure"), [("--macs", "macs"), ("--params", "parameters")])
def test_the_written_network_keeps_to_a_budget(base: Path, flag: str, figure: str) -> None:
    assert prune(base, flag, "0.5") == 0
    before, after = read_architecture(base), read_architecture(base.parent / "cut")
    kept = getattr(after, figure) / getattr(before, figure)
    assert 0.4 < kept <= 0.5
    recorded = read_metadata(base.parent / "cut")["figures"]
    assert recorded[figure] == getattr(after, figure)
    assert after.training_details[-1]["whole"] == {"fc": "it gives the network's answer"}


@pytest.mark.parametrize("flags", [["--rate", "0.5"], ["--macs", "0.4"]])
def test_a_cut_in_steps_ends_where_one_step_does(
    base: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(base, *flags, "--round-to", "none", "--steps", "3", "--json") == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    before, after = read_architecture(base), read_architecture(base.parent / "cut")
    assert [detail["stage"] for detail in after.training_details] == ["prune"] * 3
    assert (figures["macs_before"], figures["parameters_before"]) == (before.macs, before.parameters)
    assert figures["rate_reached"] == pytest.approx(figures["rate_asked"], abs=0.02)
    if flags[0] == "--macs":
        assert 0.35 < after.macs / before.macs <= 0.4
    else:  # half of 16 to 128 channels in thirds, each rounded by itself
        assert figures["rate_asked"] == pytest.approx(0.5)
        assert all(0.4 < layer.out_channels / layer.width_before < 0.6 for layer in after.layers[:-1])


def test_steps_are_for_sizes(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(base, "--latency", "4ms", "--steps", "2") == 2
    assert prune(base, "--steps", "0") == 2
    assert "--steps 0 can't be done" in capsys.readouterr().err


def test_a_latency_is_kept_and_recorded(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(short_classifier(), base, force=True)  # fewer layers are timed
    assert prune(base, "--latency", "0.00001ms") == 3
    assert "From the smallest to the largest network there are" in capsys.readouterr().err
    assert not (base.parent / "cut").exists()
    assert prune(base, "--latency", "100 s") == 2
    assert "already" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--macs", "1e-9"], ["--params", "2"]])
def test_a_missed_budget_writes_nothing(base: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(base, *flags) == 3
    assert "smallest to the largest network" in capsys.readouterr().err
    assert sorted(path.name for path in base.parent.iterdir()) == ["base", "images"]


def test_any_drop_that_is_large_enough_is_kept(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(base, "--max-drop", "99", "--finetune-epochs", "1", "--json") == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["budget"] == "max drop 99 points"
    stages = [detail["stage"] for detail in read_architecture(base.parent / "cut").training_details]
    assert stages == ["prune", "finetune"]
    assert figures["parameters"] < 0.1 * figures["parameters_before"]


def test_one_budget_at_a_time(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(base, "--macs", "0.5", "--max-drop", "1") == 2
    assert "--macs and --max-drop are several budgets" in capsys.readouterr().err
