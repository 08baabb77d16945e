"""Stronger augmentation: random parts, mirroring by turns, hidden squares and mixed images, with their labels."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from slimkit.core.architecture import Preprocessing
from slimkit.core.data import Augmentation, augment, draw_mixing

PLAIN = Preprocessing(resize=32, crop=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # inputs are pixels / 255
COUNT = 400
EVERY = torch.arange(COUNT)


def _augmented(pixels: Tensor, indices: Tensor = EVERY, epoch: int = 0, size: int = 32, **how: object) -> Tensor:
    wanted = Augmentation(**how)  # type: ignore[arg-type]
    return augment(pixels, indices, PLAIN, epoch=epoch, seed=0, flip=True, size=size, augmentation=wanted)


def _ramp(axis: int) -> Tensor:
    """Pixels that tell their place: 0 at the left or the top, 248 at the other side."""
    places = torch.arange(32) * 8
    return (places.view(1, -1) if axis else places.view(-1, 1)).expand(COUNT, 3, 32, 32).to(torch.uint8)


def _mirrored(epoch: int, **how: object) -> Tensor:
    result = _augmented(_ramp(1), epoch=epoch, **how)
    return result[..., :8].mean((1, 2, 3)) > result[..., -8:].mean((1, 2, 3))


def test_by_turns_an_image_is_mirrored_in_every_other_epoch() -> None:
    first = _mirrored(0, flip="alternate")
    assert 160 < int(first.sum()) < 240  # half of 400, four standard deviations
    for epoch in range(1, 5):
        assert torch.equal(_mirrored(epoch, flip="alternate"), first ^ (epoch % 2 == 1))
    assert not torch.equal(_mirrored(2, flip="random"), _mirrored(0, flip="random"))
    assert not _mirrored(0, flip="none").any()


def test_a_part_of_random_area_is_anywhere_in_the_image() -> None:
    across, down = (_augmented(_ramp(axis), flip="none", min_crop=0.25)[:, 0] for axis in (1, 0))
    width = (across[:, 0, -1] - across[:, 0, 0]) * 255 / 8 / 31  # of the part, as a share of the image's
    height = (down[:, -1, 0] - down[:, 0, 0]) * 255 / 8 / 31
    area, stretch = width * height, width / height
    assert float(area.min()) > 0.22
    assert float(area.max()) > 0.9
    assert abs(float(area.mean()) - 0.62) < 0.06  # between 0.25 and 1, evenly, less what a stretched part may not have
    assert 0.7 < float(stretch.min()) < 0.85
    assert 1.2 < float(stretch.max()) < 1.4
    small = width < 0.6
    middle = (across[small, 0, 16] * 255 / 248 - 0.5).abs()
    assert float(middle.max()) > 0.15


def test_a_hidden_square_has_its_share_of_the_sides_and_lies_in_its_own_place() -> None:
    result = _augmented(torch.full((COUNT, 3, 32, 32), 255, dtype=torch.uint8), cutout=0.5)
    hidden = (result == 0).all(1)
    heights, widths = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert int(heights.max()) == int(widths.max()) == 16
    assert int(heights.min()) >= 7  # at the border half of it is outside
    assert torch.equal(hidden.sum((1, 2)), heights * widths)
    assert len({tuple(mask.flatten().tolist()) for mask in hidden}) > COUNT / 2
    smaller = (_augmented(torch.full((COUNT, 3, 32, 32), 255, dtype=torch.uint8), size=16, cutout=0.5) == 0).all(1)
    torch.testing.assert_close(smaller.float().mean((1, 2)), hidden.float().mean((1, 2)), atol=0.07, rtol=0)


@pytest.mark.parametrize(
    "how", [{"flip": "alternate"}, {"min_crop": 0.3}, {"cutout": 0.4}, {"mixup": 0.4}, {"cutmix": 1.0}]
)
def test_everything_is_a_function_of_seed_epoch_and_index(how: dict[str, object]) -> None:
    pixels = torch.randint(0, 256, (COUNT, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    part = torch.tensor([70, 2, 311])
    torch.manual_seed(1)
    assert torch.equal(_augmented(pixels[part], part, **how), _augmented(pixels, **how)[part])
    wanted = Augmentation(**how)  # type: ignore[arg-type]
    whole, some = (draw_mixing(indices, wanted, epoch=3, seed=5) for indices in (EVERY, part))
    assert torch.equal(some.own, whole.own[part])
    assert torch.equal(some.patches.start, whole.patches.start[part])
    if "mixup" in how or "cutmix" in how:
        assert not torch.equal(whole.own, draw_mixing(EVERY, wanted, epoch=4, seed=5).own)
        assert not torch.equal(whole.own, draw_mixing(EVERY, wanted, epoch=3, seed=6).own)


@pytest.mark.parametrize(("mixup", "cutmix", "pasted"), [(0.4, 0, 0), (0, 1.0, COUNT), (0.4, 1.0, COUNT // 2)])
def test_labels_are_mixed_as_the_pixels_are(mixup: float, cutmix: float, pasted: int) -> None:
    """Image i has the colour i / COUNT throughout, and the class i."""
    mixing = draw_mixing(EVERY, Augmentation(mixup=mixup, cutmix=cutmix), epoch=0, seed=0)
    assert abs(int(mixing.is_pasted.sum()) - pasted) < (4 * (COUNT / 4) ** 0.5 if 0 < pasted < COUNT else 1)
    colours = torch.arange(COUNT) / COUNT
    inputs = colours.view(-1, 1, 1, 1).expand(-1, 3, 128, 128)
    labels = mixing.labels(EVERY, COUNT)
    torch.testing.assert_close(labels.sum(1), torch.ones(COUNT))
    torch.testing.assert_close(mixing.images(inputs).mean((1, 2, 3)), labels @ colours, atol=0.03, rtol=0)
    partners = (EVERY + 1) % COUNT
    torch.testing.assert_close(labels[EVERY, partners], 1 - labels[EVERY, EVERY])


def test_a_pasted_part_is_the_other_images_own() -> None:
    inputs = torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mixed = draw_mixing(EVERY, Augmentation(cutmix=1.0), epoch=0, seed=0).images(inputs)
    is_own, is_other = (mixed == inputs).all(1), (mixed == inputs.roll(-1, 0)).all(1)
    assert bool((is_own ^ is_other).all())
    rows, columns = is_other.any(2).sum(1), is_other.any(1).sum(1)
    assert torch.equal(rows * columns, is_other.sum((1, 2)))  # a rectangle


@pytest.mark.parametrize(("alpha", "spread"), [(0.2, 1 / (4 * 1.4)), (1.0, 1 / 12), (8.0, 1 / (4 * 17))])
def test_shares_are_of_the_beta_distribution(alpha: float, spread: float) -> None:
    """Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2 a + 1))."""
    shares = draw_mixing(torch.arange(4000), Augmentation(mixup=alpha), epoch=0, seed=0).own
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(spread, rel=0.1)


def test_the_loss_of_mixed_labels_is_the_mixed_loss() -> None:
    mixing = draw_mixing(torch.arange(6), Augmentation(mixup=1.0), epoch=0, seed=0)
    labels, logits = torch.tensor([0, 2, 1, 1, 0, 2]), torch.randn(6, 3)
    own, other = (cross_entropy(logits, each, reduction="none") for each in (labels, labels.roll(-1)))
    expected = (mixing.own * own + (1 - mixing.own) * other).mean()
    torch.testing.assert_close(cross_entropy(logits, mixing.labels(labels, 3)), expected)
