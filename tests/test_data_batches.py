"""Batches, their order and their augmentation: functions of seed, epoch and index, in memory and streamed."""

import threading
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from slimkit.core.architecture import Preprocessing
from slimkit.core.data import Images, ImageSet, augment, decoded_once, epoch_order, evaluation_input, open_dataset
from slimkit.core.data.class_folders import read_tree
from slimkit.core.data.stores import AHEAD, MemoryStore, StreamStore
from slimkit.core.data.trees import FolderTree, ZipTree
from slimkit.core.errors import DataError
from slimkit.standalone import model_loader

PREPROCESSING = Preprocessing(resize=20, crop=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of seven noise images each, of several sizes."""
    root = tmp_path_factory.mktemp("noise")
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(7):
            noise = torch.randint(0, 256, (20 + number, 27, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(noise.numpy()).save(root / name / f"{number}.png")
    return root


def _images(folder: Path, store: type[MemoryStore] | type[StreamStore]) -> Images:
    source = read_tree(FolderTree(folder)).sources["all"]
    return Images(store(source, PREPROCESSING), torch.arange(14))


def _read(images: Images, order: Tensor, batch_size: int) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*images.batches(order, batch_size), strict=True)]


@pytest.mark.parametrize("store", [MemoryStore, StreamStore])
@pytest.mark.parametrize("batch_size", [1, 4, 13, 100])
def test_batches_follow_the_order(folder: Path, store: type[MemoryStore], batch_size: int) -> None:
    images = _images(folder, store)
    order = torch.tensor([9, 0, 13, 4, 4])
    sizes = [len(labels) for _, labels, _ in images.batches(order, batch_size)]
    assert sum(sizes) == 5
    assert all(size == batch_size for size in sizes[:-1])
    pixels, labels, indices = _read(images, order, batch_size)
    assert indices.tolist() == [9, 0, 13, 4, 4]
    assert labels.tolist() == [1, 0, 1, 0, 0]
    files = sorted(folder.rglob("*.png"))
    for square, index in zip(pixels, order.tolist(), strict=True):
        image = model_loader.decode_image(files[index])
        expected = model_loader.resize_to_cover(image, {"resize": 20, "crop": 16, "interpolation": "bilinear"})
        assert torch.equal(square, expected)


def test_streamed_and_held_pixels_are_the_same(folder: Path) -> None:
    order = epoch_order(14, seed=3, epoch=1)
    for held, streamed in zip(
        _read(_images(folder, MemoryStore), order, 5), _read(_images(folder, StreamStore), order, 5), strict=True
    ):
        assert torch.equal(held, streamed)


def test_a_zip_is_streamed_by_every_worker(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "noise.zip", "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(folder))
    source = read_tree(ZipTree(tmp_path / "noise.zip")).sources["all"]
    streamed = torch.cat([pixels for pixels, _ in StreamStore(source, PREPROCESSING).read(torch.arange(14), 3)])
    assert torch.equal(streamed, _read(_images(folder, MemoryStore), torch.arange(14), 14)[0])


def test_a_subset_counts_anew(folder: Path) -> None:
    images = _images(folder, MemoryStore)
    subset = images.subset(torch.tensor([12, 3, 8]))
    assert len(subset) == 3
    assert subset.labels.tolist() == [1, 0, 1]
    pixels, _, indices = _read(subset, torch.tensor([2, 0]), 8)
    assert indices.tolist() == [2, 0]
    assert torch.equal(pixels, _read(images, torch.tensor([8, 12]), 8)[0])


def test_no_images_give_no_batches(folder: Path) -> None:
    assert list(_images(folder, MemoryStore).batches(torch.arange(0), 4)) == []


class Flat:
    """A source of gray images, each of which tells its place; those at `broken` can't be read."""

    pixel_type = torch.uint8

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.labels = torch.arange(count)
        self.broken = broken
        self.decoded = 0
        self._lock = threading.Lock()

    def name(self, index: int) -> str:
        return f"{index}.png"

    def image(self, index: int, channels: int = 3) -> Image.Image:
        with self._lock:
            self.decoded += 1
        if index in self.broken:
            raise DataError(f"{index}.png is not a readable image.", "Repair or remove the file.")
        return Image.new("RGB", (20, 20), (index, index, index))


def _streamed(source: Flat) -> Images:
    return Images(StreamStore(source, PREPROCESSING), torch.arange(len(source.labels)))


def test_an_unreadable_image_is_named_by_the_stream() -> None:
    with pytest.raises(DataError, match=r"3\.png is not"):
        list(_streamed(Flat(5, broken=(3,))).batches(torch.arange(5), 2))


def test_the_stream_leaves_out_what_it_is_told_to_and_names_it_once(caplog: pytest.LogCaptureFixture) -> None:
    images = _streamed(Flat(7, broken=(1, 6))).leaving_out()
    for _ in range(2):
        batches = list(images.batches(torch.tensor([6, 5, 4, 3, 2, 1, 0]), 3))
        assert [labels.tolist() for _, labels, _ in batches] == [[5, 4], [3, 2], [0]]
        assert [indices.tolist() for _, _, indices in batches] == [[5, 4], [3, 2], [0]]
        assert [pixels[:, 0, 0, 0].tolist() for pixels, _, _ in batches] == [[5, 4], [3, 2], [0]]
    assert sorted(record.message.split()[2] for record in caplog.records) == ["1.png", "6.png"]


def test_a_batch_of_unreadable_images_ends_the_stream() -> None:
    images = _streamed(Flat(6, broken=(2, 3))).leaving_out()
    with pytest.raises(DataError, match=r"None of 2 images .* 2\.png"):
        list(images.batches(torch.arange(6), 2))


def test_the_stream_stays_a_few_batches_ahead() -> None:
    source, before = Flat(200), threading.active_count()
    batches = _streamed(source).batches(torch.arange(200), 10)
    for number in range(1, 6):
        next(batches)
        assert source.decoded <= 10 * (number + AHEAD)
    del batches
    assert threading.active_count() == before
    assert source.decoded <= 10 * (5 + AHEAD)


def test_what_goes_wrong_in_a_worker_is_not_lost() -> None:
    class Full(Flat):
        def image(self, index: int, channels: int = 3) -> Image.Image:
            raise MemoryError

    before = threading.active_count()
    with pytest.raises(MemoryError):
        list(_streamed(Full(9)).batches(torch.arange(9), 2))
    assert threading.active_count() == before


def test_sets_that_do_not_fit_are_streamed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimkit.core.data.stores.MEMORY_LIMIT", 1000)
    data = open_dataset(str(folder), image_size=16, resize=20)
    assert isinstance(data.train.store, StreamStore)
    assert len(_read(data.test, torch.arange(len(data.test)), 2)[0]) == len(data.test)


def test_evaluation_sees_the_pixels_of_the_standalone_code(folder: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    preprocessing = {"resize": 20, "crop": 16, "interpolation": "bilinear"} | {
        "mean": PREPROCESSING.mean,
        "std": PREPROCESSING.std,
    }
    standalone = torch.stack(
        [model_loader.preprocess(model_loader.decode_image(file), preprocessing) for file in files]
    )
    pixels, _, _ = _read(_images(folder, MemoryStore), torch.arange(14), 14)
    assert torch.equal(evaluation_input(pixels, PREPROCESSING), model_loader.normalize(standalone, preprocessing))


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own() -> None:
    orders = [epoch_order(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(1000))
    assert len({tuple(order.tolist()) for order in orders}) == 4
    torch.manual_seed(123)
    assert torch.equal(epoch_order(1000, 0, 0), orders[0])


def test_orders_are_evenly_shuffled() -> None:
    """Over 2000 epochs of 10 images, image 0 comes at each place 200 times, give or take four standard deviations."""
    places = torch.tensor([int((epoch_order(10, 0, epoch) == 0).nonzero()) for epoch in range(2000)])
    assert all(abs(count - 200) < 4 * (2000 * 0.1 * 0.9) ** 0.5 for count in places.bincount(minlength=10).tolist())


def _augmented(pixels: Tensor, indices: Tensor, epoch: int = 0, seed: int = 0, flip: bool = True) -> Tensor:
    return augment(pixels, indices, PREPROCESSING, epoch=epoch, seed=seed, flip=flip)


@pytest.fixture
def noise() -> Tensor:
    return torch.randint(0, 256, (12, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_augmentation_is_a_function_of_seed_epoch_and_index(noise: Tensor) -> None:
    indices = torch.arange(12)
    whole = _augmented(noise, indices)
    assert whole.shape == (12, 3, 16, 16)
    assert whole.dtype == torch.float32
    torch.manual_seed(99)
    part = torch.tensor([7, 2, 11])
    assert torch.equal(_augmented(noise[part], indices[part]), whole[part])
    assert not torch.equal(_augmented(noise, indices, epoch=1), whole)
    assert not torch.equal(_augmented(noise, indices, seed=1), whole)


def test_every_image_is_augmented_in_its_own_way(noise: Tensor) -> None:
    same = _augmented(noise[:1].expand(12, -1, -1, -1), torch.arange(12))
    assert len({tuple(image.flatten().tolist()) for image in same}) == 12


def test_half_of_the_images_are_mirrored() -> None:
    ramp = torch.linspace(0, 255, 20).to(torch.uint8).expand(400, 3, 20, 20)  # dark at the left
    for flip, low, high in ((True, 160, 240), (False, 0, 0)):  # 200 of 400, four standard deviations
        result = _augmented(ramp, torch.arange(400), flip=flip)
        mirrored = int((result[..., :4].mean((1, 2, 3)) > result[..., -4:].mean((1, 2, 3))).sum())
        assert low <= mirrored <= high


def test_augmentation_keeps_brightness_and_stays_near_the_centre() -> None:
    dot = torch.zeros(300, 3, 20, 20, dtype=torch.uint8)
    dot[..., 9:11, 9:11] = 255
    result = _augmented(dot, torch.arange(300), flip=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std))
    brightness = (result * std + mean)[:, 0].clamp(min=0)
    places = torch.arange(16) + 0.5
    across = (brightness.sum(1) * places).sum(1) / brightness.sum((1, 2))
    assert abs(float(across.mean()) - 8) < 0.3
    assert 1 < float(across.std()) < 3
    gray = torch.full((50, 3, 20, 20), 120, dtype=torch.uint8)
    plain = _augmented(gray, torch.arange(50))
    torch.testing.assert_close(plain, evaluation_input(gray, PREPROCESSING))


@pytest.mark.parametrize("size", [8, 12, 16, 24])
def test_augmented_images_can_have_another_size(noise: Tensor, size: int) -> None:
    result = augment(noise, torch.arange(12), PREPROCESSING, epoch=0, seed=0, flip=True, size=size)
    assert result.shape == (12, 3, size, size)


def test_a_chain_decodes_a_set_once(image_folder: Path, tmp_path: Path) -> None:
    def opened(size: int) -> ImageSet:
        return open_dataset(str(image_folder), image_size=size)

    with decoded_once():
        first = opened(24)
        before = first.train.store.read(torch.arange(3), 3)
        pixels = next(before)[0].clone()
        for file in image_folder.rglob("*.png"):  # what was decoded is not read again
            file.write_bytes(b"")
        with decoded_once():  # a chain within a chain
            assert torch.equal(next(opened(24).train.store.read(torch.arange(3), 3))[0], pixels)
        assert opened(32).preprocessing != first.preprocessing
        assert opened(24) is not first  # memory holds one set
    assert opened(24).train.store is not opened(24).train.store
