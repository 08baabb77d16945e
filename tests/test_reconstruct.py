"""Repair after a cut: layers solved anew by least squares."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import grouping_of, small_classifier
from families import family
from torch import Tensor, nn

from slimkit.core.errors import ModelError
from slimkit.core.graph import Graph, capture
from slimkit.core.graph.lockstep import Lockstep
from slimkit.core.pruning.cut.surgery import cut_channels
from slimkit.core.pruning.prune import kept_outputs
from slimkit.core.pruning.repair.recalibrate import recalibrate
from slimkit.core.pruning.repair.reconstruct import reconstruct
from slimkit.core.regression.least_squares import Equations
from slimkit.standalone.model import GraphNetwork

pytestmark = pytest.mark.numeric


def images(batches: int = 4, size: int = 16, side: int = 16, seed: int = 0) -> list[Tensor]:
    """Smooth random images, since neighbouring pixels of photographs are alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batches, size, 3, side // 4, side // 4, generator=generator)
    return [nn.functional.interpolate(batch, scale_factor=4.0, mode="bilinear") for batch in coarse]


def error(original: nn.Module, cut: nn.Module, batch: Tensor) -> float:
    """The error of the cut network's answers, as a share of the original's variance."""
    with torch.no_grad():
        wanted, got = original(batch), cut(batch)
    return float((got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


@dataclass(frozen=True)
class Halved:
    """A network and what is left of it."""

    graph: Graph
    cut: GraphNetwork
    kept: dict[str, Tensor]

    def copy(self) -> GraphNetwork:
        return copy.deepcopy(self.cut)

    def solve(self, cut: GraphNetwork, batches: list[Tensor], **options: Any) -> int:
        return reconstruct(self.graph, cut, self.kept, batches, **options)


def cut_of(module: nn.Module, channels: list[Tensor], side: int = 16) -> Halved:
    grouping = grouping_of(module, (3, side, side))
    return Halved(grouping.graph, cut_channels(grouping, channels).network(), kept_outputs(grouping, channels))


def half_of(module: nn.Module, side: int = 16) -> Halved:
    return cut_of(module, [torch.arange(g.width // 2) for g in grouping_of(module, (3, side, side)).groups], side)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("offset", [False, True])
def test_equations_are_solved_as_torch_solves_them(monkeypatch: pytest.MonkeyPatch, wide: bool, offset: bool) -> None:
    if wide:
        monkeypatch.setattr("slimkit.core.regression.least_squares.MAX_UNKNOWNS", 1)
    torch.manual_seed(0)
    rows, targets = torch.randn(2, 300, 7) + 1, torch.randn(2, 300, 4)
    equations = Equations(7, offset=offset)
    for start in range(0, 300, 50):
        equations.add(rows[:, start : start + 50], targets[:, start : start + 50])
    weights, offsets = equations.solve(torch.randn(2, 7, 4), ridge=1e-9)
    known = torch.cat([rows, torch.ones(2, 300, 1)], 2) if offset else rows
    wanted = torch.linalg.lstsq(known.double(), targets.double()).solution
    torch.testing.assert_close(weights, wanted[:, :7], rtol=1e-4, atol=1e-4)
    if offset:
        torch.testing.assert_close(offsets, wanted[:, 7:], rtol=1e-4, atol=1e-4)
    else:
        assert not offsets.any()


@pytest.mark.parametrize("offset", [False, True])
def test_renewed_targets_are_solved_as_if_they_were_the_first(offset: bool) -> None:
    torch.manual_seed(0)
    rows, first, second = torch.randn(2, 5000, 7) + 1, torch.randn(2, 5000, 3), torch.randn(2, 5000, 3) + 2
    weights = torch.randn(2, 7, 3)
    renewed, fresh = Equations(7, offset=offset), Equations(7, offset=offset)
    for start in range(0, 5000, 700):
        renewed.add(rows[:, start : start + 700], first[:, start : start + 700])
    renewed.solve(weights, ridge=0.1)
    renewed.renew_targets()
    for start in range(0, 5000, 700):
        renewed.add(rows[:, start : start + 700], second[:, start : start + 700])
    fresh.add(rows, second)
    for got, wanted in zip(renewed.solve(weights, 0.1), fresh.solve(weights, 0.1), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_rows_that_hardly_vary_are_solved_all_the_same() -> None:
    """Means of large maps are like that: a thousand times their own spread, which float32 sums of squares lose."""
    torch.manual_seed(0)
    rows = torch.randn(1, 4000, 6) + 1e4
    true = torch.randn(1, 6, 3)
    equations = Equations(6, offset=True)
    equations.add(rows, (rows.double() @ true.double()).float())
    weights, _ = equations.solve(torch.zeros(1, 6, 3), ridge=1e-9)
    torch.testing.assert_close(weights, true.double(), rtol=0.01, atol=0.01)


def test_activations_that_are_not_finite_are_an_error() -> None:
    equations = Equations(5, offset=False)
    equations.add(torch.full((1, 100, 5), torch.nan), torch.randn(1, 100, 3))
    with pytest.raises(ModelError, match="not finite"):
        equations.solve(torch.randn(1, 5, 3), ridge=1e-3)


def test_a_large_ridge_keeps_the_weights() -> None:
    torch.manual_seed(0)
    equations = Equations(5, offset=False)
    equations.add(torch.randn(1, 100, 5), torch.randn(1, 100, 3))
    weights = torch.randn(1, 5, 3)
    torch.testing.assert_close(equations.solve(weights, ridge=1e9)[0], weights.double())


def test_without_a_cut_the_answers_stay() -> None:
    module = small_classifier().module
    graph = capture(module, (3, 16, 16))
    same = graph.network()
    reconstruct(graph, same, {}, images())
    assert error(module, same, images(seed=1)[0]) < 1e-4


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (nn.Conv2d, {"kernel_size": 3, "padding": 1}),
        (nn.Conv2d, {"kernel_size": (3, 1), "stride": (2, 1), "padding": (2, 0), "dilation": (2, 1)}),
        (nn.Conv2d, {"kernel_size": (3, 5), "padding": "same"}),
        (nn.Conv2d, {"kernel_size": 3, "padding": 2, "padding_mode": "reflect", "bias": False}),
        (nn.Conv2d, {"kernel_size": 3, "groups": 2}),
    ],
)
def test_a_copied_channel_is_made_good_exactly(layer: type[nn.Module], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), layer(8, 4, **options), nn.Flatten(), nn.LazyLinear(3)).eval()
    module(images()[0])
    module[0].weight.data[[1, 5]] = module[0].weight.data[[0, 4]]
    module[0].bias.data[[1, 5]] = module[0].bias.data[[0, 4]]
    groups = grouping_of(module, (3, 16, 16)).groups
    lost = torch.tensor([1]) if groups[0].width == 4 else torch.tensor([1, 5])  # one of the 4 pairs that go together
    made = cut_of(module, [lost, *[torch.tensor([], dtype=torch.int64)] * (len(groups) - 1)])
    before = error(module, made.cut, images(seed=1)[0])
    assert made.solve(made.cut, images()) == 64
    assert before > 0.02
    assert error(module, made.cut, images(seed=1)[0]) < 0.001


def test_a_residual_network_cut_in_half_is_repaired_better_than_by_batch_norm() -> None:
    module = small_classifier(width=16).module
    recalibrate(module, images(16))
    made = half_of(module)
    plain, solved = made.copy(), made.cut
    recalibrate(plain, images(16))
    assert made.solve(solved, images(16)) == 256
    assert error(module, solved, images(16)[0]) < 0.3 * error(module, plain, images(16)[0])


@pytest.mark.parametrize("name", ["mobilenet_v3", "densenet", "squeezenet"])
def test_other_families_are_repaired(name: str) -> None:
    module = family(name)
    batches = images(4, side=32)
    recalibrate(module, batches)
    made = half_of(module, side=32)
    before = error(module, made.cut, batches[0])
    made.solve(made.cut, batches)
    assert error(module, made.cut, batches[0]) < 0.5 * before


def test_with_little_memory_fewer_images_are_held_and_more_later(monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_classifier(width=16).module
    held: list[int] = []
    monkeypatch.setattr(
        Lockstep,
        "step_changed",
        lambda flow, at, step=Lockstep.step_changed: (held.append(flow.images), step(flow, at)),
    )
    made = half_of(module)
    everything, cut = made.copy(), made.cut
    made.solve(everything, images(16))
    assert set(held) == {256}
    held.clear()
    monkeypatch.setattr("slimkit.core.graph.lockstep.MEMORY_LIMIT", 2**19)
    assert made.solve(cut, images(16)) == 256
    assert min(held) < 128 < held[-1] == 256
    assert error(module, cut, images(16)[0]) < 1.3 * error(module, everything, images(16)[0])


class Twice(nn.Module):
    """A layer that is called twice, one without a bias that nothing follows, and a product over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.plain = nn.Conv2d(8, 6, 3, stride=2, bias=False)
        self.tokens, self.answer = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.plain(x + self.twice(self.twice(x).relu()))
        return self.answer(self.tokens(x.flatten(2).transpose(1, 2)).relu().mean(1))


def test_a_layer_called_twice_keeps_its_weights_and_the_rest_is_repaired() -> None:
    torch.manual_seed(0)
    module = Twice().eval()
    made = half_of(module)
    cut = made.cut
    weight = cut.twice.weight.clone()
    before = error(module, cut, images(seed=1)[0])
    made.solve(cut, images())
    assert torch.equal(cut.twice.weight, weight)
    assert error(module, cut, images(seed=1)[0]) < 0.5 * before


def test_what_is_frozen_and_the_images_stay_as_they_were() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1))
    made = half_of(module.eval())
    batch = images()[0]
    made.solve(made.cut, [batch])
    assert all(parameter.requires_grad for parameter in made.cut.parameters())
    assert torch.equal(batch, images()[0])


def test_a_summand_makes_good_what_the_other_lost() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
            self.beside, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
            self.answer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            side = self.second(self.first(x))
            side += self.norm(self.beside(x))
            return self.answer(side.relu().mean((2, 3)))

    torch.manual_seed(0)
    module = Sum().eval()
    recalibrate(module, images())
    made = cut_of(module, [torch.arange(1, 8), torch.tensor([], dtype=torch.int64)])
    first_alone, cut = made.copy(), made.cut
    made.solve(first_alone, images(), only=("second",))
    made.solve(cut, images(), only=("second", "beside"))
    assert error(module, first_alone, images(seed=1)[0]) > 0.01
    assert error(module, cut, images(seed=1)[0]) < 0.001  # what is lost is linear in x, which the layer beside it reads


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish])
def test_what_the_activation_clips_is_not_fitted(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 4, 1), nn.BatchNorm2d(4), activation())
    recalibrate(module.eval(), images())
    module[3].weight.data.fill_(8.0)
    module[3].bias.data.copy_(torch.tensor([-8.0, -6.0, 6.0, -4.0]))  # much of it lies where the activation is flat
    made = cut_of(module, [torch.arange(3, 12)])
    linear = copy.deepcopy(module)
    linear[0], linear[2] = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)
    linear.load_state_dict(made.cut.state_dict(), strict=False)
    seen = torch.cat([*images()])
    with torch.no_grad():  # the plain least squares, by torch
        rows = linear[:2](seen).movedim(1, -1).reshape(-1, 3)
        rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
        solved = torch.linalg.lstsq(rows, module[:3](seen).movedim(1, -1).reshape(-1, 4)).solution
        linear[2].weight.copy_(solved[:3].T[..., None, None])
        linear[2].bias.copy_(solved[3])
    made.solve(made.cut, images(), only=("2",))
    assert error(module, made.cut, images(seed=1)[0]) < 0.9 * error(module, linear, images(seed=1)[0])


def test_a_norm_after_a_layer_that_is_not_solved_follows_its_inputs() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.twice, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.twice(self.twice(self.stem(x)).relu()))

    torch.manual_seed(0)
    module = Shared().eval()
    module.stem.weight.data *= 10
    recalibrate(module, images())
    graph = capture(module, (3, 16, 16))
    cut = graph.network()
    cut.twice.weight.data *= 0.5
    cut.twice.bias.data += 1
    before, after = (net(images()[0]) for net in (module, cut))
    assert (after - before).abs().mean() > 0.5
    reconstruct(graph, cut, {}, images(), only=())
    after = cut(torch.cat([*images()]))
    torch.testing.assert_close(after.mean((0, 2, 3)), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.std((0, 2, 3)), torch.ones(8), atol=1e-2, rtol=0)


def test_statistics_can_be_measured_anew_without_a_change_of_the_answers() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8, affine=False)).eval()
    module[1].weight.data.uniform_(-2, 2)
    module[1].running_mean += 1
    everything = torch.cat([*images()])
    before = module(everything)
    assert recalibrate(module, images(), keep_answers=True) == 64
    seen = module[0](everything)
    torch.testing.assert_close(module(everything), before)
    torch.testing.assert_close(module[1].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(module[1].running_var, seen.var((0, 2, 3)))
    assert torch.equal(module[3].running_mean, torch.zeros(8))
