"""digits100: the offline data set."""

import torch

from slimkit.core.data import Images, open_dataset
from slimkit.core.data.digits import specimens


def _pixels(images: Images, indices: torch.Tensor) -> torch.Tensor:
    return torch.cat([pixels for pixels, _, _ in images.batches(indices, 64)])


def test_its_classes_sizes_and_counts() -> None:
    data = open_dataset("digits100")
    assert data.class_names == tuple(f"{number:02d}" for number in range(100))
    assert (data.preprocessing.crop, data.preprocessing.resize) == (64, 64)
    assert not data.flip
    assert data.test.labels.bincount().tolist() == [20] * 100
    assert data.train.labels.bincount().tolist() == [76] * 100
    assert data.holdout.labels.bincount().tolist() == [4] * 100


def test_it_is_always_the_same() -> None:
    chosen = torch.arange(0, 2000, 40)
    first, second = open_dataset("digits100").test, open_dataset("digits100").test
    torch.manual_seed(5)
    assert torch.equal(_pixels(first, chosen), _pixels(second, chosen))


def test_no_two_images_are_the_same() -> None:
    data = open_dataset("digits100")
    chosen = torch.arange(0, 2000, 3)
    assert len(_pixels(data.test, chosen).flatten(1).unique(dim=0)) == len(chosen)


def test_train_and_test_come_from_other_handwritten_digits() -> None:
    for train, test in zip(specimens("train"), specimens("test"), strict=True):
        assert not {specimen.tobytes() for specimen in train} & {specimen.tobytes() for specimen in test}
        assert min(len(train), 2 * len(test)) > 50


def test_left_and_right_show_the_digits_of_the_class() -> None:
    """A nearest-neighbour classifier of 8x8 thumbnails, fitted on the left digits of train, reads those of test."""
    data = open_dataset("digits100")

    def left_digits(images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.arange(0, len(images), 4)
        gray = _pixels(images, chosen).float().mean(1)[:, :, :32]
        gray = (gray - gray.mean((1, 2), keepdim=True)) / gray.std((1, 2), keepdim=True)
        small = torch.nn.functional.avg_pool2d(gray[:, None], 4).flatten(1)
        return small, images.labels[chosen] // 10

    known, known_labels = left_digits(data.train)
    asked, asked_labels = left_digits(data.test)
    answers = known_labels[torch.cdist(asked, known).argmin(1)]
    assert (answers == asked_labels).float().mean() > 0.5  # guessing gives 0.1


def test_another_image_size_keeps_the_whole_picture() -> None:
    data = open_dataset("digits100", image_size=32)
    assert (data.preprocessing.crop, data.preprocessing.resize) == (32, 32)
    assert _pixels(data.test, torch.arange(2)).shape == (2, 3, 32, 32)
