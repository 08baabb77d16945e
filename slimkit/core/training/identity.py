"""What a training hangs on: a checkpoint tells it, and is gone on with by the same training alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from slimkit.core.data import ImageSet
from slimkit.core.device import resolve_device
from slimkit.core.digests import weights_digest
from slimkit.core.environment import describe_environment
from slimkit.core.errors import UsageError
from slimkit.core.options import DistillOptions, TrainOptions, plain_options
from slimkit.core.training.layout import memory_format
from slimkit.core.training.ranks import Ranks

log = logging.getLogger("slimkit")

FREE = (
    "output",
    "checkpoint_minutes",
    "threads",
    "plot",
    "tensorboard",
)  # options that may change; threads are compared as what was taken
Run = dict[str, Any]  # texts, numbers and lists


def describe_run(
    options: TrainOptions | DistillOptions,
    data: ImageSet,
    module: nn.Module,
    teacher: nn.Module | None = None,
    *,
    ranks: Ranks,
) -> Run:
    """The training of `module` as it starts: all that its last weights hang on, save the choices of `Choices`."""
    machine = describe_environment()
    return {
        "options": {name: value for name, value in plain_options(options).items() if name not in FREE},
        "threads": options.threads,
        "inputs": {
            "training images": data.train.digest(),
            "held-out images": data.holdout.digest(),
            "starting weights": weights_digest(module),
            "teacher's weights": None if teacher is None else weights_digest(teacher),
            "device": str(resolve_device(options.device)),
            "memory format": str(memory_format(module)),
        },
        "machine": {
            "torch": str(machine["versions"]["torch"]),
            "CPU": machine["cpu"]["model"],
            "The number of processes": ranks.count,
        },
    }


def require_same(kept: Run, now: Run, kept_threads: int, folder: Path) -> None:
    """Raise UsageError that names what differs between the run of a checkpoint in `folder` and this one.

    Another machine or number of processes is no hindrance, but said: sums are rounded otherwise.
    """
    hint = "Repeat the options and inputs that it was made with, or start over: -f/--force without --resume."
    for name in {**kept["options"], **now["options"]}:
        before, after = kept["options"].get(name), now["options"].get(name)
        if before != after:
            flag = name.upper() if name == "model" else f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} is {_shown(after)}, and was {_shown(before)} in the checkpoint in {folder}.", hint
            )
    if now["threads"] not in (None, kept_threads):
        raise UsageError(f"--threads is {now['threads']}, and was {kept_threads} in the checkpoint in {folder}.", hint)
    for name, value in now["inputs"].items():
        if value != kept["inputs"].get(name):
            raise UsageError(f"The {name} of the checkpoint in {folder} were others than now.", hint)
    for name, value in now["machine"].items():
        if value != (before := kept["machine"].get(name)):
            log.warning("%s was %s: the weights will not be those of an uninterrupted run, bit for bit.", name, before)


def _shown(value: object) -> str:
    return "not given" if value is None else str(value)
