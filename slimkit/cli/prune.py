"""`slimkit prune`."""

from typing import TYPE_CHECKING, Any

import typer

from slimkit.cli.command import command
from slimkit.cli.config import save_resolved
from slimkit.cli.options import device_flag
from slimkit.cli.output import Output, table
from slimkit.core.options import DEFAULT_RATE, PruneOptions

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slimkit.core.stages import SensitivityResult, StageResult

BUDGET = "Budgets: one of these"
CHANNELS = "Which channels go"
REPAIR = "Repair after the cut"
REPORT = "Sensitivity report"
COMPARED = (("parameters", "parameters"), ("macs", "MACs"), ("bytes", "bytes"), ("latency", "latency, median (ms)"))


@command(
    PruneOptions,
    example="slimkit prune runs/train --latency 4ms --target int8",
    rate=typer.Option(
        "--rate",
        help="Share of the channels that goes, between 0 and 1.",
        show_default=f"{DEFAULT_RATE}, without another budget",
        rich_help_panel=BUDGET,
    ),
    macs=typer.Option(
        "--macs", help="Multiply-adds: the share to keep, as 0.5, or a number, as 75e6.", rich_help_panel=BUDGET
    ),
    params=typer.Option(
        "--params", help="Parameters: the share to keep, as 0.5, or a number, as 2e6.", rich_help_panel=BUDGET
    ),
    latency=typer.Option(
        "--latency",
        metavar="TIME",
        help="Median time of a batch on this CPU, as 4ms; see --threads, --batch-size, --target.",
        rich_help_panel=BUDGET,
    ),
    target_machine=typer.Option(
        "--target-machine",
        metavar="FILE.json",
        help="The machine that --latency is for, as `slimkit benchmark --layer-times --widths` described it there.",
        rich_help_panel=BUDGET,
    ),
    max_drop=typer.Option(
        "--max-drop",
        metavar="POINTS",
        help="Points of top-1 that may be lost on held-out training images, after the repair and the fine-tuning.",
        rich_help_panel=BUDGET,
    ),
    target=typer.Option(
        "--target", help="What the network will compute in: for --latency and the widths.", rich_help_panel=BUDGET
    ),
    batch_size=typer.Option("--batch-size", help="Images in a batch, for --latency.", rich_help_panel=BUDGET),
    depth=typer.Option(
        "--depth",
        help="Remove whole residual blocks too, where that costs less than channels; with --macs, --params, --latency "
        "or --max-drop.",
        rich_help_panel=CHANNELS,
    ),
    steps=typer.Option(
        "--steps",
        help="Cut in so many steps, each repaired, fine-tuned and scored anew; with --rate, --macs or --params.",
        rich_help_panel=CHANNELS,
    ),
    importance=typer.Option("--importance", help="What makes a channel matter.", rich_help_panel=CHANNELS),
    scope=typer.Option(
        "--scope",
        help="What is ranked together: each group alone, all groups, or those of the same kind of layers.",
        rich_help_panel=CHANNELS,
    ),
    max_rate=typer.Option(
        "--max-rate",
        help="Share of its channels that one group may lose, where several are ranked together.",
        rich_help_panel=CHANNELS,
    ),
    round_to=typer.Option(
        "--round-to",
        metavar="N|auto|none",
        help="Widths are multiples of N; auto: of the step that the kernels of this CPU are measured to have.",
        rich_help_panel=CHANNELS,
    ),
    reconstruct=typer.Option(
        "--reconstruct/--no-reconstruct",
        help="Solve every layer anew on training images, without their labels.",
        rich_help_panel=REPAIR,
    ),
    reconstruction_images=typer.Option(
        "--reconstruction-images", help="Training images for that.", rich_help_panel=REPAIR
    ),
    calibration_images=typer.Option(
        "--calibration-images",
        help="Training images for BatchNorm's statistics, where nothing is reconstructed.",
        rich_help_panel=REPAIR,
    ),
    tune_minutes=typer.Option(
        "--tune-minutes",
        help="Minutes of tuning after the repair, without labels: to answer as the uncut network does.",
        rich_help_panel=REPAIR,
    ),
    finetune_epochs=typer.Option(
        "--finetune-epochs", help="Epochs of training on the labels after that.", rich_help_panel=REPAIR
    ),
    device=device_flag("Where to compute the tuning; the rest is computed on the CPU."),
    sensitivity=typer.Option(
        "--sensitivity",
        help="Cut nothing: tell what each group would cost and save, in <output>.sensitivity.json and .png.",
        rich_help_panel=REPORT,
    ),
    use_sensitivity=typer.Option(
        "--use-sensitivity",
        metavar="FILE.json",
        help="Such a report, by which a budget is spent on the groups, in place of --scope; not with --rate.",
        rich_help_panel=REPORT,
    ),
)
def prune(options: PruneOptions, output: Output) -> None:
    """Cut the channels that matter least out of a network, for good, until it keeps to a budget."""
    from slimkit.core.stages import run_prune, run_sensitivity

    if options.sensitivity:
        report = run_sensitivity(options, output.progress)
        save_resolved("prune", options)
        _show_sensitivity(report, output)
    else:
        result = run_prune(options, output.progress)
        save_resolved("prune", options)
        _show(result, output)


def _accuracy(figures: dict[str, Any]) -> list[str]:
    """What share of the images is right, where they are labelled."""
    if "accuracy" not in figures:
        return []
    images, split = figures["accuracy_images"], figures["accuracy_split"]
    return [f"{figures['accuracy']:.2f} % of {images:,} images {split} are right."]


def _show(result: "StageResult", output: Output) -> None:
    figures = result.figures
    rows = [
        (label, figures[f"{key}_before"], figures[key], _share(figures[key], figures[f"{key}_before"]))
        for key, label in COMPARED
        if f"{key}_before" in figures
    ]
    human: list[RenderableType] = [
        *result.notes,
        f"Asked for: {figures['budget']}. Gone: {figures['rate_reached']:.1%} of the channels.",
        table(None, ("", "before", "after", "kept"), rows),
        *_accuracy(figures),
        f"The model is in {result.folder}.",
    ]
    data = {"output": str(result.folder), "figures": figures, "notes": list(result.notes)}
    output.result(data, path=result.folder, human=human)


def _share(after: float, before: float) -> str:
    return f"{after / before:.1%}"


def _show_sensitivity(result: "SensitivityResult", output: Output) -> None:
    report = result.report
    columns = ("layers", "rate", "channels", "points lost", "ms saved", "MACs saved", "bytes saved")
    rows: list[tuple[Any, ...]] = [
        (
            ", ".join(entry.layers) if entry.rate == report.entries[0].rate else "",
            f"{entry.rate:.0%}",
            f"{entry.width_before} -> {entry.width}",
            entry.accuracy_lost,
            entry.ms_saved,
            entry.macs_saved,
            entry.bytes_saved,
        )
        for entry in report.entries
    ]
    title = (
        f"Uncut: {report.accuracy:.2f} % on {report.images:,} held-out images, {report.latency:.2f} ms "
        f"({report.target}). Each group was cut alone, {report.repair}."
    )
    data = {"output": str(result.file), "picture": str(result.picture), **report.to_dict()}
    human: list[RenderableType] = [
        table(title, columns, rows),
        f"The report is in {result.file}, the picture in {result.picture}.",
    ]
    output.result(data, path=result.file, human=human)
