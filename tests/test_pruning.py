"""Pruning a classifier: what is cut, what is proven, what is recorded."""

import copy
import dataclasses
import math

import pytest
import torch
from conftest import grouping_of, small_classifier
from torch import nn

from slimkit.core.architecture import PruningRate
from slimkit.core.errors import MissedError, ModelError, UsageError
from slimkit.core.folder import Classifier
from slimkit.core.pruning import prune, prune_module
from slimkit.core.pruning.channels.groups import Grouping
from slimkit.core.pruning.cut.surgery import cut_channels
from slimkit.core.pruning.cut.verify import verify_cut
from slimkit.core.pruning.repair.recalibrate import recalibrate
from slimkit.standalone.model import SlimResNet34, SlimResNet50, build_model


def widths(module: nn.Module) -> dict[str, int]:
    return {name: part.out_channels for name, part in module.named_modules() if isinstance(part, nn.Conv2d)}


def test_every_layer_of_a_resnet_loses_its_share() -> None:
    before = small_classifier(width=16)
    after = prune(before, rate=0.25).classifier
    old, new = widths(before.module), widths(after.module)
    assert new == {name: width * 3 // 4 for name, width in old.items()}
    assert after.module.fc.in_features == 96
    assert widths(before.module) == old


def test_the_filters_with_the_least_l1_norm_are_cut() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    sizes = torch.tensor([5.0, 1.0, 4.0, 2.0, 6.0, 3.0])
    module[0].weight.data.copy_(sizes[:, None, None, None].expand(6, 3, 1, 1))
    cut = prune_module(module, (3, 4, 4), rate=0.5).module
    weights = cut.state_dict()
    assert weights["0.weight"][:, 0, 0, 0].tolist() == [5.0, 4.0, 6.0]
    assert torch.equal(weights["2.weight"], module[2].weight[:, [0, 2, 4]])
    assert torch.equal(weights["0.bias"], module[0].bias[[0, 2, 4]])


def test_what_is_done_to_the_cut_network_does_not_reach_the_original() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 5, 1))
    module.append(nn.Conv2d(5, 5, 1)).eval()
    module[5].bias = module[3].bias  # one tensor in two layers
    before = copy.deepcopy(module.state_dict())
    cut = prune_module(module, (3, 4, 4), rate=0.3).module
    assert "5.bias" not in cut.state_dict()  # it is 3.bias
    for tensor in cut.state_dict().values():
        tensor.zero_()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_residual_stream_is_judged_by_all_who_write_to_it() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(x + self.branch(x))

    module = Residual().eval()
    stem, branch = torch.tensor([1.0, 9.0, 2.0, 3.0]), torch.tensor([9.0, 1.0, 1.0, 5.0])
    module.stem.weight.data.copy_(stem[:, None, None, None].expand(4, 3, 1, 1) / 3)
    module.branch.weight.data.copy_(branch[:, None, None, None].expand(4, 4, 1, 1) / 4)
    cut = prune_module(module, (3, 2, 2), rate=0.25).module  # sums: 10, 10, 3, 8
    assert torch.equal(cut.stem.weight, module.stem.weight[[0, 1, 3]])
    assert torch.equal(cut.branch.weight, module.branch.weight[[0, 1, 3]][:, [0, 1, 3]])


@pytest.mark.parametrize("network", [SlimResNet34, SlimResNet50])
def test_deeper_resnets_are_cut_everywhere_but_at_the_answer(network: type[nn.Module]) -> None:
    report = prune_module(network(10, width=8).eval(), (3, 64, 64), rate=0.5).report
    assert report.whole == {"fc": "it gives the network's answer"}
    assert report.difference < 1e-4
    assert all(group.width * 2 == group.width_before for group in report.groups)


def test_the_architecture_rebuilds_what_was_cut(classifier: Classifier) -> None:
    result = prune(classifier, rate=0.3)
    architecture = result.classifier.architecture
    rebuilt = build_model(architecture.to_dict())
    rebuilt.load_state_dict(result.classifier.module.state_dict())
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(rebuilt(image), result.classifier.module(image))
    assert architecture.macs == result.report.after.macs
    conv1 = next(layer for layer in architecture.layers if layer.name == "conv1")
    assert (conv1.width_before, conv1.out_channels) == (8, 6)  # 8 - round(2.4)
    assert architecture.pruning_rate.asked == pytest.approx(0.3)
    assert architecture.compression_steps == ("prune (l1, rate 0.3)",)


