"""`slimkit report`."""

from dataclasses import dataclass
from pathlib import Path

import typer

from slimkit.cli.command import command
from slimkit.cli.output import Output


@dataclass(frozen=True)
class ReportOptions:
    """What is reported on, and where."""

    folder: Path = Path()
    output: Path = Path("report.html")
    force: bool = False  # replace what is there


@command(
    ReportOptions,
    example="slimkit report small -o report.html",
    folder=typer.Argument(
        help="What `slimkit compress -o` wrote, a working folder, or a model folder.", show_default="."
    ),
)
def report(options: ReportOptions, output: Output) -> None:
    """Write one HTML page of what the commands left: before and after, layers, training, latency, the machine."""
    from slimkit.core.files import require_file
    from slimkit.core.htmlreport.page import write_report

    require_file(options.output, options.force)
    write_report(options.folder, options.output)
    output.result({"output": str(options.output)}, path=options.output, human=[f"The report is in {options.output}."])
