"""`slimkit tune`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from slimkit.cli.command import command
from slimkit.cli.config import read_settings
from slimkit.cli.output import Output, table

if TYPE_CHECKING:
    from rich.table import Table

    from slimkit.core.tune.run import TuneReport


@dataclass(frozen=True)
class TuneOptions:
    """What is tried, how often, and where it is kept."""

    recipe: Path = Path("recipe.yaml")
    output: Path = Path("tuned")
    trials: int = 20
    storage: str | None = None
    seed: int = 0


@command(
    TuneOptions,
    example="slimkit tune recipe.yaml --trials 50 -o tuned",
    recipe=typer.Argument(
        metavar="RECIPE.yaml",
        help="As of `slimkit compress`, with a section `search` that names options: prune.rate: \\[0.3, 0.5] for "
        "choices, distill.lr: {low: 1e-4, high: 1e-2, log: true} for a range.",
    ),
    trials=typer.Option("--trials", help="How many there are to be in all, those of other processes included."),
    storage=typer.Option(
        "--storage",
        metavar="URL",
        help="Optuna's data base, such as sqlite:///study.db; processes that name the same one share the trials. "
        "Without it: study.db in --output.",
    ),
)
def tune(options: TuneOptions, output: Output) -> None:
    """Try other options of a recipe, and show those that no other beats in accuracy, latency and size."""
    from slimkit.core.tune.run import run_tune

    report = run_tune(
        read_settings(options.recipe),
        options.output,
        trials=options.trials,
        storage=options.storage,
        seed=options.seed,
        source=str(options.recipe),
        progress=output.progress,
    )
    failed = [f"Trial {trial.number} failed: {trial.reason}" for trial in report.trials if trial.state == "failed"]
    running = sum(trial.state == "running" for trial in report.trials)
    output.result(
        {"output": str(options.output), **report.to_dict()},
        path=report.file,
        human=[
            best_table(report),
            *failed,
            *([f"{running} trials are still running in other processes."] if running else []),
            f"The recipe of each is in {options.output / 'trials'}; {report.picture} shows all.",
        ],
    )


def best_table(report: "TuneReport") -> "Table":
    """The Pareto set, with the options that were tried."""
    names = list(report.trials[0].values)
    rows = [
        (trial.number, *vars(trial.figures).values(), *(trial.values.get(name) for name in names))
        for trial in report.best
    ]
    columns = ("trial", "accuracy (%)", "latency (ms)", "size (MB)", *names)
    return table(f"Best of {len(report.trials)} trials: no other beats these", columns, rows)
