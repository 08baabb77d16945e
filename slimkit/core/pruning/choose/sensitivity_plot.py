"""The sensitivity report as a picture: two maps, what is lost and what is saved, with a row for each group."""

from __future__ import annotations

from typing import Any

from slimkit.core.figures import new_figure, png_of
from slimkit.core.pruning.choose.sensitivity import GroupSensitivity, Sensitivity

ROW, TOP = 0.32, 1.9  # inches
MAPS = (  # title, colours, field, format
    ("points of top-1 lost", "Reds", "accuracy_lost", "{:.1f}"),
    ("ms saved", "Greens", "ms_saved", "{:.2f}"),
    ("MACs saved, %", "Blues", "macs_saved", "{:.0f}"),
    ("bytes saved, %", "Purples", "bytes_saved", "{:.0f}"),
)


def draw_sensitivity(report: Sensitivity) -> bytes:
    """The report as a PNG."""
    rates = sorted({entry.rate for entry in report.entries})
    rows = [report.entries[i : i + len(rates)] for i in range(0, len(report.entries), len(rates))]
    figure, axes = new_figure(1, len(MAPS), figsize=(13, TOP + ROW * len(rows)), sharey=True)
    for axis, (title, colours, field, form) in zip(axes, MAPS, strict=True):
        values = [[_value(entry, field, report) for entry in row] for row in rows]
        _draw_map(axis, values, title, colours, form)
        axis.set_xticks(range(len(rates)), [f"{rate:.0%}" for rate in rates])
        axis.set_xlabel("of the group's channels cut")
    axes[0].set_yticks(range(len(rows)), [_label(row[0]) for row in rows])
    figure.suptitle(
        f"{report.model}: each group cut alone, {report.repair}\n"
        f"uncut: {report.accuracy:.2f} % on {report.images:,} held-out images, "
        f"{report.latency:.2f} ms ({report.target})",
        fontsize=11,
    )
    return png_of(figure, dpi=130)


def _draw_map(axis: Any, values: list[list[float]], title: str, colours: str, form: str) -> None:
    highest = max(0.0, *(max(row) for row in values)) or 1.0
    axis.imshow(values, aspect="auto", cmap=colours, vmin=0, vmax=1.15 * highest)
    axis.set_title(title, fontsize=10)
    axis.tick_params(length=0)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            dark = value > 0.7 * highest
            axis.text(
                x, y, form.format(value), ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )


def _value(entry: GroupSensitivity, field: str, report: Sensitivity) -> float:
    """As it is shown: MACs and bytes as % of the uncut network's."""
    shares = {"macs_saved": report.macs / 100, "bytes_saved": report.bytes / 100}
    value = float(getattr(entry, field)) / shares.get(field, 1.0)
    return round(value, 2 if field == "ms_saved" else 1) + 0.0  # no minus before a zero


def _label(entry: GroupSensitivity) -> str:
    others = f" + {len(entry.layers) - 1} more" if len(entry.layers) > 1 else ""
    return f"{entry.layers[0]}{others}  ({entry.width_before})"
