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
FAINTEST = 0.06  # of a square that is seen at all
MOST_NAMED = 40  # classes whose names can be read beside a picture


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
class Interval:
    """A row: what it is of, a value, and between which bounds it is known to be; None where they are not known."""

    label: str
    value: float
    low: float | None
    high: float | None
    note: str = ""


def intervals(rows: Sequence[Interval], title: str) -> str:
    """Dots with whiskers on a logarithmic scale, which holds 1, drawn as a line."""
    ends = [1.0, *(bound for row in rows for bound in (row.value, row.low, row.high) if bound)]
    low, high = math.log(min(ends)), math.log(max(ends))

    def x(value: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * (math.log(value) - low) / ((high - low) or 1)

    height = 2 * ROW * len(rows)
    parts = [f'<line class="grid" x1="{x(1):.1f}" x2="{x(1):.1f}" y1="0" y2="{height}"/>']
    for index, row in enumerate(rows):
        y = 2 * ROW * index
        note = f'<tspan class="note" dx="10">{html.escape(row.note)}</tspan>'
        parts.append(f'<text x="0" y="{y + 14}">{html.escape(row.label)}{note}</text>')
        if row.low is not None and row.high is not None:
            parts.append(
                f'<line class="line" x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{y + 27}" y2="{y + 27}"/>'
            )
        parts.append(f'<circle class="dot0" cx="{x(row.value):.1f}" cy="{y + 27}" r="4"/>')
    parts.append(f'<text class="note" x="{x(1):.1f}" y="{height + 14}" text-anchor="middle">1</text>')
    return _svg("".join(parts), WIDTH, height + ROW, title)


def heat_map(shares: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """A square for each pair whose share is above 0, the stronger the larger it is; names where they can be read."""
    named = len(names) <= MOST_NAMED
    left, top = (LABEL, 8) if named else (16, 8)
    side = (WIDTH - LABEL) / max(1, len(names))
    parts = [f'<rect class="frame" x="{left}" y="{top}" width="{WIDTH - LABEL}" height="{WIDTH - LABEL}"/>']
    for row, name in enumerate(names):
        if named:
            y = top + (row + 0.5) * side + 4
            parts.append(f'<text x="{left - 8}" y="{y:.1f}" text-anchor="end">{_short(name)}</text>')
        for column, share in enumerate(shares[row]):
            if share:
                where = (
                    f'x="{left + column * side:.1f}" y="{top + row * side:.1f}" width="{side:.1f}" height="{side:.1f}"'
                )
                said = f"{html.escape(name)} answered as {html.escape(names[column])}: {share:.0%}"
                shade = max(FAINTEST, share)
                parts.append(f'<rect class="bar" {where} opacity="{shade:.2f}"><title>{said}</title></rect>')
    return _svg("".join(parts), WIDTH, round(WIDTH - LABEL + 2 * top), f"What {len(names)} classes were taken for")


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
