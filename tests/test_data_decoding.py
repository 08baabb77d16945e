"""Images of every kind become the same 8-bit RGB pixels, and files that are no images are named."""

import io
import struct
import zlib
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


def _deep_png(values: torch.Tensor, colour_type: int) -> io.BytesIO:
    """A PNG of 16 bits a channel, written chunk by chunk; values: [height, width, channels]."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = values.shape
    rows = [b"\0" + b"".join(struct.pack(">H", value) for value in row.flatten().tolist()) for row in values]
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (6, 4)])
def test_values_of_fewer_bits_in_16_fill_the_range(bits: int, colour_type: int, channels: int) -> None:
    white = 2**bits - 1
    values = torch.randint(0, white, (6, 5, channels), generator=torch.Generator().manual_seed(0))
    values[0, 0] = white
    decoded = model_loader.decode_image(_deep_png(values, colour_type))
    pixels = torch.frombuffer(bytearray(decoded.tobytes()), dtype=torch.uint8).view(6, 5, 3)
    expected = values[..., :3].expand(6, 5, 3) * 255 / white
    assert (pixels - expected).abs().max() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_as_their_exif_data_say(orientation: int, kind: str) -> None:
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("black", (0, 0, 16, 8))  # the upper left quarter
    # how a camera that was held so stores it: the inverse of what a viewer does
    turns = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(orientation, [])
    stored = upright
    for turn in turns:
        stored = stored.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, kind, exif=exif)
    decoded = model_loader.decode_image(buffer)
    assert decoded.size == (32, 16)
    quarters = [decoded.getpixel(place)[0] > 128 for place in ((8, 4), (24, 4), (8, 12), (24, 12))]  # type: ignore[index]
    assert quarters == [False, True, True, True]


def test_damaged_exif_data_do_not_cost_the_image() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), (10, 20, 30)).save(buffer, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff" + bytes(9))
    assert _pixel(model_loader.decode_image(buffer)) == (10, 20, 30)


@pytest.mark.parametrize(
    "interpolation", ["nearest", "nearest-exact", "bilinear", "bicubic", "lanczos", "box", "hamming"]
)
def test_every_interpolation_is_honoured(interpolation: str) -> None:
    noise = torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.numpy())
    ours = model_loader.preprocess(image, {"resize": 16, "crop": 16, "interpolation": interpolation})
    filters = {"nearest-exact": "nearest"}
    theirs = image.resize((16, 16), Image.Resampling[filters.get(interpolation, interpolation).upper()])
    assert ours.permute(1, 2, 0).numpy().tobytes() == theirs.tobytes()
