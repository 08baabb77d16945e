"""Images that are not 224 x 224 in three colours: gray ones, those with more channels, and wide ones."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli_chain import slimkit

from slimkit.core import Preprocessing, open_dataset
from slimkit.core.data.augment import augment, evaluation_input
from slimkit.core.errors import DataError
from slimkit.core.folder import read_folder
from slimkit.core.measure.accuracy import evaluate
from slimkit.standalone import model_loader

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=3, num_classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(64, num_classes)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(),
        )

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))
"""
SHADES = {"dark": 30, "light": 220, "middle": 120}


def write_images(folder: Path, channels: int, size: tuple[int, int] = (24, 40)) -> None:
    """Twelve images of each shade, as .png where that can hold the channels, else as .npy."""
    generator = np.random.default_rng(0)
    for name, shade in SHADES.items():
        (folder / name).mkdir(parents=True)
        for i in range(12):
            values = (shade + generator.integers(-25, 25, (*size, channels))).astype(np.uint8)
            if channels in (1, 3, 4):
                Image.fromarray(values.squeeze()).save(folder / name / f"{i}.png")
            else:
                np.save(folder / name / f"{i}.npy", values)


def run(*commands: tuple[str, ...], folder: Path) -> None:
    for command in commands:
        result = slimkit(*command, cwd=folder)
        assert result.returncode == 0, (command, result.stderr)


