"""Pictures by matplotlib, without a screen."""

from __future__ import annotations

import io
from typing import Any


def new_figure(rows: int = 1, columns: int = 1, **settings: Any) -> tuple[Any, Any]:
    """A figure with its axes, as `pyplot.subplots` gives them."""
    import matplotlib

    matplotlib.use("Agg")  # needs no screen
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, layout="constrained", **settings)


def png_of(figure: Any, dpi: int = 100) -> bytes:
    """The figure as a PNG; it is closed."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    pyplot.close(figure)
    return buffer.getvalue()