def test_a_second_cut_adds_to_the_first(classifier: Classifier) -> None:
    twice = prune(prune(classifier, rate=0.5).classifier, rate=0.5).classifier
    assert twice.architecture.pruning_rate == PruningRate(asked=pytest.approx(0.75), reached=pytest.approx(0.75))
    conv1 = next(layer for layer in twice.architecture.layers if layer.name == "conv1")
    assert (conv1.width_before, conv1.out_channels) == (8, 2)
    assert len(twice.architecture.compression_steps) == 2


def test_what_falls_far_short_of_the_rate_is_told(classifier: Classifier) -> None:
    """Of 8, 16, 32 and 64 channels, those that are no multiples of 32 stay: 32 of 120 go, where 108 were to."""
    groups = len(grouping_of(classifier.module, (3, 32, 32)).groups)
    told = [prune(classifier, rate=rate, round_to=[step] * groups).notes for rate, step in ((0.9, 32), (0.6, 16))]
    assert [any("Only 26.7% of the channels" in note for note in notes) for notes in told] == [True, False]


def test_a_high_rate_leaves_a_channel_in_every_layer(classifier: Classifier) -> None:
    cut = prune(classifier, rate=0.99).classifier.module
    assert set(widths(cut).values()) == {1}
    assert cut(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("rate", [0.0, 1.0, 1.5, -0.1, math.nan, math.inf])
def test_a_rate_outside_0_to_1_is_a_usage_error(classifier: Classifier, rate: float) -> None:
    with pytest.raises(UsageError, match="0 < rate < 1"):
        prune(classifier, rate=rate)


def test_a_rate_below_one_channel_is_a_usage_error(classifier: Classifier) -> None:
    with pytest.raises(UsageError, match="less than one channel"):
        prune(classifier, rate=0.001)


def test_a_network_without_inner_channels_can_not_be_cut() -> None:
    with pytest.raises(ModelError, match="gives the network's answer"):
        prune_module(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (3, 2, 2), rate=0.5)


def half_of(module: nn.Module) -> tuple[Grouping, list[torch.Tensor]]:
    grouping = grouping_of(module, (3, 32, 32))
    return grouping, [torch.arange(group.width // 2) for group in grouping.groups]


def test_the_proof_fails_where_the_wrong_channel_was_kept(classifier: Classifier) -> None:
    grouping, half = half_of(classifier.module)
    right = cut_channels(grouping, half)
    assert verify_cut(grouping, half, right) < 1e-5
    name = "layer2.0.conv2.weight"
    wrong = dataclasses.replace(right, tensors={**right.tensors, name: right.tensors[name].roll(1, dims=1)})
    with pytest.raises(MissedError, match=r"layer2\.0\.conv2"):
        verify_cut(grouping, half, wrong)


def test_the_proof_fails_where_a_statistic_was_left_behind(classifier: Classifier) -> None:
    grouping, half = half_of(classifier.module)
    right = cut_channels(grouping, half)
    name = "layer1.0.bn1.running_mean"
    wrong = dataclasses.replace(right, tensors={**right.tensors, name: right.tensors[name] + 0.01})
    with pytest.raises(MissedError, match=r"layer1\.0\.conv2"):
        verify_cut(grouping, half, wrong)


def test_recalibration_gives_the_statistics_of_all_images_together() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    images = torch.randn(50, 3, 8, 8) * torch.linspace(0.1, 3, 50)[:, None, None, None] + 2
    assert recalibrate(module, [images[:24], images[24:48], images[48:], images[:1]]) == 50
    values = module[0](images).detach().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(module[1].running_mean.double(), values.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module[1].running_var.double(), values.var(1), rtol=1e-5, atol=1e-6)
    assert module[1].training


def test_recalibration_repairs_the_statistics_after_a_cut(classifier: Classifier) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(16, 3, 32, 32) for _ in range(4)]
    plain, repaired = (
        prune(classifier, rate=0.5, importance="l1", scope="local", batches=b, reconstruct=False)
        for b in (None, batches)
    )
    assert (plain.report.recalibrated_images, repaired.report.recalibrated_images) == (0, 64)
    wanted = copy.deepcopy(repaired.classifier.module)
    recalibrate(wanted, batches)
    for name, value in repaired.classifier.module.named_buffers():
        if "running" in name:
            torch.testing.assert_close(value, wanted.get_buffer(name))
    mean = "layer1.0.bn1.running_mean"
    assert not torch.allclose(plain.classifier.module.state_dict()[mean], wanted.state_dict()[mean], atol=1e-3)


def test_the_report_counts_what_is_there(classifier: Classifier) -> None:
    result = prune(classifier, rate=0.5)
    for extent, module in ((result.report.before, classifier.module), (result.report.after, result.classifier.module)):
        assert extent.parameters == sum(p.numel() for p in module.parameters())
    assert result.report.reached == pytest.approx(0.5)  # of widths that are all even
    assert any("fc stays whole" in note for note in result.notes)
