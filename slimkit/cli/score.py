"""`slimkit score`."""

from typing import TYPE_CHECKING

import typer

from slimkit.cli.command import command
from slimkit.cli.config import save_resolved
from slimkit.cli.options import device_flag
from slimkit.cli.output import Output, foreign_code, table, threads
from slimkit.core.options import ScoreOptions

if TYPE_CHECKING:
    from rich.table import Table

    from slimkit.core.scoring import ScoreReport


@command(
    ScoreOptions,
    example="slimkit score submission --baseline-size 50 --baseline-latency 10 --baseline-accuracy 80",
    baseline_weights=typer.Option("--baseline-weights", help="Weights file of a baseline that --baseline names."),
    baseline_pretrained=typer.Option(
        "--baseline-pretrained", help="Take the library's ImageNet weights for a baseline that --baseline names."
    ),
    baseline_size=typer.Option("--baseline-size", help="Size of the baseline's weights in MB, in place of measuring."),
    baseline_latency=typer.Option("--baseline-latency", help="Latency of the baseline in ms, in place of measuring."),
    baseline_accuracy=typer.Option("--baseline-accuracy", help="Accuracy of the baseline in %, in place of measuring."),
    device=device_flag("Where to compute the accuracy; an int8 model's on the CPU, unless another is named."),
    min_accuracy=typer.Option(
        "--min-accuracy", help="Below this accuracy in % a model is degenerate. Without it: 95 % of the baseline's."
    ),
)
def score(options: ScoreOptions, output: Output) -> None:
    """Score a model on the test images: 0.3 for size + 0.3 for latency + 0.4 for accuracy, against a baseline."""
    from slimkit.core.scoring import run_score

    report = run_score(options, output.progress)
    save_resolved("score", options)
    output.result(report.to_dict(), path=options.output, human=[score_table(report), *_remarks(report, options)])


def score_table(report: "ScoreReport") -> "Table":
    """Figures of the model and its baseline, how many times better each is, and where the baseline's are from."""
    names = {"size": "size (MB)", "latency": "latency (ms)", "accuracy": "accuracy (%)"}
    rows = [
        (label, getattr(report.figures, name), getattr(report.baseline, name), getattr(report.score, name), source)
        for name, label in names.items()
        for source in [report.sources[name]]
    ]
    total = "total (degenerate)" if report.degenerate else "total"
    rows.append((total, None, None, report.score.total, ""))
    return table(report.model, ("", "model", "baseline", "score", "baseline from"), rows, total=True)


def _remarks(report: "ScoreReport", options: ScoreOptions) -> list[str]:
    latency = report.latency
    interval = latency.median_confidence
    alone = f"; median {report.latency_alone.median:.3f} ms on one" if latency.threads > 1 else ""
    known = f" (95 %: {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return [
        f"Latency: median {latency.median:.3f} ms{known}, p90 {latency.p90:.3f} ms; {latency.runs} runs at batch 1 on "
        f"{threads(latency.threads)}{alone}.",
        f"Accuracy: {report.accuracy.images:,} test images of {report.data}; under "
        f"{report.min_accuracy:.2f} % a model is degenerate and ranks below the rest.",
        *foreign_code(report.changed_code),
        f"The score is in {options.output}.",
    ]
