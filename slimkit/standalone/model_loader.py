"""Loads a model folder, prepares images for it, and scores it. Works without slimkit; needs torch and Pillow.

    from model_loader import load_model
    model = load_model("path/to/the/folder")  # an nn.Module in eval mode: normalized float images -> logits
    model = load_model("path/to/the/folder", runtime="onnxruntime")  # the same by the model.onnx in the folder

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
import re
import statistics
import sys
import time
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import IO, Any, NamedTuple

if __name__ == "__main__" and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"} & os.environ.keys():
    # read when torch is loaded: how long OpenMP's threads spin while they wait, in vain where others use their cores
    os.environ["GOMP_SPINCOUNT"] = "2000"

import torch
from PIL import Image, ImageChops, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

METADATA = "model_metadata.json"
ONNX_FILE = "model.onnx"  # of a folder that other runtimes compute, too
RUNTIMES = ("torch", "onnxruntime", "openvino")
CHECKED = 8  # random images that another runtime's answers are checked on
MOST_APART = 0.15  # norm of its logits less the model's, over the norm of these; int8 differs where sums are near a tie
FORMAT_VERSIONS = (1, 2, 3)  # that are understood here; 2: a float network as its graph; 3: int8 with coded weights
CODED_FORMAT_VERSION = 3
MB = 2**20  # bytes
MOST_JSON = 64 * MB
LARGEST_SIDE = 2**14  # pixels of an image
SPARE_BYTES = 16 * MB  # of a weights file, beside the tensors: names and alignment
EXPANSION = {
    False: 2,
    True: 64,
}  # bytes of weights that a byte of a file may stand for: plain, where two share it; coded
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
IMAGE_SUFFIXES |= {".pnm", ".pbm"}
ARRAY_SUFFIX = ".npy"  # an image of any number of channels, as NumPy saves it
BETWEEN_0_AND_1 = (-0.5, 2.0)  # what floating-point numbers from 0 to 1 never leave, noise and glare included
ORIENTATION = 0x0112  # among the tags of EXIF
LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}  # how Pillow reads the other byte of each value
DEEP_COLOUR = {*LOW_BYTES, "LA;16B"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names, by the number of channels
NOT_DATA = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "#recycle", "@recycle", "$recycle.bin", "lost+found"}
SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "eval", "evaluation", "dev", "development"),
    "test": ("test", "testing", "tests"),
}
WARM_UP, RUNS = 10, 100  # of the latency measurement
BATCH_SIZE = 64  # of the accuracy measurement
SKETCHED = 32  # images by which a set is known again


# ---- The model ----


def load_model(model_path: str | os.PathLike[str], runtime: str = "torch") -> nn.Module:
    """Rebuild the model of a folder, in eval mode on the CPU. `model_path` is the folder, or the weights file in it.

    The network is built from the architecture JSON, then filled from the weights file, which can't run code
    (`weights_only=True`). With `runtime` "onnxruntime" or "openvino" the folder's model.onnx is computed there, once
    its answers are found to be the model's. Raises FileNotFoundError or ValueError that names the file, field or layer
    that is wrong, ImportError where the runtime is not installed.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime is {runtime!r}; it is one of {', '.join(RUNTIMES)}")
    folder = Path(model_path)
    folder = folder.parent if folder.is_file() else folder
    model, input_shape = _load(folder)
    return model if runtime == "torch" else _in_runtime(model, input_shape, folder / ONNX_FILE, runtime)


def _load(folder: Path) -> tuple[nn.Module, list[int]]:
    """The model in eval mode, and the shape of its input."""
    files = verify(folder)
    architecture = _read_json(files["architecture"])
    check_architecture(architecture, files["architecture"])
    stored = unpacked_bytes(files["weights"])
    model = _build(architecture, files["architecture"], stored)
    if stored > 2 * (most := _most_bytes(model)) + SPARE_BYTES:
        raise ValueError(f"{files['weights']} holds {stored:,} bytes; the architecture has {most:,} bytes of weights")
    weights = read_weights(files["weights"])
    fill(model, _decoded(weights, model, files["weights"]) if is_coded(architecture) else weights, files["weights"])
    return model.eval(), architecture["input_shape"]