def test_a_wide_network_of_four_channels_goes_through_the_chain(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    write_images(tmp_path / "data" / "train", 4)
    write_images(tmp_path / "data" / "test", 4)
    own = ("net.py:Net", "--model-args", '{"channels": 4}', "--data", "data", "--image-size", "20x36")
    run(
        ("train", *own, "--epochs", "2", "--batch-size", "8"),
        ("prune", "runs/train", "--rate", "0.3", "--reconstruction-images", "20", "--round-to", "none"),
        ("distill", "runs/prune", "--epochs", "1"),
        ("quantize", "runs/distill", "--min-agreement", "0"),
        ("export", "submission"),
        ("inspect", "submission"),
        folder=tmp_path,
    )
    classifier = read_folder(tmp_path / "submission")
    architecture = classifier.architecture
    assert architecture.input_shape == (4, 20, 36)
    assert len(architecture.preprocessing.mean) == len(architecture.preprocessing.std) == 4
    loader = [sys.executable, "submission/model_loader.py", "--data_dir", "data", "--output_file", "theirs.json"]
    done = subprocess.run(loader, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    images = open_dataset(str(tmp_path / "data"), wanted=architecture.preprocessing).test
    ours = evaluate(classifier.module, images, architecture.preprocessing, device="cpu")
    assert json.loads((tmp_path / "theirs.json").read_text())["accuracy"] == pytest.approx(ours.top1)


@pytest.mark.parametrize("channels", [1, 13])
def test_a_network_of_other_channels_is_cut_and_quantized(channels: int, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    write_images(tmp_path / "data", channels)
    own = ("net.py:Net", "--model-args", f'{{"channels": {channels}}}', "--data", "data", "--image-size", "24")
    run(
        ("prune", *own, "--rate", "0.3", "--reconstruction-images", "20", "--round-to", "none"),
        ("quantize", "runs/prune", "--min-agreement", "0"),
        folder=tmp_path,
    )
    assert read_folder(tmp_path / "submission").architecture.input_shape == (channels, 24, 24)


def test_gray_is_read_as_gray(tmp_path: Path) -> None:
    file = tmp_path / "gray.png"
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(values).save(file)
    image = model_loader.read_image(file, 1)
    pixels = model_loader.preprocess(image, {"resize": 16, "crop": 16, "interpolation": "bilinear"})
    assert pixels.tolist() == [values.tolist()]


def test_transparency_is_a_channel_of_four(tmp_path: Path) -> None:
    file = tmp_path / "rgba.png"
    Image.new("RGBA", (4, 4), (10, 20, 30, 40)).save(file)
    pixels = model_loader.preprocess(
        model_loader.read_image(file, 4), {"resize": 4, "crop": 4, "interpolation": "nearest"}
    )
    assert pixels[:, 0, 0].tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize("order", ["channels last", "channels first"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_an_array_is_resized_as_the_image_of_the_same_values(kind: type, order: str, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 256, (30, 50, 3)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    scaled = {np.uint8: values, np.uint16: values.astype(np.uint16) * 257, np.float32: values.astype(np.float32) / 255}
    np.save(tmp_path / "a.npy", scaled[kind].transpose(2, 0, 1) if order == "channels first" else scaled[kind])
    preprocessing = {"resize": [18, 24], "crop": [16, 20], "interpolation": "bilinear"}
    array, image = (
        model_loader.preprocess(model_loader.read_image(tmp_path / name, 3), preprocessing).float()
        for name in ("a.npy", "a.png")
    )
    assert array.shape == image.shape == (3, 16, 20)
    assert float((array.clamp(0, 255) - image).abs().max()) <= 1  # an image's values are rounded, twice


def test_a_wide_cut_is_the_centre_of_what_covers_it() -> None:
    """Twice as wide as the image: it is resized by its width, and loses rows above and below."""
    rows = torch.arange(40).repeat_interleave(40).reshape(40, 40).to(torch.uint8)
    image = Image.fromarray(rows.numpy()).convert("RGB")
    pixels = model_loader.preprocess(image, {"resize": [20, 40], "crop": [20, 40], "interpolation": "nearest"})
    assert pixels[0, :, 0].tolist() == list(range(10, 30))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((5, 6, 2), np.uint8), "has the shape"),
        (np.zeros((5, 6, 13), np.int64), "unsigned integers or floating-point"),
        (np.array([{}, {}]), "not a readable array"),
        (np.zeros((0, 4, 13), np.uint8), "no array"),
        (np.full((4, 4, 13), np.nan, np.float32), "not finite"),
        (np.full((4, 4, 13), 255.0, np.float32), "from 255 to 255, where 0 to 1 is wanted"),
        (np.full((4, 4, 13), -2.1, np.float64), "from -2.1 to -2.1, where 0 to 1 is wanted"),
    ],
)
def test_odd_arrays_are_refused_by_name(values: np.ndarray, reason: str, tmp_path: Path) -> None:
    np.save(tmp_path / "odd.npy", values, allow_pickle=True)
    with pytest.raises(ValueError, match=f"odd.npy.*{reason}"):
        model_loader.read_image(tmp_path / "odd.npy", 13)


def test_images_do_not_feed_a_network_of_thirteen_channels(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    data = open_dataset(str(tmp_path), image_size=16)
    with pytest.raises(DataError, match="13 channels"):
        data.prepared(Preprocessing(resize=16, crop=16, mean=(0.5,) * 13, std=(0.5,) * 13))


def test_training_sees_about_what_evaluation_sees() -> None:
    """A gradient over a wide image: the mean of many augmented views is that of evaluation."""
    preprocessing = Preprocessing(resize=(20, 44), crop=(16, 36), mean=(0.0,), std=(1.0,))
    pixels = (torch.arange(44) * 5).repeat(20, 1).expand(256, 1, 20, 44).to(torch.uint8)
    views = augment(pixels, torch.arange(256), preprocessing, epoch=0, seed=0, flip=False)
    plain = evaluation_input(pixels, preprocessing)
    assert views.shape == plain.shape == (256, 1, 16, 36)
    assert float((views.mean(0) - plain[0]).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--image-size", "12by3"), "12by3"),
        (("--image-size", "0x20"), "--image-size is 0x20"),
        (("--image-size", "64x32", "--resize", "40"), "64x32 can't be cut from 40"),
        (("--mean", "0.5", "0.5", "--std", "0.2"), "--mean has 2 numbers and --std 1"),
        (("--mean", "0.5"), "three channels"),
    ],
)
def test_sizes_and_numbers_that_can_not_be(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = slimkit("train", "resnet18", *flags, cwd=tmp_path)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())


def test_a_size_in_a_file_is_one_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    write_images(tmp_path / "data", 3)
    (tmp_path / "o.yaml").write_text("model: net.py:Net\ndata: data\nimage-size: 20x36\nmean: [0.1, 0.2, 0.3]\n")
    flags = ("--data", "data", "--image-size", "20x36", "--mean", "0.1", "0.2", "0.3", "--epochs", "1")
    assert slimkit("train", "net.py:Net", *flags, "-o", "a", cwd=tmp_path).returncode == 0
    assert slimkit("train", "-c", "o.yaml", "--epochs", "1", "-o", "b", cwd=tmp_path).returncode == 0
    assert slimkit("train", "-c", "a.yaml", "-o", "c", cwd=tmp_path).returncode == 0
    first, *others = (read_folder(tmp_path / name).architecture.preprocessing for name in "abc")
    assert first.crop == (20, 36)
    assert first.mean == (0.1, 0.2, 0.3)
    assert others == [first, first]
