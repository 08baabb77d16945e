"""The README of a model folder, generated from the architecture and the measured figures."""

from typing import Any

from slimkit.core.architecture import Architecture, Layer, Preprocessing
from slimkit.core.sizes import show_size

PLAIN = "a state dict of plain tensors"  # how the weights file holds the weights
_TEMPLATE = """\
# {model_type}, {num_classes} classes

{summary}

## Files
| file | holds |
| --- | --- |
| `{weights}` | the weights: {held}, {size:.2f} MB (2^20 bytes) |
| `trained_pruned_architecture.json` | the architecture: every layer, input, classes, preprocessing, how it was made |
| `model_metadata.json`, `metadata.json` | format, sha256 of each file, measured figures (one file under two names) |
| `model.py` | builds the network from the architecture |
| `model_loader.py` | `load_model(path)`, and a command line that times and scores the folder |
| `requirements.txt` | what these two need |

## Usage
```python
from model_loader import load_model

model = load_model(".")  # an nn.Module in eval mode
logits = model(images)  # float32 [n, {channels}, {height}, {width}] -> float32 [n, {num_classes}]
```
```sh
pip install -r requirements.txt
python model_loader.py --submission_dir . --data_dir DATA --baseline_size 50 --baseline_latency 10 \\
    --baseline_accuracy 80 --output_file results.json
```
`DATA` holds a folder of images per class, named as in `class_names` of the architecture; of `test/`, `val/`
and `train/` (or the usual other names) in it the first that is there is scored, else all of it.

## Architecture
{architecture}

## Compression
{compression}

## Input
{image}; {resize} ({interpolation}), the centre of {height}x{width} pixels cut out, values
scaled to [0, 1], then normalized with mean {mean} and standard deviation {std}.

## Output
{num_classes} logits, in the order of `class_names`: {first_class} … {last_class}.

## Figures
{figures}
"""


def render_readme(architecture: Architecture, weights: str, weights_bytes: int, figures: dict[str, Any]) -> str:
    """The README of the model folder whose weights file is called `weights`."""
    channels, height, width = architecture.input_shape
    preprocessing = architecture.preprocessing
    return _TEMPLATE.format(
        model_type=architecture.model_type,
        num_classes=architecture.num_classes,
        summary=_summary(architecture),
        weights=weights,
        held="coded as one tensor of bytes, which `model.py` decodes" if architecture.is_coded else PLAIN,
        size=weights_bytes / 2**20,
        channels=channels,
        height=height,
        width=width,
        architecture=_architecture(architecture),
        compression=_compression(architecture),
        image={1: "A gray image", 3: "An RGB image", 4: "An RGBA image"}.get(
            channels, f"An array of {channels} channels"
        ),
        resize=describe_resize(preprocessing),
        interpolation=preprocessing.interpolation,
        mean=list(preprocessing.mean),
        std=list(preprocessing.std),
        first_class=architecture.class_names[0],
        last_class=architecture.class_names[-1],
        figures=_figures(figures),
    )


def describe_resize(preprocessing: Preprocessing) -> str:
    """How an image is resized before its centre is cut out, in words."""
    if isinstance(preprocessing.resize, int):
        return f"the shorter side resized to {preprocessing.resize} pixels"
    return f"resized until it covers {show_size(preprocessing.resize)} pixels (height and width)"


def _summary(architecture: Architecture) -> str:
    base = architecture.base.get("name", architecture.model_type)
    kind = "int8" if architecture.is_quantized else "float32"
    return f"An image classifier in {kind}, made from {base} by slimkit."


def _architecture(architecture: Architecture) -> str:
    rows = [_layer_row(layer) for layer in architecture.layers if layer.macs]
    head = "| layer | channels | width before | kernel | MACs | computed in |\n| --- | --- | --- | --- | --- | --- |"
    return "\n".join([f"{architecture.macs:,} multiply-adds an image.", "", head, *rows])


def _layer_row(layer: Layer) -> str:
    kernel = "x".join(map(str, layer.kernel_size)) if layer.kernel_size else "-"
    channels = f"{layer.in_channels} -> {layer.out_channels}"
    return (
        f"| {layer.name} | {channels} | {layer.width_before or layer.out_channels} | {kernel} | {layer.macs:,} "
        f"| {'int8' if layer.quantization else 'float32'} |"
    )


def _compression(architecture: Architecture) -> str:
    if not architecture.compression_steps:
        return "None: this is a float32 network as it was trained."
    return "\n".join(f"{i}. {step}" for i, step in enumerate(architecture.compression_steps, 1))


def _figures(figures: dict[str, Any]) -> str:
    if not figures:
        return "None were measured when this folder was written."
    return "\n".join(["| figure | value |", "| --- | --- |", *(f"| {k} | {_value(v)} |" for k, v in figures.items())])


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
