"""`slimkit distill`."""

import typer

from slimkit.cli.command import command
from slimkit.cli.output import Output
from slimkit.cli.stage import show_stage
from slimkit.core.options import DISTILL_EPOCHS, DistillOptions


@command(
    DistillOptions,
    example="slimkit distill runs/prune --teacher runs/train --epochs 10",
    epochs=typer.Option("--epochs", help="Training epochs.", show_default=str(DISTILL_EPOCHS)),
    teacher=typer.Option(
        "--teacher", metavar="MODEL", help="Model to learn from. Without it: the one that the student was cut from."
    ),
    teacher_weights=typer.Option("--teacher-weights", metavar="FILE", help="Checkpoint of a teacher given by name."),
    method=typer.Option(
        "--method",
        help="How the student's answers are held against the teacher's: kd (divergence of the probabilities), dkd (the "
        "same, with the right class and the others apart), dist (correlation, within images and within classes), "
        "standardized (divergence of logits brought to one mean and spread).",
    ),
    temperature=typer.Option("--temperature", help="Softens the teacher's and the student's probabilities."),
    views=typer.Option(
        "--views",
        help="Augment each image in so many ways, epoch by epoch in turn, in place of anew each time: the teacher is "
        "asked about each only once, here and in later runs, and a small student trains several times faster.",
    ),
    control=typer.Option(
        "--control",
        metavar="SEEDS",
        help="Hold it against the same training on the labels alone, with so many seeds of both: mean and standard "
        "deviation. It takes as many times as long, twice.",
    ),
    alpha=typer.Option("--alpha", help="Weight of the teacher's loss; that of the labels is 1 - alpha."),
)
def distill(options: DistillOptions, output: Output) -> None:
    """Win accuracy back by training a network to answer as its teacher does."""
    from slimkit.core.stages import run_distill

    show_stage("distill", options, run_distill(options, output.progress), output)
