"""Which channels matter: each importance on a network whose answer is known."""

import pytest
import torch
from conftest import grouping_of, small_classifier
from torch import Tensor, nn

from slimkit.core.errors import ModelError, UsageError
from slimkit.core.pruning.choose.importance import IMPORTANCES, score_groups


def two_layers(filters: Tensor, readers: Tensor | None = None) -> nn.Module:
    """A 1x1 convolution with the weights [width, 3], BatchNorm, ReLU, and a 1x1 convolution [2, width]."""
    width = len(filters)
    module = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2, 1)).eval()
    module[0].weight.data.copy_(filters[:, :, None, None])
    module[0].bias.data.zero_()
    if readers is not None:
        module[3].weight.data.copy_(readers[:, :, None, None])
    return module


def ranking(module: nn.Module, importance: str, batches: list[Tensor] | None = None) -> list[int]:
    """The channels of the only group, the least important first."""
    (scores,) = score_groups(grouping_of(module, (3, 4, 4)), importance, batches)
    return scores.argsort().tolist()


def test_l1_and_l2_are_norms_of_the_filters() -> None:
    filters = torch.tensor([[3.0, 0, 0], [1.5, 1.5, 1.5], [0, 0, 1]])  # l1: 3, 4.5, 1; l2: 3, 2.6, 1
    assert ranking(two_layers(filters), "l1") == [2, 0, 1]
    assert ranking(two_layers(filters), "l2") == [2, 1, 0]


def test_fpgm_finds_the_filter_that_is_amid_the_others() -> None:
    filters = torch.tensor([[0.0, 0, 9], [1, 0, 5], [0, 0, 5], [0, 1, 5], [0, 0, 1]])
    assert ranking(two_layers(filters), "fpgm")[0] == 2


def test_bn_scale_reads_the_scales_and_wants_some() -> None:
    module = two_layers(torch.rand(4, 3))
    module[1].weight.data = torch.tensor([0.5, -2, 0.1, 1])
    assert ranking(module, "bn_scale") == [2, 0, 3, 1]
    with pytest.raises(ModelError, match="0 is followed by no BatchNorm"):
        ranking(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), "bn_scale")


def test_taylor_sees_what_the_loss_depends_on() -> None:
    torch.manual_seed(0)
    readers = torch.tensor([[0.0, 2, 0.1, 1], [0, -2, -0.1, -1]])
    module = two_layers(torch.ones(4, 3), readers).append(nn.Flatten()).append(nn.Linear(32, 2))
    batches = [torch.rand(8, 3, 4, 4) for _ in range(4)]
    scores = score_groups(grouping_of(module, (3, 4, 4)), "taylor", batches)[0]
    assert scores[0] == 0
    assert scores[2] < scores[3] < scores[1]
    assert all(parameter.grad is None for parameter in module.parameters())


def test_error_takes_the_first_of_two_channels_that_say_the_same_and_keeps_the_second() -> None:
    torch.manual_seed(0)
    filters = torch.tensor([[2.0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 3]])
    readers = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, -1]])
    images = [torch.rand(64, 3, 4, 4) for _ in range(4)]
    order = ranking(two_layers(filters, readers), "error", images)
    assert order[0] in (0, 1)  # the other one can stand in
    assert order[1] == 2  # the quietest of those that nothing stands in for
    assert ranking(two_layers(filters, readers), "l1")[:2] == [2, 0]  # which norms don't see


def test_error_is_what_is_left_after_the_best_linear_repair() -> None:
    torch.manual_seed(0)
    filters, readers = torch.randn(3, 3), torch.randn(2, 3)
    module = two_layers(filters, readers)
    images = torch.randn(512, 3, 4, 4)
    (scores,) = score_groups(grouping_of(module, (3, 4, 4)), "error", [images])
    inputs = module[:3](images).detach().double().movedim(1, -1).flatten(0, -2)
    inputs -= inputs.mean(0)
    outputs = inputs @ readers.double().T
    left = []
    for channel in range(3):
        rest = inputs[:, [other for other in range(3) if other != channel]]
        repaired = rest @ torch.linalg.lstsq(rest, outputs).solution
        left.append(float((repaired - outputs).square().sum() / outputs.square().sum()))
    assert scores.argmin() == torch.tensor(left).argmin()
    assert scores.min() == pytest.approx(min(left), rel=0.02)


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_each_gives_every_group_a_finite_score_that_repeats(importance: str) -> None:
    module = small_classifier().module
    grouping = grouping_of(module, (3, 32, 32))
    batches = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    first, second = (score_groups(grouping, importance, batches) for _ in range(2))
    for group, scores, again in zip(grouping.groups, first, second, strict=True):
        assert scores.shape == (group.width,)
        assert scores.isfinite().all()
        assert (scores >= 0).all()
        torch.testing.assert_close(scores, again)


def test_error_knows_grouped_and_very_wide_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    inner = [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU()]
    module = nn.Sequential(*inner, nn.Flatten(), nn.Linear(8 * 16, 2)).eval()
    for layer, channels in ((module[0], [3, 7]), (module[2], [1, 5])):  # the two groups lose the same offsets
        layer.weight.data[channels] = 0
        layer.bias.data[channels] = 0
    monkeypatch.setattr("slimkit.core.pruning.choose.elimination.MAX_UNKNOWNS", 100)
    grouping = grouping_of(module, (3, 4, 4))
    first, second = score_groups(grouping, "error", [torch.randn(16, 3, 4, 4)])
    assert first.argmin() == 3
    assert second.argmin() == 1


def test_an_importance_that_is_unknown_or_lacks_images_is_a_usage_error() -> None:
    module = two_layers(torch.rand(4, 3))
    with pytest.raises(UsageError, match="no importance called l3"):
        ranking(module, "l3")
    with pytest.raises(UsageError, match="taylor is measured on images"):
        ranking(module, "taylor")


@pytest.mark.parametrize("importance", ["random", "taylor", "error"])
def test_what_is_drawn_hangs_on_the_seed(importance: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    module(torch.zeros(1, 3, 64, 64))
    grouping = grouping_of(module, (3, 64, 64))
    batches = [torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(index)) for index in range(2)]
    scores = [torch.cat(score_groups(grouping, importance, batches, seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
