"""Pruning any CNN: torchvision's families, and networks of a user's own."""

from collections.abc import Callable

import pytest
import torch
from conftest import unsettled
from families import family
from torch import Tensor, nn
from torch.nn import functional as F

from slimkit.core.compat import import_torchvision
from slimkit.core.errors import ModelError
from slimkit.core.pruning import prune_module

ANSWER = "it gives the network's answer"


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet", "fc"),
        ("resnet of bottlenecks", "fc"),
        ("resnext", "fc"),
        ("vgg", "classifier.6"),
        ("mobilenet_v2", "classifier.1"),
        ("mobilenet_v3", "classifier.3"),
        ("densenet", "classifier"),
        ("efficientnet", "classifier.1"),
        ("regnet", "fc"),
        ("squeezenet", "classifier.1"),
    ],
)
def test_a_family_is_cut_in_every_layer_but_the_answer(name: str, last: str) -> None:
    report = prune_module(family(name), (3, 32, 32), rate=0.3).report
    assert report.whole == {last: ANSWER}
    assert report.difference < 1e-4
    assert 0.45 < report.after.macs / report.before.macs < 0.55  # about 0.7 squared
    assert report.after.bytes < 0.55 * report.before.bytes


def test_flattening_into_a_classifier() -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    module = unsettled(nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8 * 16, 20), nn.ReLU(), nn.Linear(20, 3)))
    cut = prune_module(module, (3, 8, 8), rate=0.5).module
    first, hidden = cut.get_submodule("0"), cut.get_submodule("5")
    assert (first.out_channels, hidden.in_features, hidden.out_features) == (4, 4 * 16, 10)


def test_a_network_that_takes_large_images_alone() -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=4, padding=1)]
    pruned = prune_module(nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8 * 36, 3)), (3, 96, 96), rate=0.5)
    assert pruned.module.get_submodule("4").in_features == 4 * 36
    assert pruned.report.after.macs == 24 * 24 * 4 * 27 + 6 * 6 * 4 * 4 * 9 + 4 * 36 * 3


def test_auxiliary_classifiers_are_named_as_not_reached() -> None:
    class Auxiliary(nn.Module):
        """As GoogLeNet: several answers in training."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.aux = nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(288, 2))
            self.fc = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = self.conv(x)
            answer = self.fc(x.mean((2, 3)))
            return (answer, self.aux(x)) if self.training else answer

    report = prune_module(Auxiliary(), (3, 8, 8), rate=0.3).report
    assert report.whole == {"fc": ANSWER} | dict.fromkeys(("aux.0", "aux.2"), "inference does not reach it")


def test_channel_shuffles_are_cut_between_and_left_across() -> None:
    torch.manual_seed(0)
    module = unsettled(import_torchvision().models.ShuffleNetV2([3, 1, 1], [24, 116, 232, 464, 64]))
    pruned = prune_module(module, (3, 32, 32), rate=0.5)
    reason = "its channels could only go all together"
    assert pruned.report.whole.pop("fc") == ANSWER
    assert set(pruned.report.whole.values()) == {reason}
    assert pruned.module.stage2.get_submodule("1.branch2.0").out_channels == 29  # of 58


def test_few_large_groups_lose_the_same_offsets_and_many_small_ones_go_whole() -> None:
    torch.manual_seed(0)
    large, small = nn.Conv2d(8, 16, 3, groups=2), nn.Conv2d(16, 16, 3, groups=8)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), large, nn.ReLU(), small, nn.ReLU(), nn.Conv2d(16, 2, 1)).eval()
    cut = prune_module(module, (3, 8, 8), rate=0.5).module
    layers = [cut.get_submodule(path) for path in ("1", "3")]
    shapes = [(layer.in_channels, layer.out_channels, layer.groups) for layer in layers]
    assert shapes == [(4, 8, 2), (8, 8, 4)]


class Mixed(nn.Module):
    """What else users write: a layer used twice, PReLU, spatial attention, a mean over space, a transformer's norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.act = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.PReLU(12)
        self.twice = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.attention = nn.Conv2d(12, 1, 1)
        self.deconv = nn.ConvTranspose2d(12, 10, 2, stride=2)
        self.after = nn.Conv2d(10, 8, 1)
        self.norm, self.hidden, self.out = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.stem(x)))
        x = x + self.twice(F.relu(self.twice(x)))
        x = x * torch.sigmoid(self.attention(x))
        x = self.after(self.deconv(x)).mean((2, 3))
        return self.out(F.gelu(self.hidden(self.norm(x))))


def test_what_can_not_be_cut_is_left_and_said() -> None:
    torch.manual_seed(0)
    pruned = prune_module(unsettled(Mixed()), (3, 8, 8), rate=0.5)
    assert pruned.report.whole == {
        "attention": "mul spreads it over other channels",
        "after": "layer_norm mixes channels",
        "out": ANSWER,
    }
    shapes = {name: tuple(pruned.module.tensor(f"{name}.weight").shape[:2]) for name in ("stem", "twice", "deconv")}
    assert shapes == {"stem": (6, 3), "twice": (6, 6), "deconv": (6, 5)}
    assert pruned.module.hidden.out_features == 8


