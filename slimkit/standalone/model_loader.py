"""Loads a model folder, prepares images for it, and scores it. Works without slimkit; needs torch and Pillow.

    from model_loader import load_model
    model = load_model("path/to/the/folder")  # an nn.Module in eval mode: normalized float images -> logits

    python model_loader.py --submission_dir . --data_dir path/to/test --output_file results.json

The second line measures the size of the weights file, the latency (mean of 100 runs of one image) and the accuracy, and
computes from them, where the baseline's figures are B:

    size_score = size(B) / size            latency_score = latency(B) / latency
    accuracy_score = accuracy / accuracy(B)
    total_score = 0.3 size_score + 0.3 latency_score + 0.4 accuracy_score
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import json
import math
import os
import statistics
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch
from PIL import Image
from torch import Tensor, nn

METADATA = "model_metadata.json"
FORMAT_VERSION = 1  # the newest that is understood here
MB = 2**20  # bytes
MOST_JSON = 64 * MB
LARGEST_SIDE = 2**14  # pixels of an image
SPARE_BYTES = 16 * MB  # of a weights file, beside the tensors: names and alignment
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
WARM_UP, RUNS = 10, 100  # of the latency measurement
BATCH_SIZE = 64  # of the accuracy measurement


# ---- The model ----


def load_model(model_path: str | os.PathLike[str]) -> nn.Module:
    """Rebuild the model of a folder, in eval mode on the CPU. `model_path` is the folder, or the weights file in it.

    The network is built from the architecture JSON, then filled from the weights file, which can't run code
    (`weights_only=True`). Raises FileNotFoundError or ValueError that names the file, field or layer that is wrong.
    """
    folder = Path(model_path)
    folder = folder.parent if folder.is_file() else folder
    files = verify(folder)
    architecture = _read_json(files["architecture"])
    check_architecture(architecture, files["architecture"])
    model = _build(architecture, files["architecture"])
    fill(model, read_weights(files["weights"], most=_most_bytes(model)), files["weights"])
    return model.eval()


def verify(folder: Path) -> dict[str, Path]:
    """Compare every file that model_metadata.json lists with its sha256; gives the files by what they hold."""
    metadata = _read_json(folder / METADATA)
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{folder / METADATA}: format_version is not {FORMAT_VERSION}, the only one understood here")
    files, digests = metadata.get("files"), metadata.get("sha256")
    if not isinstance(files, dict) or not {"weights", "architecture"} <= files.keys():
        raise ValueError(f"{folder / METADATA}: the field 'files' is missing or wrong")
    if not isinstance(digests, dict) or not {str(name) for name in files.values()} <= digests.keys():
        raise ValueError(f"{folder / METADATA}: the field 'sha256' is missing, or leaves out a file")
    for name, digest in digests.items():
        if Path(name).name != name:
            raise ValueError(f"{folder / METADATA}: {name!r} is not the plain name of a file")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks the file {name}")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{folder / name} was changed or damaged: its sha256 is not the one in {METADATA}")
    return {content: folder / str(name) for content, name in files.items()}


def check_architecture(architecture: dict[str, Any], source: Path) -> None:
    """Raise ValueError that names the field of an architecture JSON with which no image can be prepared or named."""

    def refuse(field: str, wanted: str) -> None:
        raise ValueError(f"{source}: {field} is {_field(architecture, field)!r:.80}, not {wanted}")

    names, count = architecture.get("class_names"), architecture.get("num_classes")
    if type(count) is not int or count < 1:
        refuse("num_classes", "a number of classes")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        refuse("class_names", "a list of names")
    elif len(names) != count or len(set(names)) != count:
        raise ValueError(f"{source}: class_names has {len(set(names))} different names for {count} classes")
    shape = architecture.get("input_shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(_is_size(size) for size in shape):
        refuse("input_shape", f"[channels, height, width] of at most {LARGEST_SIDE}")
    own = architecture.get("preprocessing")
    if not isinstance(own, dict):
        refuse("preprocessing", "an object")
        return
    for side in ("resize", "crop"):
        if not _is_size(own.get(side)):
            refuse(f"preprocessing.{side}", f"a number of pixels from 1 to {LARGEST_SIDE}")
    if own["crop"] > own["resize"]:
        raise ValueError(f"{source}: preprocessing crops {own['crop']} pixels out of {own['resize']}")
    if str(own.get("interpolation")).upper() not in Image.Resampling.__members__:
        refuse("preprocessing.interpolation", "one of " + ", ".join(m.name.lower() for m in Image.Resampling))
    for name, least in (("mean", -math.inf), ("std", 0.0)):
        numbers = own.get(name)
        if not isinstance(numbers, list) or not all(_is_finite(n) and n > least for n in numbers):
            refuse(f"preprocessing.{name}", "a list of numbers" + (" above 0" if name == "std" else ""))


def _field(content: Any, path: str) -> Any:
    """The field at a dotted path; None where it is missing."""
    for key in path.split("."):
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST_SIDE


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e6


def read_weights(path: Path, most: int | None = None) -> dict[str, Tensor]:
    """The state dict in a weights file. A pickle that holds anything but plain values is refused, never executed.

    most: the bytes that its tensors can have; a file that claims more is refused before memory is taken for them.
    """
    _require_archive(path, most)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle raises nearly anything
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no plain state dict, so it was not loaded: {reason}") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path} holds something else than a state dict of tensors")
    if odd := [name for name in weights if not isinstance(name, str)]:
        raise ValueError(f"{path} has a tensor under {odd[0]!r:.80}, which is no name")
    return weights


def _require_archive(path: Path, most: int | None) -> None:
    """Raise ValueError for what is no archive as torch.save writes them, or unpacks to more than `most` bytes."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no weights file: torch.save writes a zip archive, and this is none")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{path} is a damaged archive: {error}") from None
    if packed := [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
        raise ValueError(f"{path} holds {packed[0]!r:.80} compressed, which torch.save never does")
    size = sum(entry.file_size for entry in entries)
    if most is not None and size > 2 * most + SPARE_BYTES:
        raise ValueError(f"{path} holds {size:,} bytes; the architecture has {most:,} bytes of weights")


def _most_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def fill(model: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Load `weights` into `model` where names, shapes and types agree; `source` is the file that errors name."""
    wanted = model.state_dict()
    for name in sorted(weights.keys() ^ wanted.keys()):
        holder = "the architecture" if name in weights else source
        raise ValueError(f"the weights and the architecture disagree: {holder} has no {name!r}")
    for name, tensor in weights.items():
        found, expected = ([list(t.shape), t.dtype] for t in (tensor, wanted[name]))
        if found != expected:
            raise ValueError(f"{source}: {name!r} is {found}; the architecture wants {expected}")
    wanted.update(weights)  # it knows the versions of the modules, for which MNASNet asks
    model.load_state_dict(wanted)


def _build(architecture: dict[str, Any], source: Path) -> nn.Module:
    """The network that `architecture` describes, unfilled; `source` is the file that errors name."""
    code = _model_code()
    try:
        model: nn.Module = code.build_model(architecture)
        code.check_network(model, architecture["input_shape"], architecture["num_classes"])
    except (ValueError, KeyError, TypeError) as error:
        detail = f"the field {error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{source}: {detail}") from error
    return model


@functools.cache
def _model_code() -> ModuleType:
    """model.py: slimkit's own inside slimkit, else the file beside this one, whatever else is called `model`."""
    if __package__ == "slimkit.standalone":
        return importlib.import_module("slimkit.standalone.model")
    path = Path(__file__).resolve().with_name("model.py")
    name = f"model_{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"  # two folders' codes live side by side
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # type: ignore[union-attr]  # a file's spec has a loader
    return module


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} lacks the file {path.name}")
    if path.stat().st_size > MOST_JSON:
        raise ValueError(f"{path} is larger than {MOST_JSON // MB} MB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


# ---- Images ----


def decode_image(file: str | Path | IO[bytes], name: str | None = None) -> Image.Image:
    """Read an image of any kind as RGB. Raises ValueError that names it (`name`, where `file` is a stream)."""
    try:
        with Image.open(file) as image:
            return to_rgb(image)
    except Exception as error:  # Pillow's parsers raise nearly anything for a damaged file
        raise ValueError(f"{name or file} is not a readable image: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB. Gray of 16 bits is scaled (Pillow would clip it), transparency is dropped."""
    if image.mode.startswith("I"):
        darkest, brightest = image.convert("I").getextrema()
        if darkest < 0 or brightest > 65535:  # type: ignore[operator]  # one band, so two numbers
            raise ValueError("its values are not of 8 or 16 bits")
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    elif image.mode == "F":
        raise ValueError("its values are floating-point numbers")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def preprocess(image: Image.Image, preprocessing: dict[str, Any]) -> Tensor:
    """Resize the shorter side to `resize`, cut the central `crop` x `crop`: uint8 [3, crop, crop]."""
    return centre_crop(resize_to_square(image, preprocessing), preprocessing["crop"])


def resize_to_square(image: Image.Image, preprocessing: dict[str, Any]) -> Tensor:
    """Resize the shorter side of an RGB image to `resize` and cut the central square: uint8 [3, resize, resize]."""
    side, (w, h) = preprocessing["resize"], image.size
    width, height = side * w // min(w, h), side * h // min(w, h)  # of the whole image, resized
    left, top = (width - side) // 2, (height - side) // 2
    # only the central square is computed: the box is where it lies in the image
    box = (left * w / width, top * h / height, (left + side) * w / width, (top + side) * h / height)
    resample = Image.Resampling[preprocessing["interpolation"].upper()]
    square = image.resize((side, side), resample, box)
    return torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """Cut the central `size` x `size` pixels: [..., h, w] -> [..., size, size]."""
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


def normalize(images: Tensor, preprocessing: dict[str, Any]) -> Tensor:
    """Values 0 … 255 -> 0 … 1, less the mean, divided by the standard deviation: float32 [n, 3, h, w]."""
    mean, std = (torch.tensor(preprocessing[key], device=images.device).view(-1, 1, 1) for key in ("mean", "std"))
    return images.float().div(255).sub_(mean).div_(std)


# ---- The panel's measurements ----


def measure_latency(model: nn.Module, input_shape: list[int]) -> dict[str, float]:
    """Milliseconds for one image: mean, median and 90th percentile of 100 runs after a warm-up."""
    image, times = torch.rand(1, *input_shape), []
    with torch.inference_mode():
        for _ in range(WARM_UP + RUNS):
            start = time.perf_counter()
            model(image)
            times.append(1000 * (time.perf_counter() - start))
    times = times[WARM_UP:]
    p90 = statistics.quantiles(times, n=10)[-1]
    return {"latency": statistics.fmean(times), "latency_median": statistics.median(times), "latency_p90": p90}


def measure_accuracy(model: nn.Module, architecture: dict[str, Any], data_dir: Path) -> dict[str, Any]:
    """Top-1 accuracy in % over every image of the class folders, matched to the model's classes by name."""
    files = list_images(data_dir, architecture["class_names"])
    preprocessing = architecture["preprocessing"]
    correct = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool, torch.inference_mode():
        for start in range(0, len(files), BATCH_SIZE):
            batch = files[start : start + BATCH_SIZE]
            pixels = pool.map(lambda file: preprocess(decode_image(file[0]), preprocessing), batch)
            answers = model(normalize(torch.stack(list(pixels)), preprocessing)).argmax(1)
            correct += int((answers == torch.tensor([label for _, label in batch])).sum())
    return {"accuracy": 100 * correct / len(files), "correct": correct, "images": len(files)}


def list_images(data_dir: Path, class_names: list[str]) -> list[tuple[Path, int]]:
    """Every image below the class folders of `data_dir` (or of test/ or val/ in it), with its class in the model."""
    root = next((data_dir / split for split in ("test", "val") if (data_dir / split).is_dir()), data_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    files: list[tuple[Path, int]] = []
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        images = sorted(path for path in folder.rglob("*") if is_image_name(path.name))
        if not images or folder.name not in class_names:
            raise ValueError(f"{folder}: {'the model has no class of this name' if images else 'it holds no images'}")
        files += [(path, class_names.index(folder.name)) for path in images]
    if not files:
        raise ValueError(f"{root} has no class folders")
    return files


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image; hidden files do not."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def score(folder: Path, data_dir: Path | None, size: float, latency: float, accuracy: float) -> dict[str, Any]:
    """Measure the model in `folder` and score it against the baseline's figures; see the top of this file.

    Without `data_dir`, accuracy and total are None.
    """
    if not min(size, latency, accuracy) > 0:
        raise ValueError("the baseline's figures must be above 0")
    files, model = verify(folder), load_model(folder)
    architecture = _read_json(files["architecture"])
    results: dict[str, Any] = {"model_size": files["weights"].stat().st_size / MB}
    results |= measure_latency(model, architecture["input_shape"])  # first: data work leaves threads behind
    results["size_score"] = size / results["model_size"]
    results["latency_score"] = latency / results["latency"]
    if data_dir is None:
        return results | {"accuracy": None, "accuracy_score": None, "total_score": None}
    results |= measure_accuracy(model, architecture, data_dir)
    results["accuracy_score"] = results["accuracy"] / accuracy
    total = 0.3 * results["size_score"] + 0.3 * results["latency_score"] + 0.4 * results["accuracy_score"]
    return results | {"total_score": total}


def main() -> None:
    """Score a folder, print the results and write them to a file."""
    parser = argparse.ArgumentParser(description="Score a compressed model: size, latency and accuracy.")
    parser.add_argument("--submission_dir", type=Path, default=Path(__file__).resolve().parent, help="the model folder")
    parser.add_argument("--data_dir", type=Path, help="class folders, or a folder with test/ or val/ that holds them")
    for figure, default, unit in (("size", 50.0, "MB"), ("latency", 10.0, "ms"), ("accuracy", 80.0, "%%")):
        parser.add_argument(f"--baseline_{figure}", type=float, default=default, help=f"{unit} (default: {default:g})")
    parser.add_argument("--output_file", type=Path, default=Path("results.json"), help="default: results.json")
    o = parser.parse_args()
    try:
        results = score(o.submission_dir, o.data_dir, o.baseline_size, o.baseline_latency, o.baseline_accuracy)
        _write_json(o.output_file, results)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for key, value in results.items():
        print(f"{key:16} {value:.4f}" if isinstance(value, float) else f"{key:16} {value}")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
