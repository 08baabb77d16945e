"""`slimkit benchmark`."""

from typing import TYPE_CHECKING

import typer

from slimkit.cli.command import command
from slimkit.cli.config import save_resolved
from slimkit.cli.output import Output, foreign_code, table, walls_around
from slimkit.cli.values import backends
from slimkit.core.options import BenchmarkOptions

if TYPE_CHECKING:
    from rich.table import Table

    from slimkit.core.benchmark.layers import ModelLayers
    from slimkit.core.benchmark.report import BenchmarkReport, Result
    from slimkit.core.benchmark.statistics import Estimate

RATIOS = ("", "time, of the other's", "95 %", "")
FIGURES = (
    *("", "median (ms)", "95 %", "p90 (ms)", "p99 (ms)", "images/s", "load (ms)", "first call (ms)"),
    *("memory (MB)", "size (MB)", "same answers (%)"),
)


@command(
    BenchmarkOptions,
    example="slimkit benchmark submission runs/prune --against runs/train --backend torch,onnxruntime",
    others=typer.Argument(help="More models.", show_default=False),
    baseline=typer.Option(
        "--against",
        "--baseline",
        metavar="MODEL",
        help="What all are compared with. Without it: the model that the first was made from, else the first itself.",
    ),
    backend=typer.Option(
        "--backend",
        parser=backends,
        metavar="NAMES",
        help="What to run each model in: torch, compile (torch.compile), onnxruntime, openvino, with commas between "
        "them; the baseline runs in the first.",
    ),
    batch_size=typer.Option("--batch-size", help="Images per run."),
    restarts=typer.Option(
        "--restarts",
        help="How often all processes are started anew at least. With 0 the intervals lack what a restart changes.",
    ),
    min_seconds=typer.Option(
        "--min-seconds", help="Seconds of samples of each candidate, unless --precision is reached before."
    ),
    precision=typer.Option(
        "--precision", help="Stop where every ratio's 95 % interval is narrower than this, in % of the ratio."
    ),
    streams=typer.Option(
        "--streams", help="Measure the throughput of so many processes side by side, too, each on one thread."
    ),
    plot=typer.Option("--plot", help="Draw how the runs are distributed, beside the output."),
    layer_times=typer.Option(
        "--layer-times", help="Compare nothing: time each layer by itself, in torch, and write the table as JSON."
    ),
    widths=typer.Option(
        "--widths",
        help="With --layer-times: time all widths that pruning may give the layers, too, so that the file describes "
        "this machine to `slimkit prune --latency --target-machine` on another.",
    ),
)
def benchmark(options: BenchmarkOptions, output: Output) -> None:
    """Time models beside a baseline, in turn, each in a process of its own: the ratios first, then the times.

    A model may be an ONNX file, too, or a folder of somebody else's (--run-code).
    """
    if options.layer_times:
        _time_layers(options, output)
        return
    from slimkit.core.benchmark.run import run_benchmark

    report = run_benchmark(options, output.progress)
    save_resolved("benchmark", options)
    samples, picture = options.beside
    remarks = [
        *_answers(report),
        *_streams(report),
        *(f"Beware: {warning}" for warning in report.warnings),
        *foreign_code(report.changed_code),
        *_outside(report),
        f"Every run is in {samples}" + (f", a picture of them in {picture}." if options.plot else "."),
        f"The figures are in {options.output}.",
    ]
    ratios = [ratios_table(report)] if len(report.candidates) > 1 else []
    output.result(report.to_dict(), path=options.output, human=[*ratios, figures_table(report), *remarks])


def _time_layers(options: BenchmarkOptions, output: Output) -> None:
    from slimkit.core.benchmark.layers import run_layer_times

    report = run_layer_times(options, output.progress)
    save_resolved("benchmark", options)
    tables = [layers_table(each) for each in report.models]
    output.result(report.to_dict(), path=options.output, human=[*tables, f"The table is in {options.output}."])


def layers_table(model: "ModelLayers") -> "Table":
    """A row for each layer, and their sum."""
    rows: list[tuple[object, ...]] = [
        (each.name, each.layer.type, each.layer.inputs, each.layer.outputs, each.ms, 100 * each.ms / model.total)
        for each in model.layers
    ]
    rows.append(("total, without what lies between", "", None, None, model.total, None))
    return table(model.model, ("layer", "type", "in", "out", "ms", "%"), rows, total=True)


def ratios_table(report: "BenchmarkReport") -> "Table":
    """How long each takes in units of the time of the one that all are compared with."""
    rows = [
        (str(each), each.ratio.value, _interval(each.ratio), each.verdict) for each in report.candidates if each.ratio
    ]
    return table(f"Compared with {report.candidates[report.reference]}", RATIOS, rows)


def figures_table(report: "BenchmarkReport") -> "Table":
    """A row for each candidate. Of load and first call the first start counts; the others are in brackets."""
    title = f"{report.starts} starts of each process, batches of {report.batch_size}"
    return table(title, FIGURES, [_figures(each) for each in report.candidates])


def _figures(result: "Result") -> tuple[object, ...]:
    return (
        str(result),
        result.median.value,
        _interval(result.median),
        result.p90.value,
        result.p99.value if result.p99 else None,
        round(result.throughput.value, 1),
        _of_starts(result.load_ms),
        _of_starts(result.first_call_ms),
        round(result.peak_memory),
        result.size,
        result.agreement.agreement,
    )


def _interval(estimate: "Estimate") -> str:
    return "" if estimate.low is None else f"{estimate.low:.3f} to {estimate.high:.3f}"


def _of_starts(values: tuple[float, ...]) -> str:
    first, *others = values
    return f"{first:,.0f}" + (f" ({min(others):,.0f} to {max(others):,.0f})" if others else "")


def _answers(report: "BenchmarkReport") -> list[str]:
    """What the answers were compared on, and how far any of them are apart."""
    first = report.candidates[0].agreement
    worst = max((each.agreement for each in report.candidates), key=lambda each: each.max_difference)
    return [
        f"Answers: compared with each model's own on {first.count} {first.images}; logits differ by up to "
        f"{worst.max_difference:.2g}, where they reach {worst.max_logit:.2g}."
    ]


def _streams(report: "BenchmarkReport") -> list[str]:
    """What several processes do together, where that was asked for."""
    return [
        f"{each}: {found.count} streams of one thread do {found.throughput:,.1f} images/s together, each batch in "
        f"{found.median:.3f} ms (median)."
        for each in report.candidates
        if (found := each.streams)
    ]


def _outside(report: "BenchmarkReport") -> list[str]:
    """What is to be said where strangers' models are among them."""
    if not report.from_outside:
        return []
    names = " and ".join(report.walls)
    return [
        f"{names}: not written by slimkit. So all are timed from outside their processes, the way of the images there "
        "and the logits back included, and loading includes the runtime.",
        *(walls_around(walls) for walls in report.walls.values()),
    ]
