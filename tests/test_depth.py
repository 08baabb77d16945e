"""`prune --depth`: which blocks can go, what the network computes without them, and when they go before channels do."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from slimkit.cli.app import main
from slimkit.core.architecture import Preprocessing
from slimkit.core.errors import UsageError
from slimkit.core.folder import Classifier, read_folder, write_folder
from slimkit.core.graph import capture
from slimkit.core.models.resolve import as_classifier
from slimkit.core.options import PruneOptions
from slimkit.core.pruning.channels.groups import find_groups
from slimkit.core.pruning.depth.blocks import Block, find_blocks, without_blocks
from slimkit.core.pruning.depth.shorten import shorten
from slimkit.core.pruning.prune import Repair
from slimkit.core.stages import run_prune

SHAPE = (3, 16, 16)


class Step(nn.Module):
    """A residual block, and with another stride one that changes the shape, whose skip has a layer of its own."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.skip(x) + self.conv(x)).relu()


class Outer(nn.Module):
    """A block around a block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before, self.inner = nn.Conv2d(channels, channels, 1), Step(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.before(x))


class Steps(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.a, self.b, self.down = Step(width, width), Step(width, width), Step(width, 2 * width, 2)
        self.c, self.outer = Step(2 * width, 2 * width), Outer(2 * width)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.b(self.a(self.stem(x).relu())))
        return self.head(self.outer(self.c(x)).mean((2, 3)))


@pytest.fixture
def net() -> Steps:
    torch.manual_seed(0)
    return Steps().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, *SHAPE)


def classifier_of(net: nn.Module) -> Classifier:
    return as_classifier(net, ("ant", "bee", "cat"), Preprocessing(resize=16, crop=16))


def blocks_of(net: nn.Module) -> dict[str, Block]:
    return {block.name: block for block in find_blocks(capture(net, SHAPE))}


def test_what_is_added_to_its_own_input_is_a_block(net: Steps) -> None:
    found = blocks_of(net)
    assert list(found) == [
        "a.conv",
        "b.conv",
        "c.conv",
        "outer.inner.conv",
        "outer",
    ]  # `down` adds to no input of its own
    assert found["outer.inner.conv"].sum in found["outer"].inside


def test_a_network_of_which_nothing_is_added_to_its_input_has_none() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 144, 3))
    assert not blocks_of(chain)


def test_parts_of_a_transformer_go_by_themselves() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    net = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2), Transposed(), layer, Mean(), nn.Linear(16, 3)).eval()
    names = list(blocks_of(net))
    assert len(names) == 2
    assert names[0].startswith("3.self_attn")
    assert names[1] == "3"  # of linear1 and linear2


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def test_without_blocks_their_input_passes_through(net: Steps, images: Tensor) -> None:
    graph, blocks = capture(net, SHAPE), blocks_of(net)
    short = without_blocks(graph, [blocks["a.conv"], blocks["b.conv"], blocks["outer"]])
    with torch.no_grad():
        x = net.c(net.down(net.stem(images).relu()))  # a's input is no less than 0, so its ReLU changes nothing
        torch.testing.assert_close(short.network()(images), net.head(x.mean((2, 3))))
    gone = {name for name in graph.tensors if name.split(".")[0] in ("a", "b", "outer")}
    assert set(short.tensors) == set(graph.tensors) - gone


def test_the_repair_brings_the_answers_nearer(net: Steps) -> None:
    classifier, images = classifier_of(net), torch.randn(64, *SHAPE)
    grouping, blocks = find_groups(capture(net, SHAPE)), blocks_of(net)
    wanted = net(images)

    def distance(repair: Repair) -> float:
        made = shorten(classifier, grouping, [blocks["b.conv"]], repair)
        assert made.report.blocks == ("b.conv",)
        return float((made.classifier.module(images) - wanted).norm())

    with torch.no_grad():
        assert distance(Repair([images])) < 0.7 * distance(Repair())


def with_idle_block(net: Steps) -> Classifier:
    """Its block c adds nothing."""
    with torch.no_grad():
        net.c.conv.weight.zero_()
        net.c.conv.bias.zero_()
    return classifier_of(net)


def prune(classifier: Classifier, image_folder: Path, tmp_path: Path, **options: object) -> dict[str, object]:
    write_folder(classifier, tmp_path / "net")
    settings = {"reconstruction_images": 16, "calibration_images": 16, "round_to": "none", "depth": True, **options}
    output = tmp_path / "cut"
    made = run_prune(PruneOptions(model=str(tmp_path / "net"), data=str(image_folder), output=output, **settings))
    return {"notes": made.notes, **made.figures}


def test_a_block_that_adds_nothing_goes_before_any_channel(net: Steps, image_folder: Path, tmp_path: Path) -> None:
    classifier = with_idle_block(net)
    left = classifier.architecture.macs - 32 * 32 * 9 * 8 * 8
    figures = prune(classifier, image_folder, tmp_path, macs=float(left), reconstruct=False)
    assert figures["macs"] == left
    assert "These blocks went as a whole: c.conv." in figures["notes"]
    images = torch.randn(4, *SHAPE)
    with torch.no_grad():
        made, wanted = read_folder(tmp_path / "cut"), net(images)
        torch.testing.assert_close(made.module(images), wanted)


def test_channels_go_where_blocks_are_not_enough(net: Steps, image_folder: Path, tmp_path: Path) -> None:
    classifier = with_idle_block(net)
    figures = prune(classifier, image_folder, tmp_path, macs=0.3)
    assert figures["macs"] <= 0.3 * classifier.architecture.macs
    record = json.loads((tmp_path / "cut" / "trained_pruned_architecture.json").read_text())
    assert record["compression_steps"][-2].startswith("remove blocks: c.conv")
    assert record["compression_steps"][-1].startswith("prune (error, macs")
    stages = [detail["stage"] for detail in record["training_details"]]
    assert stages[-2:] == ["depth", "prune"]
    assert not any(layer["name"].startswith("c.") for layer in record["layers"])


def test_all_blocks_stay_where_each_matters_more_than_a_few_channels(image_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Steps().eval()
    with torch.no_grad():  # the last two channels of the stem reach nothing
        for layer in (net.a.conv, net.b.conv, net.down.conv, net.down.skip):
            layer.weight[:, -2:] = 0
    classifier = classifier_of(net)
    figures = prune(classifier, image_folder, tmp_path, macs=0.95, reconstruct=False)
    assert not any("went as a whole" in note for note in figures["notes"])


def test_a_network_without_blocks_is_refused(image_folder: Path, tmp_path: Path) -> None:
    chain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 144, 3))
    with pytest.raises(UsageError, match="No block can be removed"):
        prune(classifier_of(chain), image_folder, tmp_path, macs=0.5)
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize("flags", [["--rate", "0.3"], [], ["--macs", "0.5", "--sensitivity"]])
def test_depth_wants_a_budget(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "--depth", *flags]) == 2
    assert "Give --macs, --params, --latency or --max-drop" in capsys.readouterr().err
