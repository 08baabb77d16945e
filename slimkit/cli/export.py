"""`slimkit export`."""

from typing import TYPE_CHECKING

from slimkit.cli.command import command
from slimkit.cli.config import save_resolved
from slimkit.cli.output import Output, table
from slimkit.core.options import ExportOptions

if TYPE_CHECKING:
    from rich.table import Table

    from slimkit.core.export import ExportReport

COLUMNS = ("batch size", "relative error", "largest error", "same answers")


@command(ExportOptions, example="slimkit export submission --output model.onnx")
def export(options: ExportOptions, output: Output) -> None:
    """Write a model as ONNX, and check that ONNX Runtime gives its logits at several batch sizes."""
    from slimkit.core.export import run_export

    report = run_export(options, output.progress)
    save_resolved("export", options)
    size = f"The ONNX file is {report.path}: {report.kind}, opset {report.opset}, {report.size:.3f} MB."
    same = report.agreement
    answers = f"{same.agreement:.1f} % of {same.count} {same.images} get the model's own answer."
    output.result(report.to_dict(), path=report.path, human=[checks_table(report), answers, size])


def checks_table(report: "ExportReport") -> "Table":
    """How far ONNX Runtime's logits are from the model's own, and how often both have the same class first."""
    rows = [
        (c.batch_size, f"{c.relative_error:.1e}", f"{c.largest_error:.1e}", f"{c.same_top1} of {c.batch_size}")
        for c in report.checks
    ]
    return table("Logits in ONNX Runtime, on random images", COLUMNS, rows)
