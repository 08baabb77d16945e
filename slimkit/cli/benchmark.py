"""`slimkit benchmark`."""

from typing import TYPE_CHECKING

import typer

from slimkit.cli.command import command
from slimkit.cli.config import save_resolved
from slimkit.cli.output import Output, foreign_code, table, threads
from slimkit.core.options import BenchmarkOptions

if TYPE_CHECKING:
    from rich.table import Table

    from slimkit.core.benchmark import BenchmarkReport, CrossCheck

COLUMNS = ("", "runtime", "size (MB)", "median (ms)", "95 %", "p90 (ms)", "mean (ms)", "model is")


@command(
    BenchmarkOptions,
    example="slimkit benchmark submission --baseline runs/train --batch-size 8",
    onnx=typer.Option("--onnx/--no-onnx", help="Export to ONNX too: compare logits, and time it in ONNX Runtime."),
    batch_size=typer.Option("--batch-size", help="Images per run."),
)
def benchmark(options: BenchmarkOptions, output: Output) -> None:
    """Time a model against its baseline and its ONNX export, in turn, each in a process of its own."""
    from slimkit.core.benchmark import run_benchmark

    report = run_benchmark(options, output.progress)
    save_resolved("benchmark", options)
    remarks = [_agreement(report.onnx_check)] if report.onnx_check else []
    remarks += foreign_code(report.changed_code)
    remarks.append(f"The figures are in {options.output}.")
    output.result(report.to_dict(), path=options.output, human=[timings_table(report), *remarks])


def timings_table(report: "BenchmarkReport") -> "Table":
    """A row for each network in each runtime; the last column says how much faster the model is than it."""
    first = report.timings[0].latency
    rows = [
        (
            f"{each.role} {each.name}",
            each.runtime,
            each.size,
            each.latency.median,
            _interval(each.latency.median_confidence),
            each.latency.p90,
            each.latency.mean,
            f"{report.speedup(each):.2f} x as fast" if each is not report.timings[0] else "",
        )
        for each in report.timings
    ]
    title = f"Latency: {first.runs} runs of batch {first.batch_size} on {threads(first.threads)}"
    return table(title, COLUMNS, rows)


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _agreement(check: "CrossCheck") -> str:
    return (
        f"ONNX: the same answer on {check.agreement:.1f} % of {check.count} {check.inputs}; logits differ by up to "
        f"{check.max_difference:.2g}, where they reach {check.max_logit:.2g}."
    )
