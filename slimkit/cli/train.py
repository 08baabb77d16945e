"""`slimkit train`."""

import typer

from slimkit.cli.command import command
from slimkit.cli.output import Output
from slimkit.cli.stage import show_stage
from slimkit.core.options import TrainOptions


@command(
    TrainOptions,
    example="slimkit train resnet18 --data photos/ --epochs 30",
    width=typer.Option("--width", help="Channels of the first layer; slimresnet18 alone has this. Without it: 32."),
    epochs=typer.Option("--epochs", help="How often each training image is seen. Without it: as the data needs."),
    label_smoothing=typer.Option("--label-smoothing", help="Share of each label that is spread over all classes."),
)
def train(options: TrainOptions, output: Output) -> None:
    """Train a baseline: resnet18, 34 or 50, another torchvision network, or slimresnet18."""
    from slimkit.core.stages import run_train

    show_stage("train", options, run_train(options, output.progress), output)
