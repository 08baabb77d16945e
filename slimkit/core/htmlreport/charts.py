"""Charts as inline SVG, whose colours are those of the page. Each says in words what it shows."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, ROW, LABEL = 720, 20, 190  # of the whole, of a row of bars, of the names beside them
PLOT_HEIGHT, MARGIN = 220, 56
BINS = 40


@dataclass(frozen=True)
class Bar:
    """A row: what it is of, and one or two lengths."""

    label: str
    value: float
    before: float | None = None
    note: str = ""


def bars(rows: Sequence[Bar], title: str) -> str:
    """Horizontal bars; `before` is the pale one behind."""
    most = max((max(row.value, row.before or 0) for row in rows), default=0) or 1
    scale = (WIDTH - LABEL - 130) / most
    parts = []
    for index, row in enumerate(rows):
        y = index * ROW
        parts.append(f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{_short(row.label)}</text>')
        if row.before is not None:
            parts.append(f'<rect class="pale" x="{LABEL}" y="{y + 3}" width="{row.before * scale:.1f}" height="14"/>')
        parts.append(f'<rect class="bar" x="{LABEL}" y="{y + 3}" width="{row.value * scale:.1f}" height="14"/>')
        end = LABEL + max(row.value, row.before or 0) * scale + 6
        parts.append(f'<text class="note" x="{end:.1f}" y="{y + 14}">{html.escape(row.note)}</text>')
    return _svg("".join(parts), WIDTH, max(ROW, len(rows) * ROW), title)


@dataclass(frozen=True)
class Line:
    """A curve, by its points."""

    name: str
    values: Sequence[float]


def curves(lines: Sequence[Line], title: str, unit: str) -> str:
    """One value per epoch, the first at 1."""
    values = [value for line in lines for value in line.values if math.isfinite(value)]
    longest = max(len(line.values) for line in lines)
    low, high = min(values), max(values)
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)

    def place(index: int, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * (index / max(1, longest - 1))
        return f"{x:.1f},{_y(value, low, high):.1f}"

    parts = [_axis(low, high, unit), *(_tick(i + 1, i, longest) for i in sorted({0, longest // 2, longest - 1}))]
    for number, line in enumerate(lines):
        points = " ".join(place(i, value) for i, value in enumerate(line.values) if math.isfinite(value))
        parts.append(f'<polyline class="line line{number}" points="{points}"/>')
        parts.append(
            f'<text class="key{number}" x="{MARGIN + 8 + 150 * number}" y="14">{html.escape(line.name)}</text>'
        )
        if len(line.values) == 1:
            x, y = points.split(",")
            parts.append(f'<circle class="dot{number}" cx="{x}" cy="{y}" r="4"/>')
    return _svg("".join(parts), WIDTH, PLOT_HEIGHT + 30, title)


def histograms(samples: Sequence[Line], title: str, unit: str) -> str:
    """How often each duration was measured; the slowest hundredth is left out."""
    everything = np.concatenate([np.asarray(line.values, dtype=float) for line in samples])
    low, high = float(everything.min()), float(np.percentile(everything, 99))
    high = high if high > low else low + 1e-9
    edges = np.linspace(low, high, BINS + 1)
    width = (WIDTH - 2 * MARGIN) / BINS
    parts = []
    for number, line in enumerate(samples):
        counts, _ = np.histogram(line.values, edges)
        tallest = max(1, int(counts.max()))
        for i, count in enumerate(counts):
            height = (PLOT_HEIGHT - 40) * count / tallest
            x, y = MARGIN + i * width, PLOT_HEIGHT - height
            parts.append(
                f'<rect class="bin bin{number}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
            )
        parts.append(
            f'<text class="key{number}" x="{MARGIN + 8 + 250 * number}" y="14">{html.escape(line.name)}</text>'
        )
    for share in (0, 0.5, 1):
        x = MARGIN + share * (WIDTH - 2 * MARGIN)
        parts.append(
            f'<text class="note" x="{x:.1f}" y="{PLOT_HEIGHT + 18}" text-anchor="middle">'
            f"{low + share * (high - low):.3g} {html.escape(unit)}</text>"
        )
    return _svg("".join(parts), WIDTH, PLOT_HEIGHT + 30, title)


def _y(value: float, low: float, high: float) -> float:
    return PLOT_HEIGHT - (PLOT_HEIGHT - 30) * (value - low) / (high - low)


def _axis(low: float, high: float, unit: str) -> str:
    parts = []
    for share in (0, 0.5, 1):
        value = low + share * (high - low)
        y = _y(value, low, high)
        parts.append(f'<line class="grid" x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}"/>')
        said = f"{value:.4g}{html.escape(unit)}"
        parts.append(f'<text class="note" x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{said}</text>')
    return "".join(parts)


def _tick(label: int, index: int, longest: int) -> str:
    x = MARGIN + (WIDTH - 2 * MARGIN) * (index / max(1, longest - 1))
    return f'<text class="note" x="{x:.1f}" y="{PLOT_HEIGHT + 18}" text-anchor="middle">{label}</text>'


def _short(text: str, most: int = 26) -> str:
    """With a tooltip of the whole, where it is long."""
    if len(text) <= most:
        return html.escape(text)
    return f"<title>{html.escape(text)}</title>…{html.escape(text[-most + 1 :])}"


def _svg(content: str, width: int, height: int, title: str) -> str:
    said = html.escape(title)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{said}" xmlns="http://www.w3.org/2000/svg">'
        f"{content}</svg>"
    )
