"""Layers timed on this CPU, and a network's latency told from them. No time itself is asserted."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import grouping_of
from torch import nn

from slimkit.core.errors import ModelError
from slimkit.core.measure.layer_times import TimedLayer, time_layers
from slimkit.core.pruning.cost.latency_table import LatencyTable, timed_layers
from slimkit.core.pruning.cost.shapes import Shapes


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIMKIT_CACHE", str(tmp_path))
    return tmp_path / "layer-times"


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding="valid", groups=32),
        nn.Conv2d(32, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()


def test_layers_are_known_by_what_their_time_depends_on() -> None:
    layers = timed_layers(network(), (3, 17, 19))
    one = (1, 1)
    assert layers == {
        "0": TimedLayer("Conv2d", 3, 32, (3, 3), one, one, one, groups=1, height=17, width=19),
        "2": TimedLayer("Conv2d", 32, 32, (3, 3), (2, 2), (0, 0), one, groups=32, height=17, width=19),
        "3": TimedLayer("Conv2d", 32, 64, one, one, (0, 0), one, groups=1, height=8, width=9),
        "6": TimedLayer("Linear", 64, 10),
    }


@pytest.mark.parametrize("runtime", ["fp32", "int8", "onnx"])
def test_times_are_kept_for_the_next_time(cache: Path, runtime: str) -> None:
    layers = [TimedLayer("Linear", 16, 8), timed_layers(network(), (3, 16, 16))["0"]]
    times = time_layers(layers, runtime, threads=1)
    assert all(ms > 0 for ms in times.values())
    (file,) = cache.iterdir()
    known = json.loads(file.read_text())
    file.write_text(json.dumps(dict.fromkeys(known, 42.0)))
    assert set(time_layers(layers, runtime, threads=1).values()) == {42.0}  # not timed again
    other = time_layers(layers[:1], runtime, threads=1, batch_size=2)
    assert other != {layers[0]: 42.0}  # another batch size is another file
    file.write_text("{broken")
    assert 42.0 not in time_layers(layers[:1], runtime, threads=1).values()


def test_a_layer_that_can_not_be_run_is_named(cache: Path) -> None:
    broken = TimedLayer("Conv2d", 3, 8, (9, 9), (1, 1), (0, 0), (1, 1), groups=1, height=4, width=4)
    with pytest.raises(ModelError, match=r"inputs=3 outputs=8 kernel_size=\(9, 9\)"):
        time_layers([broken], "fp32", threads=1)


def fill_cache(cache: Path, layers: dict[str, TimedLayer]) -> None:
    """Pretend that a layer takes inputs * outputs / groups / 1000 ms."""
    (file,) = cache.iterdir()
    known = json.loads(file.read_text())
    for key in known:
        fields = dict(part.split("=", 1) for part in key.replace(", ", ",").split())
        known[key] = int(fields["inputs"]) * int(fields["outputs"]) / int(fields.get("groups", 1)) / 1000
    file.write_text(json.dumps(known))


def test_the_prediction_is_the_sum_of_the_layers_at_their_widths(cache: Path) -> None:
    module = network()
    shapes = Shapes(grouping_of(module, (3, 16, 16)), (3, 16, 16))
    LatencyTable(module, shapes, (3, 16, 16), partial(time_layers, runtime="fp32", threads=1))
    fill_cache(cache, timed_layers(module, (3, 16, 16)))
    table = LatencyTable(module, shapes, (3, 16, 16), partial(time_layers, runtime="fp32", threads=1))
    assert shapes.full == (32, 64)
    for first, second in ((32, 64), (16, 32), (24, 48), (20, 64)):
        # in, depthwise, out, classifier: bilinear in the widths, so interpolation is exact
        wanted = (3 * first + first + first * second + second * 10) / 1000
        assert table.ms((first, second)) == pytest.approx(wanted, rel=1e-4)
    saved = table.ms((32, 64)) - table.ms((32, 40))
    assert table.ms_saved(1, (32, 64), 40) == pytest.approx(saved, rel=1e-4)


def test_more_channels_are_never_predicted_to_be_faster(cache: Path) -> None:
    module = network()
    shapes = Shapes(grouping_of(module, (3, 16, 16)), (3, 16, 16))
    LatencyTable(module, shapes, (3, 16, 16), partial(time_layers, runtime="fp32", threads=1))
    (file,) = cache.iterdir()
    known = json.loads(file.read_text())
    noise = torch.rand(len(known), generator=torch.Generator().manual_seed(0)).tolist()
    file.write_text(json.dumps(dict(zip(known, noise, strict=True))))
    table = LatencyTable(module, shapes, (3, 16, 16), partial(time_layers, runtime="fp32", threads=1))
    # the depthwise layer is timed along its one width, the others over both: all of them grow
    times = [table.ms((32, width)) for width in range(1, 65)]
    assert times == sorted(times)
    times = [table.ms((width, 64)) for width in range(1, 33)]
    assert times == sorted(times)
