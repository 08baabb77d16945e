"""Bits for each layer under a size of the file, and codes that are chosen by what they take."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from conftest import user_classifier
from torch import Tensor, nn

from slimkit.cli.app import main
from slimkit.core.bytes import parse_bytes
from slimkit.core.errors import MissedError, UsageError
from slimkit.core.folder import read_folder
from slimkit.core.options import QuantizeOptions
from slimkit.core.progress import silent
from slimkit.core.quantization import quantize
from slimkit.core.quantization.bits.allocation import (
    Rounding,
    allocate,
    measure_layers,
    total_divergence,
    total_size,
)
from slimkit.core.quantization.simulate import simulate
from slimkit.core.quantization.weights.rate import Grid
from slimkit.core.quantization.weights.rounded import read_rounded
from slimkit.core.quantization.weights.rounding import round_by_least_squares
from slimkit.core.stages import run_quantize
from slimkit.standalone.model import can_saturate

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]


def entropy(codes: Tensor) -> float:
    """Bits for all codes, by the textbook: n times the sum of -p log2 p."""
    shares = codes.flatten().unique(return_counts=True)[1].double() / codes.numel()
    return float(-(shares * shares.log2()).sum() * codes.numel())


def test_a_code_is_taken_a_step_nearer_to_zero_just_where_the_bits_saved_pay_for_the_error() -> None:
    seen = torch.tensor([0.0] * 80 + [1.0] * 14 + [-1.0] * 4 + [2.0] * 2)
    wanted, curvature, price = torch.linspace(-2.5, 2.5, 201), torch.tensor(0.7), 0.1
    got = Grid(-2, 2, price).with_lengths_of(seen).best(wanted, curvature)
    counts = {code: int((seen == code).sum()) + 1 for code in range(-2, 3)}  # one more of each, lest any have none
    lengths = {code: -torch.tensor(count / 105).log2().item() for code, count in counts.items()}
    for number, code in zip(wanted.tolist(), got.tolist(), strict=True):
        near = max(-2, min(2, round(number)))
        choices = (near, near - (near > 0) + (near < 0))
        costs = [0.7 * (choice - number) ** 2 + price * lengths[choice] for choice in choices]
        assert costs[choices.index(int(code))] <= min(costs) + 1e-6


def test_with_a_price_seven_levels_lose_less_than_three_without_one() -> None:
    """A bit more a weight quarters the error of any rounding, so that those of nearly as many bits can be compared."""
    torch.manual_seed(0)
    x = torch.randn(2000, 20) @ torch.randn(20, 120) + 0.3 * torch.randn(2000, 120)
    covariance, weight = (x.T @ x / 2000)[None], torch.randn(1, 64, 120)

    def error(codes: Tensor, scale: Tensor) -> float:
        lost = weight - codes * scale[..., None]
        return float((lost @ covariance * lost).sum())

    plain = round_by_least_squares(weight, covariance, -1, 1)
    price = 1.6 * error(*plain) / weight.numel()
    priced = round_by_least_squares(weight, covariance, -3, 3, price)
    bits, without = (entropy(codes) / weight.numel() for codes in (priced[0], plain[0]))
    assert without - 0.3 < bits < without + 0.3
    assert error(*priced) * 4**bits < 0.9 * error(*plain) * 4**without


def test_no_other_roundings_of_the_same_size_diverge_less() -> None:
    """Against all 5^3 of three layers, with a quarter of the error for each bit, of which the first shows least."""
    choices = {
        name: [Rounding(bits, 0.0, sensitivity * 4.0**-bits, 1000.0 * bits) for bits in (2, 3, 4, 6, 8)]
        for name, sensitivity in (("a", 0.01), ("b", 0.3), ("c", 9.0))
    }
    for size in (7000.0, 9500.0, 13000.0, 20000.0):
        chosen = allocate(choices, size)
        assert total_size(chosen) <= size
        assert chosen["a"].bits <= chosen["b"].bits <= chosen["c"].bits
        for other in itertools.product(*choices.values()):
            roundings = dict(zip(choices, other, strict=True))
            if total_size(roundings) <= total_size(chosen):
                assert total_divergence(roundings) >= total_divergence(chosen)


NETWORK = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)
        )
"""


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def test_a_layer_whose_error_shows_more_in_the_answers_costs_more() -> None:
    """The same layers, of which all that comes behind hears ten times as much."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, 4), nn.Flatten(), nn.Linear(8 * 7 * 7, 3))
    source = user_classifier(module, (3, 32, 32))
    found = []
    for _ in range(2):
        made = quantize(source, scheme="static", calibration=[images(32)]).classifier
        found.append(measure_layers(simulate(source, made), [images(32)], [images(32)], False, silent))
        with torch.no_grad():
            module[-1].weight *= 10
    before, after = found
    assert list(before) == list(after) == ["0", "2", "4"]
    assert all(after[name][0].divergence > 5 * before[name][0].divergence for name in ("0", "2"))


@pytest.fixture
def network(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NETWORK)
    return f"{tmp_path / 'net.py'}:Net"


def options(network: str, image_folder: Path, output: Path, **changes: object) -> QuantizeOptions:
    common = {"data": str(image_folder), "image_size": 32, "weight_bits": "auto", "min_agreement": 0.0}
    return QuantizeOptions(model=network, output=output, **common | changes)  # type: ignore[arg-type]


def file_size(folder: Path) -> int:
    return (folder / "compressed_net.pth").stat().st_size


@pytest.mark.parametrize("how", [{"scheme": "static", "reduce_range": True}, {"scheme": "dynamic"}])
def test_the_file_that_is_written_keeps_to_the_size(
    network: str, image_folder: Path, tmp_path: Path, how: dict[str, object]
) -> None:
    result = run_quantize(options(network, image_folder, tmp_path / "auto", max_size="12KB", **how))
    assert 0.85 * 12288 < file_size(result.folder) <= 12288
    bits = result.architecture.weight_bits
    assert len(bits) == 4
    assert len({*bits.values()}) > 1
    layers = read_rounded(read_folder(result.folder))
    largest = {name: int(layer.codes.abs().max()) for name, layer in layers.items()}
    assert all(largest[name] < 2 ** (bits[name] - 1) for name in bits)
    assert "reduce_range" not in how or not any(can_saturate(layer.codes) for layer in layers.values())


def test_a_size_that_can_not_be_reached_is_refused_with_the_smallest_that_can(
    network: str, image_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(MissedError, match="smallest") as caught:
        run_quantize(options(network, image_folder, tmp_path / "auto", max_size="2KB"))
    assert parse_bytes("2KB") < parse_bytes(caught.value.hint.split()[2]) < parse_bytes("12KB")
    assert not (tmp_path / "auto").exists()


def test_the_command_shows_the_bits_of_each_layer(
    network: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "options.yaml").write_text("weight-bits: auto\nmax_size: 14KB\nimage_size: 32\nmin_agreement: 0\n")
    arguments = ["-c", str(tmp_path / "options.yaml"), "--data", str(image_folder), "-o", str(tmp_path / "out")]
    assert main(["quantize", network, *arguments, "--json"]) == 0
    bits = json.loads(capsys.readouterr().out)["weight_bits"]
    assert main(["inspect", str(tmp_path / "out")]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert all(rows[name].rstrip().endswith(f"int{count}") for name, count in bits.items())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "--max-size"),
        ({"max_size": "2MB", "weight_bits": 4}, "--weight-bits auto"),
        ({"max_size": "two"}, "'two'"),
        ({"max_size": "2MB", "max_drop": 1.0}, "--max-drop"),
        ({"max_size": "2MB", "compress_weights": False}, "--no-compress-weights"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    network: str, image_folder: Path, tmp_path: Path, wrong: dict[str, object], told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        run_quantize(options(network, image_folder, tmp_path / "auto", **wrong))
    assert told in f"{caught.value} {caught.value.hint}"


def test_a_megabyte_is_that_of_the_tables() -> None:
    assert parse_bytes("2MB") == parse_bytes("2 MiB") == parse_bytes("2m") == 2 * 2**20