def _decoded(weights: dict[str, Tensor], model: nn.Module, source: Path) -> dict[str, Tensor]:
    """The state dict of `model` out of coded `weights`."""
    code = _model_code()
    if list(weights) != [code.CODED_KEY]:
        raise ValueError(f"{source} has no coded weights, which the architecture tells of")
    try:
        state: dict[str, Tensor] = code.decode_weights(weights[code.CODED_KEY], model)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return state


def is_coded(architecture: dict[str, Any]) -> bool:
    """Whether the weights file holds one string of bytes, out of which model.py decodes the state dict."""
    return architecture.get("format_version") == CODED_FORMAT_VERSION


def verify(folder: Path) -> dict[str, Path]:
    """Compare every file that model_metadata.json lists with its sha256; gives the files by what they hold."""
    metadata = _read_json(folder / METADATA)
    if metadata.get("format_version") not in FORMAT_VERSIONS:
        raise ValueError(f"{folder / METADATA}: format_version is none of {FORMAT_VERSIONS}, which are understood here")
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
    for name in ("resize", "crop"):
        size = own.get(name)
        if not _is_size(size) and not (isinstance(size, list) and len(size) == 2 and all(map(_is_size, size))):
            refuse(f"preprocessing.{name}", f"a number of pixels from 1 to {LARGEST_SIDE}, or [height, width]")
    if any(crop > resize for crop, resize in zip(sides(own["crop"]), sides(own["resize"]), strict=True)):
        raise ValueError(f"{source}: preprocessing crops {own['crop']} pixels out of {own['resize']}")
    if _filter_name(own.get("interpolation")) not in Image.Resampling.__members__:
        refuse("preprocessing.interpolation", "one of " + ", ".join(m.name.lower() for m in Image.Resampling))
    for name, least in (("mean", -math.inf), ("std", 0.0)):
        numbers = own.get(name)
        if not isinstance(numbers, list) or not all(_is_finite(n) and n > least for n in numbers):
            refuse(f"preprocessing.{name}", "a list of numbers" + (" above 0" if name == "std" else ""))
        elif isinstance(shape, list) and len(numbers) != shape[0]:
            refuse(f"preprocessing.{name}", f"a number for each of the {shape[0]} channels of input_shape")


def _filter_name(interpolation: Any) -> str:
    """Pillow's name for an interpolation; its "nearest" is what torchvision calls exact."""
    return str(interpolation).upper().removesuffix("-EXACT")


