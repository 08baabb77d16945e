"""What `slimkit score` loses beside the bare network when it measures accuracy: images/s of each, and the ratio.

Networks with random weights (no time depends on them); photos of 500x375 pixels, JPEG, made here of smooth noise.
"bare" is the forward pass alone at its best batch size, on input that is there; "held" is `evaluate` over images
that were decoded before; "first pass" decodes, resizes and crops them, too, as a single `score` does. All in turn, in
rounds; the ratios are medians over the rounds.

    python benchmarks/scoring.py [--threads N] [--images N] [--rounds N] [--image-size PIXELS]
"""

import argparse
import datetime
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from slimkit.core.data import ImageSet, open_dataset
from slimkit.core.environment import describe_environment
from slimkit.core.measure.accuracy import evaluate
from slimkit.core.models.resolve import open_model_and_data
from slimkit.core.options import QuantizeOptions, ScoreOptions
from slimkit.core.quantization.convert import quantize
from slimkit.memory import keep_freed_memory

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


def make_photos(folder: Path, count: int) -> str:
    """Test images of two classes."""
    noise = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        (folder / "test" / name).mkdir(parents=True)
    for i in range(count):
        pixels = torch.randint(0, 256, (24, 32, 3), dtype=torch.uint8, generator=noise).numpy()
        photo = Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC)
        photo.save(folder / "test" / "ab"[i % 2] / f"{i}.jpg", quality=90)
    return str(folder)


def seconds(work: Callable[[], object]) -> float:
    """What it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def forward(module: nn.Module, inputs: Tensor, batch_size: int) -> None:
    """All of `inputs` [n, c, h, w] in batches."""
    with torch.inference_mode():
        for batch in inputs.split(batch_size):
            module(batch)


def best_batch_size(module: nn.Module, inputs: Tensor) -> int:
    """The fastest of BATCH_SIZES."""
    forward(module, inputs, BATCH_SIZES[-1])
    sizes = [size for size in BATCH_SIZES if size <= len(inputs)]
    return min(sizes, key=lambda size: min(seconds(lambda: forward(module, inputs, size)) for _ in range(2)))


def measure(name: str, module: nn.Module, data: str, size: int, rounds: int) -> None:
    """A row of the table."""
    opened = open_images(data, size)
    count = len(opened.test)
    inputs = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    best = best_batch_size(module, inputs)
    opened.test.load()
    taken: dict[str, list[float]] = {"bare": [], "held": [], "first pass": []}
    for _ in range(rounds):
        fresh = open_images(data, size)
        taken["bare"].append(seconds(lambda: forward(module, inputs, best)))
        taken["held"].append(seconds(lambda: evaluate(module, opened.test, opened.preprocessing)))
        taken["first pass"].append(seconds(lambda fresh=fresh: evaluate(module, fresh.test, fresh.preprocessing)))
    speeds = {kind: count / statistics.median(times) for kind, times in taken.items()}
    shares = {kind: statistics.median(b / t for b, t in zip(taken["bare"], taken[kind], strict=True)) for kind in taken}
    print(
        f"| {name} | {best} | {speeds['bare']:.1f} | {speeds['held']:.1f} | {shares['held']:.1%} | "
        f"{speeds['first pass']:.1f} | {shares['first pass']:.1%} |",
        flush=True,
    )


def open_images(data: str, size: int) -> ImageSet:
    """The photos, none decoded yet."""
    return open_dataset(data, image_size=size)


def main() -> None:
    """Measure a float and an int8 network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=224)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as the command line does
    with tempfile.TemporaryDirectory() as name:
        size = arguments.image_size
        data = make_photos(Path(name) / "photos", arguments.images)
        float_network, _ = open_model_and_data(ScoreOptions(model="resnet18", data=data, image_size=size))
        images = [torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(1))]
        int8_network = quantize(float_network, scheme=QuantizeOptions().scheme, calibration=images).classifier
        print("| network | best batch | bare, images/s | held, images/s | held | first pass, images/s | first pass |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for kind, classifier in (("resnet18, float32", float_network), ("resnet18, int8", int8_network)):
            measure(kind, classifier.module.eval(), data, size, arguments.rounds)
    cpu = describe_environment()["cpu"]["model"]
    print(f"\n{datetime.date.today()}, {cpu}, {arguments.threads} threads, {arguments.images} images, {size}x{size}")


if __name__ == "__main__":
    main()
