"""From what was found in a folder to the page: what is told, in which order, and what can't be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import slimkit
from slimkit.core.architecture import Architecture, Layer
from slimkit.core.files import write_atomically
from slimkit.core.htmlreport.collect import Found, Stage, collect
from slimkit.core.htmlreport.figures import Figure, figures_of
from slimkit.core.measure.answers import Difference
from slimkit.core.readme import describe_resize

MB = 2**20
WORST_CLASSES = 10


@dataclass(frozen=True)
class Card:
    """A figure that stands out."""

    name: str
    value: str
    before: str = ""
    gain: str = ""


def write_report(root: Path, output: Path) -> Path:
    """Write the page of what lies in `root` to `output`. Raises FolderError where no model folder lies there."""
    write_atomically(output, render(collect(root)))
    return output


def render(found: Found) -> str:
    """The page: HTML with its styles and charts inside, and no scripts."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(resources.files(__package__).joinpath("page.html.j2").read_text("utf-8"))
    figures = [Figure(f.title, Markup(f.svg), f.caption) for f in figures_of(found)]
    page: str = template.render(figures=figures, **_context(found))
    return page


def _context(found: Found) -> dict[str, Any]:
    result, architecture = found.result, found.result.architecture
    channels, height, width = architecture.input_shape
    return {
        "title": f"{architecture.model_type}, {architecture.num_classes} classes",
        "subtitle": f"{architecture.base.get('name', 'a network')}, made smaller and faster by slimkit",
        "cards": _cards(found),
        "verdicts": list(_verdicts(found)),
        "stages": _stage_table(found),
        "layers": [_layer_row(layer) for layer in architecture.layers if layer.bytes or layer.macs],
        "classes": sorted(found.per_class, key=lambda row: float(row["accuracy_%"]))[:WORST_CLASSES],
        "steps": architecture.compression_steps,
        "recipe": found.recipe,
        "shape": f"{channels}, {height}, {width}",
        "classes_count": architecture.num_classes,
        "folder": result.folder.name,
        "preprocessing": _preprocessing(architecture),
        "machine": _machine(found),
        "missing": list(_missing(found)),
        "version": slimkit.__version__,
    }


def _cards(found: Found) -> list[Card]:
    results = found.results
    if results is None:
        return [
            Card("weights file", f"{found.result.size / MB:.2f} MB", _before(found, lambda s: f"{s.size / MB:.2f} MB")),
            Card(
                "multiply-adds",
                f"{found.result.architecture.macs / 1e6:,.1f} M",
                _before(found, lambda s: f"{s.architecture.macs / 1e6:,.1f} M"),
            ),
        ]
    baseline = results["baseline"]
    low, high = results.get("accuracy_confidence") or (None, None)
    known = f" ({low:.1f} to {high:.1f})" if low is not None else ""
    return [
        Card(
            "size", f"{results['model_size']:.3f} MB", f"of {baseline['model_size']:.2f}", _times(results["size_score"])
        ),
        Card(
            "latency", f"{results['latency']:.2f} ms", f"of {baseline['latency']:.2f}", _times(results["latency_score"])
        ),
        Card("accuracy", f"{results['accuracy']:.2f} %", f"of {baseline['accuracy']:.2f}{known}"),
        Card("total score", f"{results['total_score']:.2f}", "degenerate" if results.get("degenerate") else ""),
    ]


def _before(found: Found, figure: Any) -> str:
    return f"of {figure(found.stages[0])}" if len(found.stages) > 1 else ""


def _times(score: float) -> str:
    return f"{score:.1f} times"


def _verdicts(found: Found) -> Iterator[str]:
    results = found.results
    if results is None:
        return
    yield f"The accuracy stands on {results['images']:,} test images of {results['data']}."
    if results.get("difference"):
        difference = Difference(**results["difference"])
        yield (
            f"Of these, the baseline alone has {difference.lost:,} right, and the model alone {difference.won:,}: "
            f"{difference.verdict} (McNemar, p = {difference.p_value:.2g})."
        )
    yield "Where the baseline's figures are from: " + _listed(results["baseline"]["sources"]) + "."


def _listed(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} {value}" for name, value in values.items())


def _stage_table(found: Found) -> dict[str, Any]:
    rows = [_stage_row(stage) for stage in found.stages]
    notes = {str(stage.figures.get("accuracy_split")) for stage in found.stages if "accuracy" in stage.figures}
    return {
        "head": ["folder", "MB", "parameters", "MACs", "accuracy, held out", "last step"],
        "rows": rows,
        "note": f"Accuracies in this table are of images {' and '.join(sorted(notes))}." if notes else "",
    }


def _stage_row(stage: Stage) -> list[str]:
    architecture, figures = stage.architecture, stage.figures
    accuracy = (
        f"{figures['accuracy']:.2f} % of {figures['accuracy_images']:,}" if "accuracy" in figures else "not measured"
    )
    steps = architecture.compression_steps
    return [
        stage.folder.name,
        f"{stage.size / MB:.3f}",
        f"{architecture.parameters:,}",
        f"{architecture.macs:,}",
        accuracy,
        steps[-1] if steps else "trained",
    ]


def _layer_row(layer: Layer) -> list[str]:
    kernel = " " + "x".join(map(str, layer.kernel_size)) if layer.kernel_size else ""
    width = str(layer.out_channels or "")
    if layer.width_before not in (None, layer.out_channels):
        width = f"{layer.width_before} → {layer.out_channels}"
    bits = (layer.quantization or {}).get("weight_bits")
    weights = f"{bits} bits" if bits else "float32" if layer.bytes > 8 else ""
    return [
        layer.name,
        layer.type.removeprefix("Quantized") + kernel,
        width,
        f"{layer.macs:,}",
        f"{layer.bytes:,}",
        weights,
    ]


def _preprocessing(architecture: Architecture) -> str:
    own = architecture.preprocessing
    _, height, width = architecture.input_shape
    return (
        f"An image: {describe_resize(own)} ({own.interpolation}), the centre of {height}x{width} cut out, values from "
        f"0 to 1, less {list(own.mean)}, divided by {list(own.std)}."
    )


def _machine(found: Found) -> list[tuple[str, str]]:
    environment = (found.results or found.benchmark or {}).get("environment")
    if not isinstance(environment, dict):
        return []
    cpu, versions = environment.get("cpu", {}), environment.get("versions", {})
    return [
        ("CPU", str(cpu.get("model"))),
        ("instruction sets", ", ".join(cpu.get("instruction_sets", ()))),
        ("cores, threads", f"{cpu.get('usable_cores')}, {environment.get('torch_threads')}"),
        ("system", str(environment.get("os"))),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]


def _missing(found: Found) -> Iterator[str]:
    if found.results is None:
        yield "Size, latency and accuracy beside a baseline: run slimkit score."
    if not found.per_class:
        yield "The accuracy of each class: run slimkit score --details FOLDER."
    if found.layer_times is None:
        yield f"Where the milliseconds are: run slimkit benchmark {found.result.folder.name} --layer-times -o cpu.json."
    if found.benchmark is None:
        yield "How long it takes beside others, with intervals: run slimkit benchmark."
    if found.sensitivity is None:
        yield "What each group's cut costs: run slimkit prune --sensitivity."
