"""What the commands that make a model folder have in common once the core has made it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slimkit.cli.config import save_resolved
from slimkit.cli.output import Output, table

if TYPE_CHECKING:
    from rich.table import Table

    from slimkit.core.options import CommonOptions
    from slimkit.core.stages import StageResult

LABELS = {
    "macs": "MACs",
    "macs_not_counted": "not among the MACs",
    "size_mb": "size (MB)",
    "accuracy": "accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "agreement": "answers as in float (%)",
}


def show_stage(
    command: str,
    options: "CommonOptions",
    result: "StageResult",
    output: Output,
    more: dict[str, Any] | None = None,
    tables: "Sequence[Table]" = (),
) -> None:
    """Save what `command` ran with, then show the folder it made and the figures of the model in it.

    more: what else the JSON says; tables: what else people see.
    """
    if output.launch.is_first:
        save_resolved(command, options)
    figures = table(None, ("", ""), figure_rows(result.figures))
    output.result(
        {"output": str(result.folder), "figures": result.figures, "notes": list(result.notes)} | (more or {}),
        path=result.folder,
        human=[*result.notes, *tables, figures, f"The model is in {result.folder}."],
    )


def figure_rows(figures: dict[str, Any]) -> list[tuple[str, Any]]:
    """The measured figures of a model as rows of a table."""
    return [(LABELS.get(key, key.replace("_", " ")), value) for key, value in figures.items()]
