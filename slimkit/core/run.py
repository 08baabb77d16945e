"""What every command of the core does first: check its options, its outputs and its inputs, in this order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from slimkit.core.checks import check_options
from slimkit.core.device import computing, resolve_device
from slimkit.core.errors import FolderError, UsageError
from slimkit.core.files import require_file
from slimkit.core.folder import METADATA, read_metadata, require_model_output
from slimkit.core.load import free_threads
from slimkit.core.models.own import is_users_code
from slimkit.core.models.resolve import is_folder
from slimkit.core.options import (
    BenchmarkOptions,
    DistillOptions,
    ModelOptions,
    PruneOptions,
    QuantizeOptions,
    TrainOptions,
)
from slimkit.core.torchrun import launch

Run = TypeVar("Run", bound=Callable[..., object])
MAKERS = (TrainOptions, PruneOptions, DistillOptions, QuantizeOptions)  # of model folders
# options that name a file to read
FILES = (
    "weights",
    "teacher_weights",
    "baseline_weights",
    "use_sensitivity",
    "classes",
    "verify",
    "target_machine",
)


def checked(run: Run) -> Run:
    """Make `run(options, …)` check what it is given before it works, with the threads and the seed of `options`.

    Torch's settings and the random states are left as they were found.
    """

    @functools.wraps(run)
    def whole(options: ModelOptions, *args: object, **kwargs: object) -> object:
        check_options(options)
        check_outputs(options)
        check_inputs(options)
        with computing(options.threads or free_threads(), options.seed):
            return run(options, *args, **kwargs)

    return cast(Run, whole)


def check_outputs(options: ModelOptions) -> None:
    """Raise FolderError where what these options are to write can't be written, or must not be replaced.

    Of the processes that torchrun starts the first alone writes, and so looks.
    """
    if not launch().is_first:
        return
    if isinstance(options, MAKERS) and not getattr(options, "sensitivity", False):
        require_model_output(options.output, options.force)
        return
    for file in output_files(options):
        require_file(file, options.force)
        _require_no_input(file, options)


def output_files(options: Any) -> tuple[Path, ...]:
    """The files that a command writes which makes no model folder."""
    if getattr(options, "verify", None) is not None:
        return ()  # it only looks
    output: Path = options.output
    if isinstance(options, PruneOptions):
        return tuple(output.with_name(f"{output.name}.sensitivity.{kind}") for kind in ("json", "png"))
    if isinstance(options, BenchmarkOptions) and not options.layer_times:
        samples, picture = options.beside
        return (output, samples, picture) if options.plot else (output, samples)
    return (output,)


def check_inputs(options: ModelOptions) -> None:
    """Raise for a file, a model or a device that is named and isn't there. The model and the data are opened later."""
    for name in FILES:
        file: Path | None = getattr(options, name, None)
        if file is not None and not file.is_file():
            raise FolderError(f"There is no file {file}.", f"Check the path given with --{name.replace('_', '-')}.")
    for name in ("teacher", "baseline"):
        model: str | None = getattr(options, name, None)
        if model is not None and hasattr(options, f"{name}_weights"):
            _check_weights_of(name, model, options)
    if device := getattr(options, "device", None):
        resolve_device(device)


def _check_weights_of(role: str, model: str, options: ModelOptions) -> None:
    """Raise UsageError where another model that is named would have random weights, or a folder is given others."""
    weights, pretrained = getattr(options, f"{role}_weights"), getattr(options, f"{role}_pretrained", None)
    if is_folder(model):
        if weights is not None:
            raise UsageError(
                f"--{role}-weights goes with a named model; {model} has weights of its own.", "Leave it out."
            )
    elif weights is None and not pretrained and not is_users_code(model):
        others = "" if pretrained is None else f" or --{role}-pretrained"
        raise UsageError(
            f"The {role} {model} would have random weights.",
            f"Give its weights with --{role}-weights FILE{others}, or name a model folder.",
        )


def _require_no_input(file: Path, options: ModelOptions) -> None:
    """Raise FolderError where writing `file` would destroy what the command reads."""
    if not file.exists():
        return
    if any(path.exists() and path.samefile(file) for path in _read_paths(options)):
        raise FolderError(f"{file} is what the command reads, so it is not replaced.", "Give another -o/--output.")
    if (file.parent / METADATA).is_file() and file.name in {*read_metadata(file.parent)["sha256"], METADATA}:
        raise FolderError(f"{file} is part of a model folder, so it is not replaced.", "Give another -o/--output.")


def _read_paths(options: ModelOptions) -> Iterator[Path]:
    for name, value in vars(options).items():
        if name != "output" and isinstance(value, str | Path):
            yield Path(value)
