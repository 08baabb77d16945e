"""`slimkit inspect`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from slimkit.cli.command import command
from slimkit.cli.output import Output, table
from slimkit.cli.stage import figure_rows
from slimkit.core.options import ScoreOptions

if TYPE_CHECKING:
    from rich.table import Table

    from slimkit.core.architecture import Architecture, Layer
    from slimkit.core.inspection import Inspection

COLUMNS = ("layer", "type, kernel", "width", "MACs", "bytes", "dtype")


@dataclass(frozen=True)
class InspectOptions:
    """What to look at."""

    model: str = ScoreOptions.model


@command(InspectOptions, example="slimkit inspect runs/prune --json", model=typer.Argument(help="Model folder."))
def inspect(options: InspectOptions, output: Output) -> None:
    """Verify a model folder, and show its architecture as a table of its layers."""
    from slimkit.core.inspection import inspect_folder

    found = inspect_folder(Path(options.model))
    data = found.architecture.to_dict() | {"figures": found.metadata.get("figures", {}), "verified": found.checked}
    output.result(data, human=[summary_table(found), "", layers_table(found.architecture)])


def summary_table(found: "Inspection") -> "Table":
    """What the model is as a whole, and what was verified."""
    from slimkit.core.readme import describe_resize

    a = found.architecture
    rows = [
        ("model", f"{a.model_type}, from {a.base.get('name', 'nothing')}"),
        ("input", f"{_by(a.input_shape)}: {describe_resize(a.preprocessing)}, the centre cut out"),
        ("classes", f"{a.num_classes}"),
        (
            "pruning rate",
            f"{a.pruning_rate.asked:.3g} asked for, {a.pruning_rate.reached:.3g} reached, of the channels",
        ),
        ("steps", ", ".join(a.compression_steps) or "none"),
        *figure_rows({"parameters": a.parameters, "macs": a.macs} | found.metadata.get("figures", {})),
        ("verified", ", ".join(found.checked)),
    ]
    return table(str(found.folder), ("", ""), rows)


def layers_table(architecture: "Architecture") -> "Table":
    """A row for each layer, widths as before→after pruning, and the sums. Made to fit 80 columns for a ResNet18."""
    layers = architecture.layers
    rows = [(each.name, _type(each), _width(each), each.macs, each.bytes, _dtype(each)) for each in layers]
    if others := architecture.macs - sum(layer.macs for layer in layers):
        rows.append(("(none)", "products of no layer", "", others, 0, "float32"))
    total = ("total", "", "", architecture.macs, sum(layer.bytes for layer in layers), "")
    return table(None, COLUMNS, [*rows, total], total=True)


def _type(layer: "Layer") -> str:
    kind = layer.type.removeprefix("Quantized")  # dtype says that
    stride = f"/{max(layer.stride)}" if layer.stride and max(layer.stride) > 1 else ""
    return f"{kind} {_by(layer.kernel_size)}{stride}" if layer.kernel_size else kind


def _width(layer: "Layer") -> str:
    if layer.width_before is None or layer.width_before == layer.out_channels:
        return str(layer.out_channels or "")
    return f"{layer.width_before}→{layer.out_channels}"


def _dtype(layer: "Layer") -> str:
    """Of the weights, or of the activations where there are none: int8, uint8, float32."""
    how = layer.quantization
    if how is None:
        return "float32"
    return f"int{how['weight_bits']}" if "weight_bits" in how else str(how.get("activation", "")).partition(" ")[0]


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
