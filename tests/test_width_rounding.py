"""Widths in the steps of the CPU's kernels."""

from pathlib import Path

import pytest
import torch
from conftest import small_classifier
from torch import nn

from slimkit.core.data import ImageSet, open_dataset
from slimkit.core.errors import UsageError
from slimkit.core.options import PruneOptions
from slimkit.core.pruning.cost.width_rounding import WIDTHS, find_step, kernel_step, steps_of
from slimkit.core.pruning.stage import prune_to_budget


def staircase(step: int) -> dict[int, float]:
    """ms of a kernel that computes `step` channels at once: as many blocks in as out."""
    return {width: (-(-width // step)) ** 2 * step**2 * 1e-3 for width in WIDTHS}


@pytest.mark.parametrize("step", [8, 16, 32])
def test_the_step_of_a_staircase_is_found(step: int) -> None:
    noise = torch.Generator().manual_seed(0)
    times = {width: ms * (1 + 0.03 * torch.randn((), generator=noise).item()) for width, ms in staircase(step).items()}
    assert find_step(times) == step


def test_a_smooth_curve_has_no_steps() -> None:
    assert find_step({width: width**2 for width in WIDTHS}) == 1
    assert find_step({width: float(width) for width in WIDTHS}) == 1


def test_narrow_groups_get_smaller_steps_and_never_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLIMKIT_CACHE", str(tmp_path))
    step = kernel_step()
    assert step in (1, 8, 16, 32)
    steps = steps_of("auto", [2, 8, 4096])
    assert steps[-1] == step
    assert all(4 * each <= width or each == 1 for each, width in zip(steps, [2, 8, 4096], strict=True))
    assert list(tmp_path.rglob("*.json"))  # the curve is kept for the next time


def test_steps_that_are_given_are_taken() -> None:
    assert steps_of("none", [64, 512]) == [1, 1]
    assert steps_of("24", [64, 512]) == [24, 24]
    for wrong in ("0", "-8", "8.0", "sometimes"):
        with pytest.raises(UsageError, match="--round-to"):
            steps_of(wrong, [64])


@pytest.fixture
def data(image_folder: Path) -> ImageSet:
    return open_dataset(str(image_folder), image_size=32, resize=36)


@pytest.mark.parametrize(("rate", "scope"), [(0.1, "local"), (0.3, "global"), (0.55, "local")])
def test_rounded_widths_have_no_more_parameters_and_macs(data: ImageSet, rate: float, scope: str) -> None:
    def sizes(round_to: str) -> tuple[int, int, list[int]]:
        options = PruneOptions(
            rate=rate, importance="l1", scope=scope, round_to=round_to, reconstruct=False, calibration_images=8
        )
        made = prune_to_budget(small_classifier(width=32), data, options).result.classifier
        module, macs = made.module, made.architecture.macs
        widths = [layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        return sum(p.numel() for p in module.parameters()), macs, widths

    exact, rounded = sizes("none"), sizes("8")
    widths = rounded[2]
    assert rounded[0] <= exact[0]
    assert rounded[1] <= exact[1]
    assert max(rounded[0] / exact[0], rounded[1] / exact[1]) >= 0.8
    assert all(width % 8 == 0 and width > 0 for width in widths)
