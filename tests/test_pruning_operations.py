"""Every operation of the normal form, with channels running through it: what is cut of it is proven."""

import pytest
import torch
from conftest import grouping_of
from graph_cases import CASES, CHANNELS, HEIGHT, WIDTH
from torch import Tensor, nn

from slimkit.core.pruning.channels.groups import Grouping
from slimkit.core.pruning.channels.rules import RULES
from slimkit.core.pruning.cut.surgery import cut_channels
from slimkit.core.pruning.cut.verify import verify_cut
from slimkit.standalone.model import OPERATIONS


class Through(nn.Module):
    """Channels that are made before an operation, and read after it."""

    def __init__(self, case: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.case = nn.Conv2d(CHANNELS, CHANNELS, 1), case
        self.head = nn.Linear(self.features(torch.rand(1, CHANNELS, HEIGHT, WIDTH)).shape[1], 3)

    def features(self, x: Tensor) -> Tensor:
        return self.case(self.stem(x).abs() + 0.1).float().flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def cut_of_half(grouping: Grouping) -> float:
    chosen = [torch.arange(0, group.width - 1, 2) for group in grouping.groups]
    cut = cut_channels(grouping, chosen)
    difference = verify_cut(grouping, chosen, cut)
    images = torch.rand(3, CHANNELS, HEIGHT, WIDTH)
    assert cut.network()(images).shape == (3, 3)  # at another batch size than the proof's
    return difference


def test_every_operation_has_a_rule() -> None:
    assert set(RULES) == set(OPERATIONS)


@pytest.mark.parametrize(
    ("operation", "index"), [(operation, index) for operation in CASES for index in range(len(CASES[operation]))]
)
def test_channels_through_an_operation_are_cut_rightly_or_stay(operation: str, index: int) -> None:
    module = Through(CASES[operation][index]().eval())
    grouping = grouping_of(module, (CHANNELS, HEIGHT, WIDTH))
    assert cut_of_half(grouping) < 1e-4
    assert "stem" in grouping.whole or any(group.name == "stem" for group in grouping.groups)


class HeadsByEinsum(nn.Module):
    """Attention of two heads, which einsum lays along the dimension of the images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Conv2d(CHANNELS, 16, 1) for _ in range(3))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2).unflatten(1, (2, 8)) for layer in (self.query, self.key, self.value))
        weights = torch.einsum("nhci,nhcj->nhij", query, key).softmax(-1)
        return self.head(torch.einsum("nhij,nhcj->nhci", weights, value).flatten(1, 2).mean(-1))


def test_heads_that_lie_along_the_images_are_cut_rightly() -> None:
    grouping = grouping_of(HeadsByEinsum().eval(), (CHANNELS, HEIGHT, WIDTH))
    assert {member.layer.name for group in grouping.groups for member in group.members} >= {"query", "key"}
    assert cut_of_half(grouping) < 1e-4
