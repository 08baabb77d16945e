"""Images of every kind become the same 8-bit RGB pixels, and files that are no images are named."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from slimkit.core.compat import import_torchvision
from slimkit.standalone import model_loader

PREPROCESSING = {"resize": 8, "crop": 8, "interpolation": "bilinear"}


def _decoded(image: Image.Image, kind: str) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    buffer.seek(0)
    return model_loader.decode_image(buffer, "test image")


def _pixel(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("RGB", (10, 20, 30), "PNG", (10, 20, 30)),
        ("L", 77, "PNG", (77, 77, 77)),
        ("LA", (77, 3), "PNG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("RGBA", (10, 20, 30, 0), "PNG", (10, 20, 30)),
        ("CMYK", (255, 0, 0, 0), "TIFF", (0, 255, 255)),
        ("I;16", 65535, "PNG", (255, 255, 255)),
        ("I;16", 257 * 100, "PNG", (100, 100, 100)),
        ("I;16", 300, "PNG", (19, 19, 19)),  # 12 bits: 300 * 255 / 4095
        ("I;16", 200, "PNG", (200, 200, 200)),
        ("I;16", 257 * 100, "TIFF", (100, 100, 100)),
        ("I", 257 * 100, "TIFF", (100, 100, 100)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: object, kind: str, expected: tuple[int, ...]) -> None:
    assert _pixel(_decoded(Image.new(mode, (5, 4), colour), kind)) == expected  # type: ignore[arg-type]


def test_a_palette_image_has_its_colours_with_and_without_transparency() -> None:
    image = Image.new("P", (5, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert _pixel(_decoded(image, "PNG")) == (10, 20, 30)
    image.info["transparency"] = bytes([255, 0])
    assert _pixel(_decoded(image, "PNG")) == (10, 20, 30)


def test_gray_of_16_bits_is_scaled_over_its_whole_range() -> None:
    ramp = Image.new("I;16", (256, 1))
    for value in range(256):
        ramp.putpixel((value, 0), 257 * value)
    assert list(_decoded(ramp, "PNG").getchannel("R").tobytes()) == list(range(256))


@pytest.mark.parametrize(
    "content", [b"", b"I am no image", b"\x89PNG\r\n\x1a\n" + bytes(40), b"\xff\xd8\xff\xe0" + bytes(40)]
)
def test_what_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.png is not a readable image"):
        model_loader.decode_image(tmp_path / "odd.png")


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "bmp", "tiff"])
def test_a_truncated_image_is_named(kind: str, tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / f"whole.{kind}")
    content = (tmp_path / f"whole.{kind}").read_bytes()
    (tmp_path / f"half.{kind}").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"half\.{kind} is not a readable image"):
        model_loader.decode_image(tmp_path / f"half.{kind}")


def test_floating_point_images_are_refused() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        _decoded(Image.new("F", (4, 4), 0.5), "TIFF")


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (300, 2), (8, 8), (7, 20)])
def test_any_size_becomes_the_square_that_is_asked_for(size: tuple[int, int]) -> None:
    pixels = model_loader.preprocess(Image.new("RGB", size, (10, 20, 30)), PREPROCESSING)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == torch.uint8
    assert [int(channel.unique()) for channel in pixels] == [10, 20, 30]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (64, 64), (32, 48), (1024, 300)])
def test_preprocessing_is_that_of_torchvision(size: tuple[int, int], interpolation: str) -> None:
    import_torchvision()
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (24, 24, 3), dtype=torch.uint8, generator=generator)
    image = Image.fromarray(small.numpy()).resize(size, Image.Resampling.BICUBIC)
    theirs = Compose([Resize(256, InterpolationMode(interpolation)), CenterCrop(224), PILToTensor()])(image)
    ours = model_loader.preprocess(image, {"resize": 256, "crop": 224, "interpolation": interpolation})
    difference = (ours.int() - theirs.int()).abs().float()
    assert difference.max() <= 2  # rounding, in each of the two directions
    assert difference.mean() < 0.05


def test_normalized_values_are_those_of_the_formula() -> None:
    pixels = torch.tensor([[[[0]], [[128]], [[255]]]], dtype=torch.uint8)
    result = model_loader.normalize(pixels, {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.2, 0.1]})
    expected = [(0 - 0.5) / 0.5, (128 / 255 - 0.4) / 0.2, (1 - 0.3) / 0.1]
    torch.testing.assert_close(result.flatten(), torch.tensor(expected))