class Heads(nn.Module):
    """Attention as timm writes it: one layer for queries, keys and values, picked by their number, of several heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 4, stride=4), nn.LayerNorm(16)
        self.qkv, self.proj, self.head = nn.Linear(16, 3 * 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).flatten(2).transpose(1, 2))
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return self.head(x.mean(1))


def test_heads_lose_the_same_offsets_of_queries_keys_and_values() -> None:
    torch.manual_seed(0)
    pruned = prune_module(unsettled(Heads()), (3, 16, 16), rate=0.5)
    assert pruned.module.get_submodule("qkv").weight.shape == (3 * 2 * 4, 16)
    assert pruned.module.get_submodule("proj").weight.shape == (16, 2 * 4)
    assert set(pruned.report.whole) == {"stem", "proj", "head"}


class ResponseNorm(nn.Module):
    """ConvNeXt V2's: each channel is compared with the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.scale, self.shift = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        size = x.norm(p=2, dim=(1, 2), keepdim=True)
        x = x + torch.addcmul(
            self.shift.view(1, 1, 1, -1), self.scale.view(1, 1, 1, -1), x * size / size.mean(-1, True)
        )
        return self.head(x.mean((1, 2)))


def test_a_mean_over_channels_counts_those_that_are_gone_as_zero() -> None:
    torch.manual_seed(0)
    module, images = ResponseNorm(), torch.randn(5, 3, 8, 8)
    cut = prune_module(module, (3, 8, 8), rate=0.5).module
    left = [i for i in range(8) if (cut.get_submodule("stem").weight == module.stem.weight[i]).all((1, 2, 3)).any()]
    assert len(left) == 4
    with torch.no_grad():
        x = module.stem(images)[:, left]
        size = x.pow(2).sum((2, 3), keepdim=True).sqrt()
        scale, shift = (vector[left].view(-1, 1, 1) for vector in (module.scale, module.shift))
        x = x + shift + scale * x * size / (size.sum(1, keepdim=True) / 8)
        wanted = x.mean((2, 3)) @ module.head.weight[:, left].T + module.head.bias
        torch.testing.assert_close(cut(images), wanted)


def test_a_network_that_stays_whole_for_the_most_part_says_so() -> None:
    torch.manual_seed(0)
    report = prune_module(unsettled(Heads()), (3, 16, 16), rate=0.5).report
    left = report.after.macs / report.before.macs
    assert left > 2 / 3
    assert report.shortfall == (
        f"Only {1 - left:.1%} of the multiply-adds went with 50.0% of the channels that can be cut: "
        "most are in layers that stay whole."
    )


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_weight_that_is_computed_is_cut_as_its_values(norm: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    odd = norm(nn.Conv2d(8, 8, 3))
    module = nn.Sequential(nn.Conv2d(3, 8, 3), odd, nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 2)).eval()
    pruned = prune_module(module, (3, 10, 10), rate=0.5, batches=[torch.randn(16, 3, 10, 10)])
    assert pruned.report.whole == {"4": ANSWER}
    assert [group.layers for group in pruned.report.groups] == [("0",), ("1",), ("2",)]
    assert pruned.module.get_submodule("1").weight.shape == (4, 4, 3, 3)


def test_concatenated_and_chunked_channels() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
            self.both, self.end = nn.Conv2d(12, 16, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.both(torch.cat([self.one(x), self.two(x)], 1)).chunk(2, 1)
            return self.end(left * right.sigmoid())

    torch.manual_seed(0)
    cut = prune_module(Gated().eval(), (3, 4, 4), rate=0.5).module
    assert (cut.one.out_channels, cut.two.out_channels, cut.both.in_channels) == (2, 4, 6)
    assert (cut.both.out_channels, cut.end.in_channels) == (8, 4)


def test_a_reshape_to_a_size_given_as_a_number_follows_the_cut() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4 * 9, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).view(-1, 36))

    cut = prune_module(Fixed().eval(), (3, 3, 3), rate=0.5).module
    assert cut.fc.in_features == 18
    assert cut(torch.zeros(5, 3, 3, 3)).shape == (5, 2)


def test_a_network_that_looks_at_its_numbers_can_not_be_captured() -> None:
    class Choosy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="Choosy can't be captured at test_pruning_families"):
        prune_module(Choosy(), (3, 4, 4), rate=0.5)


def test_a_wrong_input_shape_is_named() -> None:
    with pytest.raises(ModelError, match=r"does not run on images of shape \(5, 4, 4\)"):
        prune_module(nn.Sequential(nn.Conv2d(3, 4, 1)), (5, 4, 4), rate=0.5)


def test_a_network_in_half_precision_stays_in_it() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6))
    module = module.append(nn.Conv2d(6, 2, 1)).bfloat16()
    pruned = prune_module(module, (3, 4, 4), rate=0.5, batches=[torch.randn(8, 3, 4, 4)], reconstruct=False)
    assert {value.dtype for value in pruned.module.parameters()} == {torch.bfloat16}
    assert pruned.report.whole == {"4": ANSWER}


def test_the_network_keeps_its_modes_and_what_is_frozen() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).train()
    module[0].weight.requires_grad_(False)
    module[1].eval()
    cut = prune_module(module, (3, 4, 4), rate=0.5).module
    assert [cut.get_submodule(path).training for path in ("0", "1", "3")] == [True, False, True]
    assert [part.training for part in module] == [True, False, True, True]
    assert not cut.get_parameter("0.weight").requires_grad
    assert cut.get_parameter("3.weight").requires_grad
