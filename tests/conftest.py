"""Small models and data that the tests share."""

import contextlib
import ctypes
import dataclasses
import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.jit import _recursive

from slimkit.core.architecture import Architecture, Preprocessing
from slimkit.core.benchmark import turns
from slimkit.core.folder import Classifier, write_folder
from slimkit.core.graph import capture
from slimkit.core.models import lineage
from slimkit.core.models.describe import describe_graph, describe_layers
from slimkit.core.pruning.channels.groups import Grouping, find_groups
from slimkit.memory import keep_freed_memory
from slimkit.standalone.model import SlimResNet18

SHARED = Path(__file__).resolve().parents[2] / "shared"
CASES = SHARED / "cases" / "networks.py"


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of downloads and timings for this run alone: the user's is neither read nor written."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SLIMKIT_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True, scope="session")
def kept_memory() -> None:
    """As the command line has it, from the first test on."""
    keep_freed_memory()


@pytest.fixture(autouse=True, scope="session")
def few_collections() -> None:
    """What is imported lives on: to look through it for garbage again and again took an eighth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def returned_memory() -> Iterator[None]:
    """What is kept for the next tensor is given back after each file: two processes of the suite run side by side."""
    yield
    with contextlib.suppress(AttributeError, OSError, TypeError):  # of another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True, scope="session")
def fixed_threads() -> Iterator[None]:
    """As many threads however busy the machine is: what commands say of a load is no part of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(torch.get_num_threads())))
        yield


@pytest.fixture(autouse=True, scope="session")
def short_turns() -> Iterator[None]:
    """Benchmarks keep their schedule, but end soon: how precise their figures get is no part of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "TURN", 5.0)
        yield


@pytest.fixture(autouse=True)
def own_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of what was made here for each test alone, wherever it runs."""
    monkeypatch.setattr(lineage, "RECORD", tmp_path / ".slimkit" / "models.json")


@pytest.fixture(autouse=True)
def forgotten_traces() -> Iterator[None]:
    """torch.jit keeps a subclass of nn.Module for each module that it traced, and every one of them slows
    torch.export, which patches nn.Module: the store is emptied after each test, as torch's own tests do."""
    yield
    _recursive.concrete_type_store = _recursive.ConcreteTypeStore()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data and models beside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared data and models are not at {SHARED}")
    return SHARED


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks are no faster with more, and far slower where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_classifier(class_names: tuple[str, ...] = ("ant", "bee", "cat"), width: int = 8) -> Classifier:
    """A SlimResNet18 of a few channels with weights of its own, for 32x32 images."""
    torch.manual_seed(0)
    module = SlimResNet18(len(class_names), width=width).eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.3, 0.3)
            layer.running_var.uniform_(0.5, 1.5)
    architecture = Architecture(
        model_type="SlimResNet18",
        base={"name": "slimresnet18"},
        num_classes=len(class_names),
        class_names=class_names,
        input_shape=(3, 32, 32),
        output_shape=(len(class_names),),
        preprocessing=Preprocessing(resize=36, crop=32),
        layers=describe_layers(module, (3, 32, 32)),
    )
    return Classifier(module, architecture)


class ShortResNet(nn.Module):
    """A residual network of five layers: what is slow for each layer takes a quarter of a ResNet18's time."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.one, self.one_bn = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.two, self.two_bn = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.down, self.down_bn = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_bn(self.stem(x)).relu()
        x = (x + self.two_bn(self.two(self.one_bn(self.one(x)).relu()))).relu()
        return self.fc(self.down_bn(self.down(x)).relu().mean((2, 3)))


def short_classifier(class_names: tuple[str, ...] = ("ant", "bee", "cat")) -> Classifier:
    """A ShortResNet for 32x32 images, stored as its graph."""
    torch.manual_seed(3)  # with which it tells one colour from the two others
    graph = capture(unsettled(ShortResNet(len(class_names))), (3, 32, 32))
    architecture = dataclasses.replace(
        small_classifier(class_names, width=4).architecture, model_type="ShortResNet", base={"name": "short"}
    )
    return Classifier(graph.network(), describe_graph(architecture, graph))


def unsettled(module: nn.Module) -> nn.Module:
    """The module with random BatchNorm statistics and scales, so that a channel kept in error shows."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_(0, 0.3)
    return module.eval()


def grouping_of(module: nn.Module, input_shape: tuple[int, ...]) -> Grouping:
    """What can be cut of a network."""
    return find_groups(capture(module, input_shape))


def user_networks() -> list[type[nn.Module]]:
    """The networks of shared/cases, where it is there."""
    if not CASES.is_file():
        return []
    spec = importlib.util.spec_from_file_location("networks", CASES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["networks"] = module
    spec.loader.exec_module(module)
    return list(module.NETWORKS)


def user_classifier(module: nn.Module, input_shape: tuple[int, ...]) -> Classifier:
    """A network of a user's own, as a classifier."""
    classes = module(torch.zeros(1, *input_shape)).shape[1]
    architecture = Architecture(
        model_type=type(module).__name__,
        base={"name": type(module).__name__},
        num_classes=classes,
        class_names=tuple(map(str, range(classes))),
        input_shape=input_shape,
        output_shape=(classes,),
        preprocessing=Preprocessing(resize=input_shape[1], crop=input_shape[1]),
        layers=(),
    )
    return Classifier(module, architecture)


@pytest.fixture
def classifier() -> Classifier:
    return small_classifier()


@pytest.fixture
def model_folder(classifier: Classifier, tmp_path: Path) -> Path:
    return write_folder(classifier, tmp_path / "model").folder or tmp_path


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Three classes that differ in colour: 12 training and 4 validation images each, 40x48 pixels."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 120, (40, 48, 3), dtype=torch.uint8, generator=generator)
                pixels[..., label] += 120
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return tmp_path / "images"