def _field(content: Any, path: str) -> Any:
    """The field at a dotted path; None where it is missing."""
    for key in path.split("."):
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST_SIDE


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e6


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a weights file. A pickle that holds anything but plain values is refused, never executed."""
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


def unpacked_bytes(path: Path) -> int:
    """The bytes that a weights file unpacks to. Raises ValueError for an archive that torch.save does not write."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no weights file: torch.save writes a zip archive, and this is none")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{path} is a damaged archive: {error}") from None
    if packed := [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
        raise ValueError(f"{path} holds {packed[0]!r:.80} compressed, which torch.save never does")
    return sum(entry.file_size for entry in entries)


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


def _build(architecture: dict[str, Any], source: Path, stored: int) -> nn.Module:
    """The network that `architecture` describes, unfilled; `source` is the file that errors name.

    stored: the bytes of the weights file. Layers that claim far more are refused before they take memory.
    """
    code = _model_code()
    try:
        code.check_layers(architecture["layers"])
        most = EXPANSION[is_coded(architecture)] * stored + SPARE_BYTES
        if (declared := code.declared_bytes(architecture)) > most:
            raise ValueError(f"its layers have {declared:,} bytes of weights; the weights file holds {stored:,}")
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
        content = json.loads(
            path.read_text(encoding="utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. One that gives a key twice means one thing to one reader, and another to the next."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("an object in it has a key twice")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


# ---- The model in another runtime ----


class OnnxModel(nn.Module):
    """An ONNX file as a module: images [n, channels, h, w] -> logits [n, classes]. It has no gradients."""

    def __init__(self, run: Callable[[Any], Any]) -> None:
        """run: float32 images to logits, as NumPy arrays."""
        super().__init__()
        self.register_parameter("dtype_of_inputs", nn.Parameter(torch.zeros(()), requires_grad=False))
        self._run = run

    def forward(self, images: Tensor) -> Tensor:
        """The logits, on the device of `images`."""
        array = images.detach().to("cpu", torch.float32).contiguous().numpy()
        return torch.from_numpy(self._run(array)).to(images.device)


def _in_runtime(model: nn.Module, input_shape: list[int], file: Path, runtime: str) -> OnnxModel:
    """`file` in `runtime`, whose answers are those of `model`."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: write it with `slimkit export {file.parent} -o {file}`")
    open_file = _open_in_onnxruntime if runtime == "onnxruntime" else _open_in_openvino
    try:
        other = OnnxModel(open_file(file, torch.get_num_threads())).eval()
    except ImportError as error:
        raise ImportError(f"runtime {runtime!r} is not installed: pip install {runtime}") from error
    except Exception as error:  # each runtime has exceptions of its own
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file} can't be read by {runtime}: {reason}") from error
    images = torch.randn(CHECKED, *input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, given = model(images), other(images)
    apart = ((wanted - given).norm() / wanted.norm()).item() if wanted.shape == given.shape else math.inf
    if not apart <= MOST_APART:  # so that NaN fails too
        raise ValueError(f"{file} gives other answers than the model (logits {apart:.0%} apart): export it again")
    return other


def _open_in_onnxruntime(file: Path, threads: int) -> Callable[[Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _open_in_openvino(file: Path, threads: int) -> Callable[[Any], Any]:
    import openvino

    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(file), "CPU", settings)
    return lambda images: compiled([images])[0]


# ---- Images ----


def read_image(file: str | Path | IO[bytes], channels: int, name: str | None = None) -> Image.Image | Tensor:
    """`decode_array` for .npy files, else `decode_image`. Raises ValueError that names it (`name`, of a stream)."""
    if is_array_name(str(name or file)):
        return decode_array(file, channels, name)
    return decode_image(file, name, channels)


def decode_image(file: str | Path | IO[bytes], name: str | None = None, channels: int = 3) -> Image.Image:
    """Read an image of any kind in gray (1 channel), RGB (3) or RGBA (4), upright. Raises as `read_image`."""
    if channels not in MODES:
        raise ValueError(f"{name or file} has at most 4 channels; the network takes {channels}, as .npy files can hold")
    try:
        with Image.open(file) as image:
            is_deep = image.format == "PNG" and bool(image.tile) and image.tile[0][3] in DEEP_COLOUR
            return with_channels(_colour_of_16_bits(image, file) if is_deep else image, channels)
    except UnidentifiedImageError:  # whose message names the stream
        raise ValueError(f"{name or file} is not a readable image: its content is of no known format") from None
    except Exception as error:  # Pillow's parsers raise nearly anything for a damaged file
        raise ValueError(f"{name or file} is not a readable image: {error}") from error


def decode_array(file: str | Path | IO[bytes], channels: int, name: str | None = None) -> Tensor:
    """Read a .npy file as float32 [channels, height, width], 0 … 255. Raises as `read_image`.

    It holds [height, width, channels] or [channels, height, width]: integers of 8 or 16 bits from 0 to their largest
    value, or floating-point numbers, which are taken as from 0 to 1.
    """
    import numpy as np  # for such files alone

    try:
        values = np.load(file, allow_pickle=False)
    except Exception as error:  # NumPy raises nearly anything for a damaged file
        raise ValueError(f"{name or file} is not a readable array: {error}") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uf" or values.size == 0:
        raise ValueError(f"{name or file} holds no array of unsigned integers or floating-point numbers")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{name or file} has values that are not finite")
    if values.dtype.kind == "f" and not BETWEEN_0_AND_1[0] <= values.min() <= values.max() <= BETWEEN_0_AND_1[1]:
        raise ValueError(
            f"{name or file} has floating-point numbers from {values.min():.3g} to {values.max():.3g}, where 0 to 1 is "
            "wanted: divide them by what is white, or save them as uint8 or uint16"
        )
    if values.ndim == 2:
        values = values[None]
    elif values.ndim == 3 and values.shape[2] == channels:
        values = values.transpose(2, 0, 1)
    if values.ndim != 3 or values.shape[0] != channels or max(values.shape[1:]) > LARGEST_SIDE:
        raise ValueError(f"{name or file} has the shape {list(values.shape)}, not [height, width, {channels}]")
    white = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
    return torch.from_numpy(values.astype(np.float32) * np.float32(255 / white))


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Turn upright and convert to 8-bit gray, RGB or RGBA, for 1, 3 or 4 channels.

    Gray of 16 bits is scaled (Pillow would clip it); transparency is dropped where there is no channel for it.
    """
    image, mode = _upright(image), MODES[channels]
    if image.mode.startswith("I"):
        return _gray_of_16_bits(image).convert(mode)
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return (image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")).convert(mode)


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says that it is to be seen."""
    image.load()
    try:
        return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises nearly anything for damaged EXIF data; the image itself is whole
        return image


def _gray_of_16_bits(image: Image.Image) -> Image.Image:
    """8-bit gray, from the 8, 12 or 16 bits that the brightest value needs: cameras store 12 bits in files of 16."""
    image = image.convert("I")
    darkest, brightest = image.getextrema()
    if darkest < 0 or brightest > 65535:  # type: ignore[operator]  # one band, so two numbers
        raise ValueError("its values are not of 8 to 16 bits")
    white = next(2**bits - 1 for bits in (8, 12, 16) if brightest < 2**bits)  # type: ignore[operator]  # as above
    return image.point(lambda value: value * (255 / white) + 0.5).convert("L")


def _colour_of_16_bits(image: ImageFile.ImageFile, file: str | Path | IO[bytes]) -> Image.Image:
    """8 bits a channel, chosen as for gray. Pillow keeps the high bytes alone: 8 or 12 bits look black."""
    raw_mode = image.tile[0][3]
    brightest = max(extrema[1] for extrema in image.convert("RGB").getextrema())  # type: ignore[index]  # three bands
    if brightest > 15:
        return image
    if raw_mode not in LOW_BYTES:
        return image.point(lambda value: 17 * value)
    with Image.open(file) as low:
        low.tile = [(*low.tile[0][:3], LOW_BYTES[raw_mode])]  # type: ignore[list-item]  # Pillow 10 has plain tuples
        low.load()
    if brightest == 0:
        return low
    return ImageChops.add(image.point(lambda value: 16 * value), low.point(lambda value: value // 16))


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size as the architecture gives it: a square's side, or both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def preprocess(image: Image.Image | Tensor, preprocessing: dict[str, Any]) -> Tensor:
    """Resize until the image covers `resize`, cut the central `crop`: [channels, height, width], 0 … 255."""
    return centre_crop(resize_to_cover(image, preprocessing), preprocessing["crop"])


def resize_to_cover(image: Image.Image | Tensor, preprocessing: dict[str, Any]) -> Tensor:
    """Resize an image until it just covers `resize` (of a square: its shorter side) and cut the centre.

    Gives [channels, *resize]: uint8 of an image, float32 of an array [channels, height, width].
    """
    h, w = image.shape[1:] if isinstance(image, Tensor) else image.size[::-1]
    high, wide = sides(preprocessing["resize"])
    width, height = (high * w // h, high) if w * high >= h * wide else (wide, wide * h // w)  # of all, resized
    # `centre_crop` cuts the second term off; the difference is torchvision's
    top, left = (
        round((whole - crop) / 2) - round((side - crop) / 2)
        for whole, side, crop in zip((height, width), (high, wide), sides(preprocessing["crop"]), strict=True)
    )
    # only the centre is computed: the box is where it lies in the image
    box = (left * w / width, top * h / height, (left + wide) * w / width, (top + high) * h / height)
    resample = Image.Resampling[_filter_name(preprocessing["interpolation"])]
    if isinstance(image, Tensor):
        bands = [_to_pillow(band).resize((wide, high), resample, box) for band in image]
        return torch.stack([_of_pillow(band, torch.float32)[0] for band in bands])
    return _of_pillow(image.resize((wide, high), resample, box), torch.uint8)


def _to_pillow(band: Tensor) -> Image.Image:
    """A gray image of floating-point numbers from [height, width]."""
    return Image.frombytes("F", (band.shape[1], band.shape[0]), band.contiguous().numpy().tobytes())


def _of_pillow(image: Image.Image, dtype: torch.dtype) -> Tensor:
    """[bands, height, width] of an image."""
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=dtype)
    return values.view(image.height, image.width, -1).permute(2, 0, 1)


def centre_crop(images: Tensor, size: int | Sequence[int]) -> Tensor:
    """Cut the centre of `size` pixels, see `sides`: [..., h, w] -> [..., height, width]."""
    height, width = sides(size)
    top, left = (round((have - keep) / 2) for have, keep in zip(images.shape[-2:], (height, width), strict=True))
    return images[..., top : top + height, left : left + width]


def normalize(images: Tensor, preprocessing: dict[str, Any]) -> Tensor:
    """Values 0 … 255 -> 0 … 1, less the mean, divided by the standard deviation: float32 [n, channels, h, w]."""
    mean, std = (torch.tensor(preprocessing[key], device=images.device).view(-1, 1, 1) for key in ("mean", "std"))
    return images.float().div(255).sub_(mean).div_(std)


# ---- Data sets in files: a folder per class, below train/, val/ and test/ or below none of them ----


class ClassFolders(NamedTuple):
    """The images of a folder or .zip by split and class, and what was left out."""

    splits: dict[str, dict[str, list[str]]]  # "train", "val", "test" or "all" -> class -> names of its image files
    folders: dict[str, str]  # where each split lies: "train/", or "" for the root itself
    remarks: list[str]  # one sentence each


def walk(root: Path) -> tuple[list[str], list[str]]:
    """The names of all files below `root`, with slashes, sorted, those of folders with one at the end; and remarks.

    Links are followed, but each real folder is visited once, under its own name where it has one below `root`: a link
    that leads back, or to what is read anyway, is left out. Hidden files are, too.
    """
    real = Path(os.path.realpath(root))
    seen = {_identity(folder) for folder in (real, *real.parents)}
    names, links, remarks = _walk_real(root, "", seen)
    while links:
        link = links.pop(0)
        if _identity(root / link) in seen:
            remarks.append(f"{root / link} was left out: it is a link to a folder that is read already, or leads back.")
            continue
        seen.add(_identity(root / link))
        found = _walk_real(root, f"{link}/", seen)
        names += [f"{link}/", *found[0]]
        links += found[1]
        remarks += found[2]
    return visible(names), remarks


def _walk_real(root: Path, start: str, seen: set[tuple[int, int]]) -> tuple[list[str], list[str], list[str]]:
    """Files and folders below root/start without what links lead to; the links to folders; remarks."""
    names: list[str] = []
    links: list[str] = []
    broken: list[str] = []
    prefixes = [start]
    while prefixes:
        prefix = prefixes.pop()
        for entry in sorted(os.scandir(root / prefix), key=lambda entry: entry.name):
            name = prefix + entry.name
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                if _identity(entry.path) not in seen:  # below a link, a folder can be met again
                    seen.add(_identity(entry.path))
                    names.append(f"{name}/")
                    prefixes.append(f"{name}/")
            elif entry.is_dir():
                links.append(name)
            elif entry.is_file():
                names.append(name)
            elif is_image_name(name):
                broken.append(f"{root / name} was left out: it is a link to nothing, or no file.")
    return names, links, broken


def _identity(folder: str | Path) -> tuple[int, int]:
    """What two paths to the same folder have in common."""
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def visible(names: Iterable[str]) -> list[str]:
    """Sorted, each once, without hidden files and what systems and file managers add."""
    return sorted(name for name in set(names) if name and not any(is_hidden(part) for part in name.split("/")))


def is_hidden(part: str) -> bool:
    """Whether a file or folder of this name is no part of a data set."""
    return part.startswith(".") or part.casefold() in NOT_DATA


def is_image_name(name: str) -> bool:
    """Whether a file of this name, which isn't hidden, counts as an image."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES or is_array_name(name)


def is_array_name(name: str) -> bool:
    """Whether a file of this name holds an image as an array."""
    return name.lower().endswith(ARRAY_SUFFIX)


def read_class_folders(names: list[str], path: Path) -> ClassFolders:
    """Find splits, classes and images among the `names` that `walk` gives; `path` is what errors and remarks name.

    All may lie in one folder more, as .zip files have it. Raises ValueError that says what is wrong.
    """
    root = _unwrapped(names, "", stop_at_splits=True)
    folders, remarks = _find_splits(names, root, path)
    splits = {}
    for split, folder in folders.items():
        splits[split], left_out = _read_classes(names, folder, path)
        remarks += left_out
    return ClassFolders(splits, folders, remarks)


def split_of(folder: str) -> str | None:
    """ "train", "val" or "test" where a folder's name usually means that: Training, valid, test_set, ..."""
    word = re.sub("[^a-z]", "", folder.casefold())
    word = re.sub("(?<=.)(dataset|data|set|split|images|imgs)$", "", word)
    return next((split for split, words in SPLIT_WORDS.items() if word in words), None)


def _find_splits(names: list[str], root: str, path: Path) -> tuple[dict[str, str], list[str]]:
    """The folder of each split, or of "all"; and a remark on each folder that is not used."""
    found: dict[str, str] = {}
    others = []
    for folder in sorted(subfolders(names, root)):
        split = split_of(folder)
        if split is None or not subfolders(names, f"{root}{folder}/"):
            others.append(folder)
        elif split in found:
            first = PurePosixPath(found[split]).name
            raise ValueError(f"{path / root} has two folders for the {split} split: {first} and {folder}")
        else:
            found[split] = f"{root}{folder}/"
    if not found:
        return {"all": root}, []
    if len(found) == 1:
        _refuse_classes_beside(names, root, next(iter(found.values())), others, path)
    remarks = [f"{path / root / folder} is not used: {_why_unused(folder)}." for folder in others]
    return {split: _unwrapped(names, folder) for split, folder in found.items()}, remarks


def _refuse_classes_beside(names: list[str], root: str, split: str, others: list[str], path: Path) -> None:
    """Raise ValueError where folders beside the only split hold images: a class of trains may be called train."""
    with_images = {str(PurePosixPath(name).parent) for name in names if is_image_name(name)}
    for folder in others:
        if root + folder in with_images:
            raise ValueError(
                f"{path / root} has images in {folder}/, as a class has, beside {PurePosixPath(split).name}/, which "
                "holds folders as a split does"
            )


def _why_unused(folder: str) -> str:
    return "it is no split" if split_of(folder) is None else "it holds no class folders"


def _unwrapped(names: list[str], folder: str, stop_at_splits: bool = False) -> str:
    """`folder`, or the only folder in it where that holds folders."""
    inner = subfolders(names, folder)
    while len(inner) == 1:
        (name,) = inner
        inner = subfolders(names, f"{folder}{name}/")
        if not inner or (stop_at_splits and split_of(name)):
            break
        folder = f"{folder}{name}/"
    return folder


def subfolders(names: list[str], folder: str) -> set[str]:
    """The names of the folders directly in `folder`."""
    below = (name[len(folder) :] for name in names if name.startswith(folder))
    return {name.split("/", 1)[0] for name in below if "/" in name}


def _read_classes(names: list[str], folder: str, path: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The image files of each class folder in `folder`, and remarks. Raises ValueError where one holds none."""
    classes: dict[str, list[str]] = {normalized(name): [] for name in sorted(subfolders(names, folder))}
    left_out: Counter[str] = Counter()
    for name in names:
        if not name.startswith(folder) or name.endswith("/"):
            continue
        class_name, slash, _ = name[len(folder) :].partition("/")
        if not is_image_name(name):
            left_out[f"with the suffix {PurePosixPath(name).suffix!r}"] += 1
        elif not slash:
            left_out["outside of the class folders"] += 1
        else:
            classes[normalized(class_name)].append(name)
    if not classes:
        raise ValueError(f"{path / folder} has no class folders")
    for class_name, files in classes.items():
        if not files:
            raise ValueError(f"{path / folder / class_name} holds no images")
    _refuse_splits(names, folder, path)
    remarks = [f"{path / folder}: left out {count} files {kind}." for kind, count in left_out.most_common()]
    return dict(sorted(classes.items())), remarks


def _refuse_splits(names: list[str], folder: str, path: Path) -> None:
    """Raise ValueError where classes hold the same folders of images: they are splits then, or hold splits."""
    paths = (name[len(folder) :].split("/") for name in names if name.startswith(folder) and is_image_name(name))
    inner = {(parts[0], parts[1]) for parts in paths if len(parts) > 2}
    owners = Counter(name for _, name in inner)
    shared = Counter(owner for owner, name in inner if owners[name] > 1)
    alike = sorted(owner for owner, count in shared.items() if count > 1)  # one alone, such as images/, is harmless
    if len(alike) > 1:
        found = sorted(name for owner, name in inner if owner == alike[0] and owners[name] > 1)
        both = " and ".join(alike[:2])
        raise ValueError(f"{path / folder}: {both} hold the same folders ({', '.join(found[:5])}), as no classes do")


def normalized(class_name: str) -> str:
    """The composed form of a name, whichever form (of an accented letter, say) a file system gave."""
    return unicodedata.normalize("NFC", class_name)


def class_places(class_names: Sequence[str]) -> dict[str, int]:
    """The index of each class, by the `normalized` name."""
    return {normalized(name): place for place, name in enumerate(class_names)}


def sketch(names: list[str], folder: str, read: Callable[[str], bytes]) -> str:
    """What the images `names` in `folder` are known by elsewhere, a few more or less: the hashes of 32 of them.

    `read` gives the content of a file. Names count from `folder` on, so it may be moved, renamed or packed.
    """
    keys = {hashlib.sha256(normalized(name[len(folder) :]).encode()).hexdigest(): name for name in names}
    chosen = sorted(keys.items())[:SKETCHED]
    return " ".join(hashlib.sha256(key.encode() + read(name)).hexdigest()[:12] for key, name in chosen)


def same_images(first: str, second: str) -> bool:
    """Whether two sketches are of sets that share most of their images."""
    ours, theirs = set(first.split()), set(second.split())
    return 2 * len(ours & theirs) > max(len(ours), len(theirs))


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
    p90 = statistics.quantiles(times, n=10, method="inclusive")[-1]
    return {"latency": statistics.fmean(times), "latency_median": statistics.median(times), "latency_p90": p90}


def measure_accuracy(model: nn.Module, architecture: dict[str, Any], data_dir: Path) -> dict[str, Any]:
    """Top-1 accuracy in % over every image of the class folders, matched to the model's classes by name."""
    files, remarks = list_images(data_dir, architecture)
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    preprocessing = architecture["preprocessing"]
    channels = len(preprocessing["mean"])
    correct = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool, torch.inference_mode():
        for start in range(0, len(files), BATCH_SIZE):
            batch = files[start : start + BATCH_SIZE]
            pixels = pool.map(lambda file: preprocess(read_image(file[0], channels), preprocessing), batch)
            answers = model(normalize(torch.stack(list(pixels)), preprocessing)).argmax(1)
            correct += int((answers == torch.tensor([label for _, label in batch])).sum())
    return {"accuracy": 100 * correct / len(files), "correct": correct, "images": len(files)}


def list_images(data_dir: Path, architecture: dict[str, Any]) -> tuple[list[tuple[Path, int]], list[str]]:
    """Every image that is scored, with its class in the model; and remarks on what was left out.

    Of test/, val/ and train/ in `data_dir` the first that is there is scored, else `data_dir` itself.
    """
    names, remarks = walk(data_dir)
    found = read_class_folders(names, data_dir)
    split = next(split for split in ("test", "val", "all", "train") if split in found.splits)
    folder, classes = found.folders[split], found.splits[split]
    places = class_places(architecture["class_names"])
    for name in classes:
        if name not in places:
            raise ValueError(f"{data_dir / folder / name}: the model has no class of this name")
    files = [(image, places[name]) for name, images in classes.items() for image in images]
    marks = sketch([image for image, _ in files], folder, lambda name: (data_dir / name).read_bytes())
    if any(same_images(marks, seen["sketch"]) for seen in architecture.get("data_seen", ())):
        remarks.append(f"the model was made with images of {data_dir / folder}, so its accuracy on them reads high.")
    return [(data_dir / image, label) for image, label in files], [*remarks, *found.remarks]


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
