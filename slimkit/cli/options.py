"""The flags that several commands share, one for each field of the options dataclasses in `slimkit/core/options.py`.

A flag that only one command has stands in that command's module. No default stands here: the dataclasses have them.
"""

from typing import Any

import typer

from slimkit.cli.config import load_defaults
from slimkit.cli.values import numbers, size

SHARED = "Shared options"


def _shared(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=SHARED, **settings)


def device_flag(help: str) -> Any:
    """--device, of a command that uses it for what `help` says."""
    return _shared("--device", help=help)


FLAGS: dict[str, Any] = {
    "model": typer.Argument(
        help="Model folder, the name of a torchvision network such as resnet18, timm:NAME, or a class or function "
        "of your own as FILE.py:NAME or package.module:NAME."
    ),
    "output": typer.Option("--output", "-o", help="Where the result is written."),
    "force": typer.Option("--force", "-f", help="Replace what is already there."),
    "weights": typer.Option("--weights", metavar="FILE", help="Checkpoint with the weights of a named model."),
    "weights_key": typer.Option(
        "--weights-key", metavar="KEY", help="Which weights to take from a checkpoint that has several, as model_ema."
    ),
    "new_head": typer.Option(
        "--new-head", help="Start the last layer from random where the weights are for another number of classes."
    ),
    "pretrained": typer.Option("--pretrained", help="Take the library's ImageNet weights for a named model."),
    "classes": typer.Option(
        "--classes",
        metavar="FILE",
        help="The classes of a named model, a name per line in the order of its logits. Without it: those of the data, "
        "or numbers where the data are photos without classes.",
    ),
    "mean": typer.Option(
        "--mean",
        parser=numbers,
        metavar="M M M",
        help="Mean of each channel, of values from 0 to 1, for a named model. Without it: ImageNet's.",
    ),
    "std": typer.Option("--std", parser=numbers, metavar="S S S", help="Standard deviation of each channel, likewise."),
    "interpolation": typer.Option(
        "--interpolation", help="How images are resized for a named model. Without it: bilinear."
    ),
    "model_args": typer.Option(
        "--model-args", metavar="JSON", help="What your own class or function takes, such as '{\"num_classes\": 37}'."
    ),
    "output_index": typer.Option(
        "--output-index", help="Which of several outputs of your own network are the logits, counted from 0."
    ),
    "baseline": typer.Option(
        "--baseline", metavar="MODEL", help="What to compare with. Without it: the model that this one was made from."
    ),
    "epochs": typer.Option("--epochs", help="Training epochs."),
    "minutes": typer.Option("--minutes", help="Train for so long, in place of --epochs: the steps are fitted to it."),
    "checkpoint_minutes": typer.Option(
        "--checkpoint-minutes", help="Time between two checkpoints in OUTPUT.checkpoint/; there is one per epoch too."
    ),
    "resume": typer.Option("--resume", help="Go on from the last checkpoint of the same training, if there is one."),
    "ema": typer.Option(
        "--ema",
        metavar="DECAY",
        help="Evaluate and keep a moving average of the weights that forgets 1 - DECAY of itself in each step, such as "
        "0.999. Without it: the weights themselves.",
    ),
    "flip": typer.Option(
        "--flip",
        help="Which training images are mirrored: half of them, drawn anew in each epoch (random), or in each epoch "
        "those that were not in the one before (alternate). None where a mirror image is of another class.",
    ),
    "min_crop": typer.Option(
        "--min-crop",
        metavar="SHARE",
        help="See a random part of each training image, of this share of its area at least, such as 0.25. Without it: "
        "most of it, near its centre.",
    ),
    "cutout": typer.Option(
        "--cutout", metavar="SHARE", help="Hide a square of each training image, with this share of its sides."
    ),
    "mixup": typer.Option(
        "--mixup", metavar="ALPHA", help="Blend each training image with another, in shares from Beta(ALPHA, ALPHA)."
    ),
    "cutmix": typer.Option(
        "--cutmix",
        metavar="ALPHA",
        help="Paste a part of another image into each training image, likewise; with --mixup, either half of the time.",
    ),
    "plot": typer.Option("--plot", help="Draw the course of the training: OUTPUT.curves.png."),
    "tensorboard": typer.Option(
        "--tensorboard", help="Write the course of the training for TensorBoard, too: OUTPUT.tensorboard/."
    ),
    "batch_size": typer.Option("--batch-size", help="Images per step, of all processes together."),
    "optimizer": typer.Option(
        "--optimizer",
        help="How the weights are updated. muon orthogonalizes the updates of all matrices but the first and the last; "
        "AdamW does the rest.",
    ),
    "lr": typer.Option("--lr", help="Peak learning rate. Without it: the optimizer's usual one."),
    "weight_decay": typer.Option("--weight-decay", help="Decay of the weights. Without it: the optimizer's usual one."),
    "runs": typer.Option("--runs", help="Timed runs for each latency."),
    "run_code": typer.Option(
        "--run-code", help="Run the code of a folder that slimkit did not write, in a sandbox without labels and files."
    ),
    "allow_weaker_sandbox": typer.Option(
        "--allow-weaker-sandbox", help="Run such code though a wall of the sandbox can't be put up here."
    ),
    "install_requirements": typer.Option(
        "--install-requirements",
        help="Install the wheels that such a folder's requirements.txt names into a throwaway environment.",
    ),
    "max_memory": typer.Option("--max-memory", metavar="SIZE", help="Memory that such code may use."),
    "data": _shared(
        "--data",
        help="Folder with a folder per class (in train/ and val/ or test/, or to be split), the same as a .zip, or the "
        "name of a data set: digits100, cifar100, imagenette. Without it: what the model was made with, else "
        "digits100, which needs no network.",
    ),
    "image_size": _shared(
        "--image-size",
        parser=size,
        metavar="PIXELS",
        help="Side of the square input, or height and width as 192x320. Without it: what the model or data want, else "
        "224.",
    ),
    "resize": _shared(
        "--resize",
        parser=size,
        metavar="PIXELS",
        help="Shorter side before the crop, or height and width that are covered. Without it: 256/224 of the image "
        "size.",
    ),
    "device": device_flag("Where to compute."),
    "seed": _shared("--seed", help="Of everything random."),
    "threads": _shared("--threads", help="CPU threads. Without it: as many as there are cores free at the start."),
}


HOW_TO_RUN: dict[str, Any] = {
    "json": _shared(
        "--json", help="Print one JSON object and nothing else on stdout; a failure gives one with error and hint."
    ),
    "quiet": _shared("--quiet", "-q", help="No logs, bars or tables: print the path of the result alone."),
    "debug": _shared("--debug", help="Log more, and show the traceback of a failure."),
}


def config_flag(options_type: type) -> Any:
    """-c/--config for a command whose options are `options_type`. Eager: the other flags' defaults come from it."""

    def callback(context: typer.Context, value: str | None) -> str | None:
        load_defaults(context, options_type, value)
        return value

    text = "Take options from this file; flags beat it. Every command leaves such a file beside its result."
    return _shared("--config", "-c", metavar="FILE.yaml", help=text, callback=callback, is_eager=True)
