"""Activation ranges for the static scheme, from the float network's activations on a few training images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx

from slimkit.core.errors import ModelError
from slimkit.core.progress import Progress
from slimkit.core.quantization.weights.per_channel import SMALLEST_SCALE

Method = Literal["minmax", "percentile", "mse"]
BINS = 2048
MOST_COUNTED = 2**22  # values of a tensor of a batch that are counted: histc takes longer than the network does
KEPT = 0.9999  # the share of values inside the range of "percentile"
SHRINKS = torch.linspace(1.0, 0.3, 71)  # the parts of the whole range that "mse" tries

Range = tuple[float, float]


def observe_ranges(
    traced: fx.GraphModule, nodes: Sequence[fx.Node], batches: Sequence[Tensor], method: Method, progress: Progress
) -> dict[fx.Node, Range]:
    """The range (low <= 0 <= high) of real values to cover with 256 codes, for each of `nodes`.

    batches: normalized float32 images [n, 3, h, w] each; they pass the network twice, for extremes and for histograms.
    method: "minmax" covers all that was seen; "percentile" all but the outermost 0.01 %; "mse" takes the range that
        minimizes the mean squared error of rounding and clipping, the best of 71 (Nagel et al. 2021, arXiv:2106.08295).
    Raises ModelError where an activation is not finite.
    """
    lows, highs = _extremes(traced, nodes, batches, progress)
    for node in nodes:
        if not torch.tensor([lows[node], highs[node]]).isfinite().all():
            raise ModelError(
                f"The output of {node.name!r} is not finite on the calibration images.",
                "Train the float model again: it gives no usable answers.",
            )
    if method == "minmax":
        return {node: (lows[node], highs[node]) for node in nodes}
    counts = _histograms(traced, lows, highs, batches, progress)
    choose = _percentile if method == "percentile" else _least_error
    return {node: choose(counts[node], lows[node], highs[node]) for node in nodes}


def observe_means(
    traced: fx.GraphModule, nodes: Collection[fx.Node], batches: Sequence[Tensor], progress: Progress
) -> dict[fx.Node, Tensor]:
    """The mean of each channel, float64 [channels], of the outputs [n, channels, ...] of `nodes`."""
    means: dict[fx.Node, Tensor] = {}

    def visit(node: fx.Node, value: Tensor) -> None:
        if node in nodes:
            total = value.double().flatten(2).mean(2).sum(0) if value.ndim > 2 else value.double().sum(0)
            means[node] = means.get(node, torch.zeros(())) + total

    _run(traced, batches, visit, progress, "calibrate: means")
    count = sum(len(batch) for batch in batches)
    return {node: total / count for node, total in means.items()}


def observe_channel_maxima(
    traced: fx.GraphModule, nodes: Collection[fx.Node], batches: Sequence[Tensor], progress: Progress
) -> dict[fx.Node, Tensor]:
    """The largest absolute value of each channel, [channels], of the outputs [n, channels, h, w] of `nodes`."""
    maxima: dict[fx.Node, Tensor] = {}

    def visit(node: fx.Node, value: Tensor) -> None:
        if node in nodes:
            largest = value.abs().amax((0, 2, 3))
            maxima[node] = largest.maximum(maxima[node]) if node in maxima else largest

    _run(traced, batches, visit, progress, "equalize")
    return maxima


def scale_and_zero_point(low: float, high: float) -> tuple[float, int]:
    """The uint8 codes that span [low, high]: value = scale * (code - zero_point); 0 is always met exactly."""
    scale = (high - low) / 255
    if scale < SMALLEST_SCALE:
        return 1.0, 0
    return scale, round(-low / scale)


class _Recorder(fx.Interpreter):
    """Runs a traced network and shows the values of some nodes, at the moment that each is made."""

    def __init__(self, traced: fx.GraphModule, visit: Callable[[fx.Node, Tensor], None]) -> None:
        super().__init__(traced)
        self._visit = visit

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self._visit(n, result)
        return result


def _run(
    traced: fx.GraphModule,
    batches: Sequence[Tensor],
    visit: Callable[[fx.Node, Tensor], None],
    progress: Progress,
    title: str,
) -> None:
    recorder = _Recorder(traced, visit)
    with torch.no_grad(), progress(title, sum(len(batch) for batch in batches)) as advance:
        for batch in batches:
            recorder.run(batch.contiguous(memory_format=torch.channels_last))
            advance(len(batch))


def _extremes(
    traced: fx.GraphModule, nodes: Sequence[fx.Node], batches: Sequence[Tensor], progress: Progress
) -> tuple[dict[fx.Node, float], dict[fx.Node, float]]:
    lows, highs = dict.fromkeys(nodes, 0.0), dict.fromkeys(nodes, 0.0)

    def visit(node: fx.Node, value: Tensor) -> None:
        if node in lows:
            low, high = torch.aminmax(value)
            lows[node] = float(torch.minimum(low, torch.tensor(lows[node])))  # unlike min(), passes NaN on
            highs[node] = float(torch.maximum(high, torch.tensor(highs[node])))

    _run(traced, batches, visit, progress, "calibrate: extremes")
    return lows, highs


def _histograms(
    traced: fx.GraphModule,
    lows: dict[fx.Node, float],
    highs: dict[fx.Node, float],
    batches: Sequence[Tensor],
    progress: Progress,
) -> dict[fx.Node, Tensor]:
    counts = {node: torch.zeros(BINS, dtype=torch.double) for node in lows}

    def visit(node: fx.Node, value: Tensor) -> None:
        if node in counts and highs[node] > lows[node]:
            counts[node] += torch.histc(_sample(value).float(), BINS, lows[node], highs[node]).double()

    _run(traced, batches, visit, progress, "calibrate: histograms")
    return counts


def _sample(values: Tensor) -> Tensor:
    """Up to MOST_COUNTED of the values, evenly from all: [n]. An odd step meets all channels, whose number is even."""
    in_memory = values.permute(0, 2, 3, 1) if values.dim() == 4 else values
    return in_memory.reshape(-1)[:: (values.numel() - 1) // MOST_COUNTED | 1]


def _percentile(counts: Tensor, low: float, high: float) -> Range:
    shares = counts.cumsum(0) / counts.sum().clamp(min=1)
    cut = (1 - KEPT) / 2 if low < 0 else 1 - KEPT
    width = (high - low) / BINS
    top = low + width * (int((shares < 1 - cut).sum()) + 1)
    bottom = low + width * int((shares < cut).sum()) if low < 0 else low
    return min(bottom, 0.0), max(top, 0.0)


def _least_error(counts: Tensor, low: float, high: float) -> Range:
    values = low + (high - low) / BINS * (torch.arange(BINS, dtype=torch.double) + 0.5)
    best, least = (low, high), float("inf")
    for shrink in SHRINKS.tolist():
        scale, zero_point = scale_and_zero_point(low * shrink, high * shrink)
        codes = ((values / scale).round() + zero_point).clamp(0, 255)
        error = float((counts * (scale * (codes - zero_point) - values).square()).sum())
        if error < least:
            best, least = (low * shrink, high * shrink), error
    return best
