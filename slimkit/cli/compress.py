"""`slimkit compress`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from slimkit.cli.command import command
from slimkit.cli.config import read_settings
from slimkit.cli.options import SHARED
from slimkit.cli.output import Output, table
from slimkit.core.options import (
    DEFAULT_RATE,
    DISTILL_EPOCHS,
    Device,
    GoalOptions,
    Interpolation,
    Objective,
    QuantizeOptions,
    Scheme,
    TrainOptions,
)
from slimkit.core.sizes import Size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slimkit.core.search.run import Found

STAGE_FLAGS = {  # where in a recipe each flag of a single stage belongs
    "train_epochs": ("train", "epochs"),
    "rate": ("prune", "rate"),
    "distill_epochs": ("distill", "epochs"),
    "scheme": ("quantize", "scheme"),
    "objective": ("goal", "objective"),
    "min_accuracy": ("goal", "min_accuracy"),
    "minutes": ("goal", "minutes"),
}
ABOUT_THE_RUN = ("config", "output", "force")


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """What the recipe is told from the command line; None leaves it to the recipe, or else to the stage's default."""

    model: str | None = None
    config: Path | None = None
    output: Path | None = None
    rate: float | None = None
    scheme: Scheme | None = None
    train_epochs: int | None = None
    distill_epochs: int | None = None
    objective: Objective | None = None
    min_accuracy: str | None = None
    minutes: float | None = None
    force: bool = False
    weights: Path | None = None
    weights_key: str | None = None
    new_head: bool | None = None
    pretrained: bool | None = None
    model_args: str | None = None
    output_index: int | None = None
    classes: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Interpolation | None = None
    data: str | None = None
    image_size: Size | None = None
    resize: Size | None = None
    device: Device | None = None
    seed: int | None = None
    threads: int | None = None

    def over(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """`recipe` with what the flags say put over it."""
        merged = {name: dict(part) if isinstance(part, dict) else part for name, part in recipe.items()}
        for name in (field.name for field in fields(self) if field.name not in ABOUT_THE_RUN):
            value = getattr(self, name)
            if value is not None:
                stage, option = STAGE_FLAGS.get(name, (None, name))
                target = merged.setdefault(stage, {}) if stage else merged
                target[option] = str(value) if isinstance(value, Path) else value
        return merged


@command(
    CompressOptions,
    example="slimkit compress resnet18 --data photos/ --rate 0.3 -o small",
    model=typer.Argument(
        help="Where the chain starts: a model folder, or the name of a torchvision network.",
        show_default=TrainOptions.model,
    ),
    config=typer.Option(
        "--config",
        "-c",
        metavar="RECIPE.yaml",
        help="Shared options, and under train, prune, distill, quantize and score those of each; flags beat it. Paths "
        "in it are as seen from the working folder. The resolved recipe is left in runs/recipe.yaml.",
        rich_help_panel=SHARED,
    ),
    output=typer.Option(
        "--output",
        "-o",
        help="The folder in which runs/, submission/ and results.json are written.",
        show_default="the recipe's, else the working folder",
    ),
    rate=typer.Option("--rate", help="Share of its channels that each group loses.", show_default=str(DEFAULT_RATE)),
    scheme=typer.Option("--scheme", help="How activations are quantized.", show_default=QuantizeOptions.scheme),
    train_epochs=typer.Option("--train-epochs", help="Epochs of training. Without it: as the data needs."),
    distill_epochs=typer.Option("--distill-epochs", help="Epochs of distillation.", show_default=str(DISTILL_EPOCHS)),
    objective=typer.Option(
        "--objective",
        help="Search for how far to cut (parameters; for latency MACs) and the bits of the weights that make this best "
        "within --minutes. score: the contest's total.",
        show_default="no search; score where one of the next two is given",
    ),
    min_accuracy=typer.Option(
        "--min-accuracy",
        metavar="95%|POINTS",
        help="What the search is to keep on held-out training images: a share of the baseline's accuracy, or points.",
        show_default=GoalOptions.min_accuracy,
    ),
    minutes=typer.Option(
        "--minutes",
        help="Time for the search and the training that follows it; the baseline's own training comes before.",
        show_default=f"{GoalOptions.minutes:g}",
    ),
    force=typer.Option("--force", "-f", help="Start over, in place of going on after the last finished stage."),
)
def compress(options: CompressOptions, output: Output) -> None:
    """Train, prune, distill, quantize and score in one go. Given again, it goes on after the last finished stage."""
    from slimkit.core.recipe import resolve_recipe, run_recipe
    from slimkit.core.search.run import require_reached, run_goal

    settings = options.over(read_settings(options.config) if options.config else {})
    recipe = resolve_recipe(settings, options.output, source=str(options.config or "the recipe"))
    found = None
    if recipe.goal:
        found, report = run_goal(recipe, force=options.force, progress=output.progress)
    else:
        report = run_recipe(recipe, force=options.force, progress=output.progress)
    figures = {name: {"before": before, "after": after} for name, before, after in report.rows}
    search = {"search": found.to_dict()} if found else {}
    output.result(
        {"output": str(report.submission), "figures": figures, "results": report.results} | search,
        path=report.submission,
        human=[
            *(search_tables(found) if found else []),
            table(None, ("", "before", "after"), report.rows),
            *([f"The report is in {report.page}."] if report.page else []),
            f"The submission is in {report.submission}.",
        ],
    )
    if found:
        require_reached(found)


def search_tables(found: "Found") -> "list[RenderableType]":
    """What the search tried, and what it chose."""
    from slimkit.core.search.record import SHOWN

    rows = [
        (
            f"{each.share:.1%}",
            each.step,
            each.bits,
            f"{each.accuracy:.2f}",
            each.size and f"{each.size:.3f}",
            each.latency and f"{each.latency:.3g}",
            each.minutes or None,
        )
        for each in found.tried
    ]
    what = SHOWN[found.choice.budget]
    columns = (f"{what} kept", "", "bits", "held-out accuracy (%)", "MB", "ms", "minutes trained")
    choice = found.choice
    return [
        table(f"Tried; {found.target:.2f} % was asked for", columns, rows),
        f"Chosen: {choice.share:.1%} of the {what}, {choice.minutes:g} minutes of distillation, weights of "
        f"{choice.bits} bits. The picture is in {found.picture}.",
    ]
