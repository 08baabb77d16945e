"""`slimkit score`."""

from typing import TYPE_CHECKING

import typer

from slimkit.cli.command import command
from slimkit.cli.config import save_resolved
from slimkit.cli.options import device_flag
from slimkit.cli.output import Output, foreign_code, table, threads, walls_around
from slimkit.core.errors import MissedError
from slimkit.core.options import ScoreOptions

if TYPE_CHECKING:
    from rich.table import Table

    from slimkit.core.measure.answers import Difference
    from slimkit.core.scoring.board import Board
    from slimkit.core.scoring.report import ScoreReport


@command(
    ScoreOptions,
    example="slimkit score submission --baseline-size 50 --baseline-latency 10 --baseline-accuracy 80",
    others=typer.Argument(help="More models: all are scored against one baseline, and ranked.", show_default=False),
    verify=typer.Option(
        "--verify", metavar="RESULTS.json", help="Measure again what this says, by its own options: which figures hold?"
    ),
    details=typer.Option(
        "--details",
        metavar="FOLDER",
        help="Write the accuracy of each class, and what was taken for what, as CSV and as a picture.",
    ),
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
    """Score a model on the test images: 0.3 for size + 0.3 for latency + 0.4 for accuracy, against a baseline.

    Several models give a board. A model may be an ONNX file, too, or a folder of somebody else's (--run-code).
    """
    if options.verify:
        _verify(options, output)
        return
    if options.others:
        _score_many(options, output)
        return
    from slimkit.core.scoring.run import run_score

    report = run_score(options, output.progress)
    save_resolved("score", options)
    output.result(report.to_dict(), path=options.output, human=[score_table(report), *_remarks(report, options)])


def _verify(options: ScoreOptions, output: Output) -> None:
    from slimkit.core.scoring.verify import run_verify

    found = run_verify(options, output.progress)
    rows = [
        (c.figure, _shortened(c.recorded), _shortened(c.measured), "yes" if c.holds else "NO", c.by)
        for c in found.checks
    ]
    output.result(found.to_dict(), human=[table(str(found.file), ("", "recorded", "measured", "holds", "asked"), rows)])
    if found.broken:
        raise MissedError(
            f"{found.file}: {', '.join(found.broken)} do not hold.",
            "Measure it on the same machine, or trust the new figures.",
        )


def _shortened(value: object) -> object:
    return value[:12] if isinstance(value, str) else value


def _score_many(options: ScoreOptions, output: Output) -> None:
    from slimkit.core.scoring.board import run_board

    board = run_board(options, output.progress)
    save_resolved("score", options)
    against = ", ".join(f"{name} {source}" for name, source in board.baseline.sources.items())
    remarks = [f"Baseline: {against}.", f"The board is in {options.output}."]
    output.result(board.to_dict(), path=options.output, human=[board_table(board), *remarks])


def board_table(board: "Board") -> "Table":
    """A row for each model, the best first; those that failed stand below, with the reason."""
    rows = [
        (rank, model, total, size, latency, _with_interval(accuracy, low, high), remark)
        for rank, model, total, size, latency, accuracy, low, high, _, remark in board.rows()
    ]
    return table(None, ("", "model", "total", "size (MB)", "latency (ms)", "accuracy (%)", ""), rows)


def _with_interval(accuracy: object, low: object, high: object) -> str:
    return "" if accuracy == "" else f"{accuracy:.2f} ({low:.1f} to {high:.1f})"


def score_table(report: "ScoreReport") -> "Table":
    """Figures of the model and its baseline, how many times better each is, and where the baseline's are from."""
    names = {"size": "size (MB)", "latency": "latency (ms)", "accuracy": "accuracy (%)"}
    other = report.baseline.figures
    rows = [
        (label, getattr(report.figures, name), getattr(other, name), getattr(report.score, name), source)
        for name, label in names.items()
        for source in [report.baseline.sources[name]]
    ]
    total = "total (degenerate)" if report.degenerate else "total"
    rows.append((total, None, None, report.score.total, ""))
    return table(report.model, ("", "model", "baseline", "score", "baseline from"), rows, total=True)


def _remarks(report: "ScoreReport", options: ScoreOptions) -> list[str]:
    latency = report.latency
    interval = latency.median_confidence
    one = report.latency_alone
    alone = f"; median {one.median:.3f} ms on one" if one and latency.threads > 1 else ""
    low, high = report.accuracy.confidence
    silent = report.accuracy.answers.unanswered
    other = report.baseline.accuracy
    was = f"; the baseline's {other.answers.calibration_error():.1f}" if other else ""
    known = f" (95 %: {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return [
        f"Latency: median {latency.median:.3f} ms{known}, p90 {latency.p90:.3f} ms; {latency.runs} runs at batch 1 on "
        f"{threads(latency.threads)}{alone}.",
        f"Accuracy: {report.accuracy.images:,} test images of {report.data} (95 %: {low:.2f} to {high:.2f} %); under "
        f"{report.min_accuracy:.2f} % a model is degenerate and ranks below the rest.",
        *([f"{silent:,} images got no answer: a logit is no number."] if silent else []),
        *_difference(report.difference),
        f"Confidence is {report.accuracy.answers.calibration_error():.1f} points from accuracy on average (ECE{was}).",
        *foreign_code(report.changed_code),
        *report.remarks,
        *([] if report.walls is None else [walls_around(report.walls)]),
        f"The score is in {options.output}.",
    ]


def _difference(difference: "Difference | None") -> list[str]:
    if difference is None:
        return []
    return [
        f"Beside the baseline: {difference.lost:,} images right by it alone, {difference.won:,} by the model alone; "
        f"p = {difference.p_value:.2g} (McNemar), {difference.verdict}."
    ]
