"""torchvision's data sets: read from a cache made by hand, and what happens without a network."""

import dataclasses
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image

from slimkit.core.data import label_map, open_dataset
from slimkit.core.errors import NetworkError
from slimkit.core.folder import write_folder
from slimkit.core.models.catalog import build_named
from slimkit.core.models.resolve import open_model_and_data
from slimkit.core.options import ModelOptions

WORDNET_IDS = {"n01440764": "tench", "n02102040": "English springer", "n03028079": "church"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIMKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_cached_set_is_read_with_its_classes_sorted_by_name(cache: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        for shade, wordnet_id in enumerate(WORDNET_IDS):
            folder = cache / "imagenette" / "imagenette2" / split / wordnet_id
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("L", (30, 20), 100 * shade).save(folder / f"{number}.JPEG")
    data = open_dataset("imagenette", image_size=8, resize=8)
    assert data.class_names == ("English springer", "church", "tench")
    assert len(data.train) + len(data.holdout) == 12
    shades = {"tench": 0, "English springer": 100, "church": 200}
    for pixels, labels, _ in data.test.batches(torch.arange(6), 4):
        expected = [shades[data.class_names[label]] for label in labels]
        assert [round(float(image.float().mean()) / 100) * 100 for image in pixels] == expected


@pytest.mark.parametrize("name", ["cifar100", "imagenette", "flowers102"])
def test_without_a_network_the_error_says_so_and_leaves_nothing(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing listens there
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(NetworkError, match=f"{name} can't be downloaded") as caught:
        open_dataset(name)
    assert "network" in caught.value.hint
    assert list(cache.iterdir()) == []


def _write_fashion(root: Path) -> None:
    """FashionMNIST's own files: ten images of one shade each, 20 times the label in the published order."""
    raw = root / "fashionmnist" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 40), ("t10k", 10)):
        labels = [number % 10 for number in range(count)]
        pixels = b"".join(bytes([20 * label]) * 28 * 28 for label in labels)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + bytes(labels))


def test_weights_from_outside_know_the_published_order(cache: Path, tmp_path: Path) -> None:
    _write_fashion(cache)
    published = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    network = build_named("slimresnet18", 10)
    torch.save(network.state_dict(), tmp_path / "theirs.pth")
    options = ModelOptions(model="slimresnet18", weights=tmp_path / "theirs.pth", data="fashionmnist", image_size=28)
    classifier, data = open_model_and_data(options)
    assert classifier.architecture.class_names == published
    assert data.class_names == tuple(sorted(published))
    pixels, labels, _ = next(iter(data.test.batches(torch.arange(10), 10)))
    outputs = label_map(classifier.architecture.class_names, data.class_names)[labels]
    assert outputs.tolist() == [round(float(image[0, 0, 0]) / 20) for image in pixels]
    # slimkit's own networks know the sorted one, also when their weights are named alone
    untrained, _ = open_model_and_data(ModelOptions(model="slimresnet18", data="fashionmnist", image_size=28))
    assert untrained.architecture.class_names == tuple(sorted(published))
    write_folder(untrained, tmp_path / "ours")
    ours = dataclasses.replace(options, weights=tmp_path / "ours" / "compressed_resnet18.pth")
    assert open_model_and_data(ours)[0].architecture.class_names == tuple(sorted(published))
