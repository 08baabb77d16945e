"""How a share of channels is spread over the groups of a network."""

import pytest
import torch
from conftest import grouping_of, small_classifier
from torch import Tensor, nn

from slimkit.core.errors import UsageError
from slimkit.core.measure.macs import count_macs
from slimkit.core.pruning.channels.groups import Group
from slimkit.core.pruning.choose.allocation import MIN_WIDTH, allocate
from slimkit.core.pruning.cost.shapes import Shapes
from slimkit.core.pruning.cut.surgery import cut_channels


def chain(*widths: int) -> nn.Module:
    """1x1 convolutions of these widths, and a last one of two channels."""
    layers = [nn.Conv2d(i, o, 1) for i, o in zip((3, *widths), (*widths, 2), strict=True)]
    return nn.Sequential(*layers).eval()


def groups_of(module: nn.Module) -> tuple[Group, ...]:
    return grouping_of(module, (3, 8, 8)).groups


def lost(chosen: tuple[Tensor, ...]) -> list[int]:
    return [len(channels) for channels in chosen]


def test_locally_every_group_loses_the_same_share_of_its_least_important() -> None:
    module = chain(10, 20)
    scores = [torch.arange(10.0).flip(0), torch.arange(20.0) * 100]
    chosen = allocate(groups_of(module), scores, 0.3)
    assert [channels.tolist() for channels in chosen] == [[7, 8, 9], [0, 1, 2, 3, 4, 5]]


def test_globally_the_least_important_of_all_go() -> None:
    module = chain(20, 20)
    scores = [torch.arange(20.0), torch.arange(20.0) + 6.5]
    assert lost(allocate(groups_of(module), scores, 0.25, scope="global")) == [8, 2]


def test_what_a_cap_keeps_in_one_group_is_cut_in_another_at_once() -> None:
    module = chain(40, 40)
    scores = [torch.full((40,), 0.1), torch.ones(40)]
    assert lost(allocate(groups_of(module), scores, 0.4, scope="global")) == [32, 0]
    assert lost(allocate(groups_of(module), scores, 0.4, scope="global", max_rate=0.5)) == [20, 12]


def test_a_group_keeps_a_vector_of_channels_whatever_its_scores() -> None:
    module = chain(16, 64)
    scores = [torch.zeros(16), torch.ones(64)]
    assert lost(allocate(groups_of(module), scores, 0.2, scope="global")) == [16 - MIN_WIDTH, 8]


def test_a_channel_that_saves_more_goes_first() -> None:
    module = chain(20, 20)
    scores = [torch.arange(20.0) + 1, torch.arange(20.0) + 1]
    assert lost(allocate(groups_of(module), scores, 0.25, scope="global")) == [5, 5]
    assert lost(allocate(groups_of(module), scores, 0.25, scope="global", costs=[4, 1])) == [8, 2]


def test_isomorphic_groups_are_ranked_among_themselves() -> None:
    module = small_classifier(width=16).module
    groups = grouping_of(module, (3, 32, 32)).groups
    makers = [[maker.layer.name for maker in group.makers] for group in groups]
    scores = [torch.rand(group.width) + (len(names) > 1) for group, names in zip(groups, makers, strict=True)]
    chosen = allocate(groups, scores, 0.25, scope="isomorphic")
    inner = [(group.width, len(c)) for group, c, names in zip(groups, chosen, makers, strict=True) if len(names) == 1]
    assert sum(cut for _, cut in inner) == round(0.25 * sum(width for width, _ in inner))
    assert sum(lost(chosen)) == pytest.approx(0.25 * sum(group.width for group in groups), abs=3)
    assert sum(lost(allocate(groups, scores, 0.25, scope="global"))) > sum(cut for _, cut in inner)
    streams = [len(c) for c, names in zip(chosen, makers, strict=True) if len(names) > 1]
    assert sum(streams) > 0  # though each of their channels scores above every inner one


@pytest.mark.parametrize(("wanted", "kept"), [(0.01, 20), (0.1, 16), (0.3, 16), (0.55, 8), (0.95, 8)])
def test_rounding_takes_the_nearest_multiple_and_never_none(wanted: float, kept: int) -> None:
    module = chain(20)
    (cut,) = allocate(groups_of(module), [torch.arange(20.0)], wanted, round_to=[8])
    assert 20 - len(cut) == kept


def test_rounding_does_not_break_the_cap() -> None:
    module = chain(40, 200)
    scores = [torch.zeros(40), torch.ones(200)]
    chosen = allocate(groups_of(module), scores, 0.1, scope="global", max_rate=0.5, round_to=[16, 16])
    assert 40 - len(chosen[0]) == 32  # 20 may stay, and 16 would be nearer


def test_a_group_narrower_than_the_step_stays_whole() -> None:
    module = chain(6)
    assert lost(allocate(groups_of(module), [torch.arange(6.0)], 0.5, round_to=[8])) == [0]


def test_the_macs_of_a_channel_are_what_its_loss_saves() -> None:
    module = small_classifier(width=16).module
    grouping = grouping_of(module, (3, 32, 32))
    for index, cost in enumerate(Shapes(grouping, (3, 32, 32)).channel_macs()):
        first = [torch.arange(int(i == index)) for i in range(len(grouping.groups))]
        without = cut_channels(grouping, first).network()
        macs = [sum(count_macs(network, (3, 32, 32)).values()) for network in (module, without)]
        assert cost == pytest.approx(macs[0] - macs[1], rel=0.1)  # a stream's layers lose it on both of their sides


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"severity": 1.0}, "0 < rate < 1"),
        ({"severity": float("nan")}, "0 < rate < 1"),
        ({"scope": "everywhere"}, "no scope called everywhere"),
        ({"max_rate": 0.0}, "0 < cap <= 1"),
    ],
)
def test_a_share_or_scope_that_can_not_be_is_a_usage_error(arguments: dict[str, object], message: str) -> None:
    module = chain(20)
    with pytest.raises(UsageError, match=message):
        allocate(groups_of(module), [torch.arange(20.0)], **{"severity": 0.5, **arguments})
