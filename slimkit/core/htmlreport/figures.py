"""The charts of the page, each from the numbers that a command left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from slimkit.core.architecture import Layer
from slimkit.core.htmlreport.charts import Bar, Interval, Line, bars, curves, heat_map, histograms, intervals
from slimkit.core.htmlreport.collect import Confusion, Found

MOST_BARS = 80  # layers in a chart
MOST_CLASSES = 200  # in the picture of what was taken for what
FLOAT_BITS = 32.0


@dataclass(frozen=True)
class Figure:
    """A chart with its title and what is to be known of it."""

    title: str
    svg: Any  # markup, not to be escaped
    caption: str


def figures_of(found: Found) -> Iterator[Figure]:
    """All that the folder has the numbers of, in the order of the page."""
    architecture = found.result.architecture
    layers = [layer for layer in architecture.layers if layer.bytes or layer.macs]
    if any(layer.width_before not in (None, layer.out_channels) for layer in layers):
        yield _widths(layers)
    yield _weights(layers, "Where the bytes are", "bytes")
    yield _weights(layers, "Where the multiply-adds are", "macs")
    if found.layer_times:
        yield _milliseconds(found.layer_times)
    yield _bits(layers)
    for detail in architecture.training_details:
        if len(detail.get("held_out_accuracy", ())) > 0:
            yield _training(detail)
    if found.benchmark and any(each["ratio"] for each in found.benchmark["candidates"]):
        yield _ratios(found.benchmark)
    if found.results and found.results.get("latency_samples"):
        yield _latencies(found.results)
    if found.sensitivity:
        yield _sensitivity(found.sensitivity)
    if found.confusion and len(found.confusion.class_names) <= MOST_CLASSES:
        yield _confusion(found.confusion)


def _widths(layers: list[Layer]) -> Figure:
    rows = [
        Bar(layer.name, layer.out_channels or 0, layer.width_before, f"{layer.width_before} → {layer.out_channels}")
        for layer in layers
        if layer.width_before
    ][:MOST_BARS]
    caption = "Output channels of each layer: pale before the cut, dark after it."
    return Figure("Widths", bars(rows, f"The widths of {len(rows)} layers before and after the cut"), caption)


def _weights(layers: list[Layer], title: str, field: str) -> Figure:
    total = sum(getattr(layer, field) for layer in layers) or 1
    rows = [
        Bar(layer.name, getattr(layer, field), note=f"{getattr(layer, field):,} ({getattr(layer, field) / total:.1%})")
        for layer in layers
        if getattr(layer, field)
    ]
    shown = rows[:MOST_BARS]
    more = f" The first {len(shown)} of {len(rows)} layers." if len(rows) > len(shown) else ""
    what = "multiply-adds for one image" if field == "macs" else "bytes in the weights file"
    return Figure(title, bars(shown, f"{title}: {len(shown)} layers"), f"Each layer's {what}; {total:,} in all.{more}")


def _milliseconds(times: dict[str, Any]) -> Figure:
    total = times["total_ms"]
    rows = [
        Bar(each["name"], each["ms"], note=f"{each['ms']:.3f} ms ({each['ms'] / total:.1%})")
        for each in times["layers"]
    ]
    caption = (
        f"Each layer alone on this CPU, {total:.2f} ms in all, without what lies between the layers: measured by "
        f"slimkit benchmark --layer-times, on {times['threads']} thread(s), batches of {times['batch_size']}."
    )
    title = "Where the milliseconds are"
    return Figure(title, bars(rows[:MOST_BARS], f"{title}: {min(len(rows), MOST_BARS)} layers"), caption)


def _bits(layers: list[Layer]) -> Figure:
    rows = [_stored_bits(layer) for layer in layers if layer.parameters and layer.bytes][:MOST_BARS]
    caption = (
        "What the file takes for each weight, scales and biases included: dark; float32, the pale bar behind, takes 32."
    )
    return Figure("Bits per weight", bars(rows, f"Bits per weight of {len(rows)} layers"), caption)


def _stored_bits(layer: Layer) -> Bar:
    stored = 8 * layer.bytes / layer.parameters
    codes = (layer.quantization or {}).get("weight_bits")
    return Bar(layer.name, stored, FLOAT_BITS, f"{stored:.2f} of {f'{codes}-bit codes' if codes else 'float32'}")


def _ratios(benchmark: dict[str, Any]) -> Figure:
    others = [each for each in benchmark["candidates"] if each["ratio"]]
    reference = _candidate(benchmark["candidates"][benchmark["reference"]])
    rows = [
        Interval(_candidate(each), **each["ratio"], note=f"{each['ratio']['value']:.3f}: {each['verdict']}")
        for each in others
    ]
    caption = (
        f"Its time in units of that of {reference}, with the 95 % interval; left of the line at 1 is faster. By "
        f"slimkit benchmark, {benchmark['starts']} starts of each process, batches of {benchmark['batch_size']}."
    )
    if benchmark["warnings"]:
        caption += " Beware: " + " ".join(benchmark["warnings"])
    return Figure("How long it takes beside others", intervals(rows, f"Ratios of time to {reference}"), caption)


def _candidate(each: dict[str, Any]) -> str:
    return f"{each['model']} ({each['backend']}, {each['threads']} thread{'s' * (each['threads'] > 1)})"


def _confusion(confusion: Confusion) -> Figure:
    caption = (
        "Of each class's test images (row), the share that was answered by each class (column): the stronger, the "
        "more. What lies off the diagonal is wrong."
    )
    return Figure("What was taken for what", heat_map(confusion.shares, confusion.class_names), caption)


def _training(detail: dict[str, Any]) -> Figure:
    accuracies = [float(value) for value in detail["held_out_accuracy"]]
    stage = str(detail.get("stage", "training"))
    caption = (
        f"Accuracy on held-out images after each of {len(accuracies)} epochs, in %: {detail.get('optimizer')}, peak "
        f"learning rate {detail.get('learning_rate')}, batches of {detail.get('batch_size')}, "
        f"{detail.get('train_images'):,} images of {detail.get('data')}."
    )
    charts = curves([Line("held-out accuracy", accuracies)], f"{stage}: accuracy by epoch", " %")
    if losses := [float(value) for value in detail.get("loss", ())]:
        charts += curves([Line("training loss", losses)], f"{stage}: loss by epoch", "")
        caption += " Below it the loss on the training images, averaged over each epoch."
    return Figure(f"Training: {stage}", charts, caption)


def _latencies(results: dict[str, Any]) -> Figure:
    lines = [Line("model", results["latency_samples"])]
    if samples := results["baseline"].get("latency_samples"):
        lines.append(Line("baseline", samples))
    caption = (
        f"How often each duration was measured, in {results['runs']} runs of one image on {results['threads']} "
        "thread(s), each network alone in its process. Each is drawn to its own height."
    )
    return Figure("Latency", histograms(lines, "How the measured latencies are distributed", "ms"), caption)


def _sensitivity(report: dict[str, Any]) -> Figure:
    worst: dict[str, dict[str, Any]] = {}
    for entry in report["entries"]:
        worst[", ".join(entry["layers"])] = entry  # of each group the highest rate comes last
    rows = [
        Bar(
            name,
            max(0.0, entry["accuracy_lost"]),
            note=f"{entry['accuracy_lost']:.2f} points at rate {entry['rate']:g}",
        )
        for name, entry in list(worst.items())[:MOST_BARS]
    ]
    caption = "Points of accuracy on held-out images that are lost when this group alone is cut."
    return Figure("Sensitivity", bars(rows, "What each group's cut costs"), caption)
