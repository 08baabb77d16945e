"""Multiply-adds, against counts derived by hand."""

import pytest
import torch
from torch import Tensor, nn

from slimkit.core.compat import import_torchvision
from slimkit.core.measure.macs import count_macs, count_network, layer_costs
from slimkit.standalone.model import SlimResNet18


def test_convolution_counts_every_multiplication_of_its_kernel() -> None:
    module = nn.Sequential(nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16), nn.ReLU())
    # 16x16 positions, 16 filters of 3x5x5; neither bias nor BatchNorm counts
    assert count_macs(module, (3, 32, 32)) == {"0": 16 * 16 * 16 * 3 * 5 * 5}


def test_groups_divide_the_inputs_of_a_filter() -> None:
    module = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1, groups=4))
    assert count_macs(module, (8, 10, 10)) == {"0": 100 * 8 * 9, "1": 100 * 12 * 2}


def test_linear_counts_once_for_each_position() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each = nn.Linear(6, 5)
            self.all = nn.Linear(20, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.all(self.each(x).flatten(1))

    costs = layer_costs(Rows(), (4, 6))
    assert {name: cost.macs for name, cost in costs.items()} == {"each": 4 * 6 * 5, "all": 20 * 7}
    assert costs["each"].output_shape == (4, 5)


def test_a_layer_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    assert count_macs(Twice(), (4, 3, 3)) == {"conv": 2 * 9 * 16}


def test_resnet18_at_224_has_the_published_count() -> None:
    # He et al. 2016, table 1: 1.8e9; the exact number is torchvision's documented 1.814 GFLOPs
    total = sum(count_macs(SlimResNet18(1000, width=64), (3, 224, 224)).values())
    assert round(total / 1e9, 3) == 1.814


def test_counting_leaves_every_mode_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    module.train()
    module[1].eval()
    mean = module[1].running_mean.clone()
    count_macs(module, (3, 4, 4))
    assert module.training
    assert not module[1].training
    assert torch.equal(module[1].running_mean, mean)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", "vit_b_16", "swin_t"])
def test_a_whole_network_has_the_published_size(name: str) -> None:
    """torchvision publishes both figures with its weights; the attention of two of them is in no layer."""
    models = import_torchvision().models
    published = models.get_model_weights(name).DEFAULT.meta
    with torch.device("meta"):
        count = count_network(models.get_model(name), (3, 224, 224))
    assert count.parameters == published["num_params"]
    assert count.macs / 1e9 == pytest.approx(published["_ops"], abs=1e-3)


def test_products_of_no_layer_are_counted_and_the_rest_is_named() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 6))
            self.mix = nn.Linear(6, 6, bias=False)
            self.also = self.mix  # one tensor under two names

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([x, self.token.expand(len(x), -1, -1)], 1)  # [n, 5, 6]
            return ((x @ x.mT).softmax(-1) @ self.mix(x)).mean(1)

    count = count_network(Attending(), (4, 6))
    assert count.parameters == 6 + 6 * 6
    assert count.macs == 5 * 5 * 6 + 5 * 6 * 6 + 5 * 5 * 6
    assert count.not_counted == ("mean", "softmax")
