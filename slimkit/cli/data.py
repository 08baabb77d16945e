"""`slimkit data`: the commands that look at data sets."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from slimkit.cli.command import command
from slimkit.cli.output import Output, table
from slimkit.core.errors import MissedError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slimkit.core.data import DatasetCheck

HELP = "Look at a data set before anything is trained on it."
SHOWN = 20  # flaws in the table; --json has them all


@dataclass(frozen=True)
class CheckOptions:
    """What is looked at."""

    data: str = "digits100"
    channels: int = 3
    strict: bool = False


@command(
    CheckOptions,
    example="slimkit data check photos/ --strict",
    data=typer.Argument(help="What --data takes: a folder, a .zip, or the name of a data set such as cifar100."),
    channels=typer.Option("--channels", help="Of the images, where they are arrays in .npy files."),
    strict=typer.Option("--strict", help="Exit with 3 where anything is wrong."),
)
def check(options: CheckOptions, output: Output) -> None:
    """Decode every image of a data set; tell what is broken, there twice or missing, and how the classes are filled."""
    from slimkit.core.data import check_dataset

    found = check_dataset(options.data, options.channels, output.progress)
    flaws = list(found.flaws)
    rest = [f"… and {len(flaws) - SHOWN} more; --json has all of them."] if len(flaws) > SHOWN else []
    said = [*flaws[:SHOWN], *rest] or ["Nothing is wrong with the images."]
    output.result(dataclasses.asdict(found) | {"flaws": flaws}, human=[*_tables(found), "", *said])
    if flaws and options.strict:
        things = "thing is" if len(flaws) == 1 else "things are"
        raise MissedError(f"{len(flaws)} {things} wrong with {found.name}.", "Repair or remove what is named above.")


def _tables(found: "DatasetCheck") -> "list[RenderableType]":
    splits = []
    for name, split in found.splits.items():
        few, many = (pick(split.classes.items(), key=lambda each: each[1], default=("", 0)) for pick in (min, max))
        splits.append((name, split.images, len(split.classes), f"{few[1]:,} ({few[0]})", f"{many[1]:,} ({many[0]})"))
    least, median, greatest = (f"{size[0]}x{size[1]}" for size in found.sizes or ((0, 0),) * 3)
    figures = [
        ("height x width", f"{least} to {greatest}, median {median}"),
        ("mean", " ".join(f"{value:.3f}" for value in found.mean)),
        ("std", " ".join(f"{value:.3f}" for value in found.std)),
    ]
    columns = ("split", "images", "classes", "fewest of a class", "most of a class")
    return [table(found.name, columns, splits), "", table(None, ("", ""), figures)]
