"""torchvision's data sets: read from a cache made by hand, and what happens without a network."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from slimkit.core.data import open_dataset
from slimkit.core.errors import NetworkError

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
    assert "network" in caught.value.mend
    assert list(cache.iterdir()) == []
