"""What can be told of options before any file is opened: numbers out of range, and options that exclude each other."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from slimkit.core.bytes import parse_bytes
from slimkit.core.errors import UsageError
from slimkit.core.options import (
    WEIGHT_BITS,
    BenchmarkOptions,
    DistillOptions,
    GoalOptions,
    ModelOptions,
    PruneOptions,
    QuantizeOptions,
    SandboxOptions,
    ScoreOptions,
    TrainOptions,
)
from slimkit.core.sizes import covers, show_size
from slimkit.core.torchrun import launch

MOST_THREADS, MOST_PIXELS = 1024, 8192


@dataclass(frozen=True)
class Range:
    """The numbers that an option may have."""

    low: float = -math.inf
    high: float = math.inf
    example: str = ""
    above: bool = False  # `low` itself is not among them
    below: bool = False  # `high` itself is not among them

    def __contains__(self, value: float) -> bool:
        high_enough = value > self.low if self.above else value >= self.low
        return high_enough and (value < self.high if self.below else value <= self.high) and math.isfinite(value)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        if self.high == math.inf:
            return low
        return f"{low} and {f'below {self.high:g}' if self.below else f'at most {self.high:g}'}"


EPOCHS, IMAGES, POSITIVE = Range(0, example="5"), Range(1, example="512"), Range(0, above=True)
SHARE = Range(0, 1, "0.3", above=True, below=True)
POINTS = Range(0, 100, "1.0", below=True)  # of accuracy that may be lost
BATCH, RUNS = Range(1, example="8"), Range(1, example="100")

RANGES = {
    "image_size": Range(1, MOST_PIXELS, "224"),
    "resize": Range(1, MOST_PIXELS, "256"),
    "seed": Range(-(2**63), 2**64 - 1, "0", below=True),  # what torch takes
    "output_index": Range(0, example="0"),
    "threads": Range(1, MOST_THREADS, "2"),
    "width": Range(1, 4096, "32"),
    "epochs": EPOCHS,
    "minutes": dataclasses.replace(POSITIVE, example="30"),
    "checkpoint_minutes": Range(0, example="5"),
    "train_epochs": EPOCHS,
    "distill_epochs": EPOCHS,
    "qat_epochs": EPOCHS,
    "finetune_epochs": EPOCHS,
    "tune_minutes": Range(0, 10_000, "5"),
    "batch_size": BATCH,
    "channels": Range(1, 4096, "13"),
    "ema": dataclasses.replace(SHARE, example="0.999"),
    "min_crop": Range(0, 1, "0.25", above=True),
    "cutout": Range(0, 1, "0.25", below=True),
    "mixup": Range(0, 100, "0.2"),
    "cutmix": Range(0, 100, "1"),
    "lr": dataclasses.replace(POSITIVE, example="0.001"),
    "weight_decay": Range(0, example="0.05"),
    "label_smoothing": Range(0, 1, "0.1", below=True),
    "temperature": dataclasses.replace(POSITIVE, example="4"),
    "alpha": Range(0, 1, "0.9"),
    "control": Range(0, 100, "3"),
    "views": Range(1, 1000, "8"),
    "rate": SHARE,
    "max_rate": dataclasses.replace(SHARE, example="0.9"),
    "macs": dataclasses.replace(POSITIVE, example="0.5, the share to keep, or 75e6"),
    "params": dataclasses.replace(POSITIVE, example="0.5, the share to keep, or 2e6"),
    "max_drop": POINTS,
    "min_agreement": Range(0, 100, "95"),
    "reconstruction_images": IMAGES,
    "calibration_images": IMAGES,
    "runs": RUNS,
    "trials": Range(1, 1_000_000, "50"),
    "streams": Range(1, 256, "4"),
    "restarts": Range(0, 1000, "3"),
    "min_seconds": dataclasses.replace(POSITIVE, example="10"),
    "precision": Range(0, 100, "2", above=True),
    "baseline_size": dataclasses.replace(POSITIVE, example="50"),
    "baseline_latency": dataclasses.replace(POSITIVE, example="10"),
    "baseline_accuracy": Range(0, 100, "80", above=True),
}
OF_STAGE = {  # where a stage's option of that name has another range
    (TrainOptions, "batch_size"): Range(2, example="128"),  # BatchNorm wants two images at least
    (DistillOptions, "batch_size"): Range(2, example="128"),
    (QuantizeOptions, "max_drop"): Range(0, 100, "0.5"),
    (ScoreOptions, "min_accuracy"): Range(0, 100, "75"),
}


def check_options(options: Any, source: str | None = None) -> None:
    """Raise UsageError for the first of `options` (a dataclass of `core/options.py`) that no run could have.

    source: where a recipe has them, to be named in the error; None: they are flags.
    """
    for field in dataclasses.fields(options):
        _check_number(options, field.name, _flag(field.name, source))
    if isinstance(options, ModelOptions):
        _check_shared(options)
    if isinstance(options, SandboxOptions):
        _check_sandbox(options)
    if isinstance(options, TrainOptions | DistillOptions) and None not in (options.epochs, options.minutes):
        raise UsageError("--epochs and --minutes exclude each other.", "Give one of them.")
    if isinstance(options, PruneOptions):
        _check_prune(options)
    elif isinstance(options, DistillOptions):
        _check_distill(options)
    elif isinstance(options, QuantizeOptions):
        _check_quantize(options)
    elif isinstance(options, BenchmarkOptions):
        if options.widths and not options.layer_times:
            raise UsageError("--widths are those of layers that are timed.", "Give --layer-times, too.")
    elif isinstance(options, ScoreOptions):
        _check_score(options)
    elif isinstance(options, GoalOptions):
        parse_min_accuracy(options.min_accuracy, 100.0)


def _flag(name: str, source: str | None) -> str:
    return f"--{name.replace('_', '-')}" if source is None else f"{source}: {name}"


def _check_number(options: Any, name: str, flag: str) -> None:
    value, allowed = getattr(options, name), OF_STAGE.get((type(options), name), RANGES.get(name))
    if allowed is None or value is None:
        return
    if isinstance(value, tuple) and len(value) != 2:
        raise UsageError(f"{flag} is {show_size(value)}, no height and width.", "Give two numbers, such as 192x320.")
    if all(each in allowed for each in (value if isinstance(value, tuple) else (value,))):
        return
    shown = show_size(value) if isinstance(value, tuple) else value
    raise UsageError(
        f"{flag} is {shown}, which is not {allowed}.", f"Give a number that is {allowed}, such as {allowed.example}."
    )


def _check_shared(options: ModelOptions) -> None:
    _check_normalization(options)
    _check_weights(options)
    if options.weights is not None and options.pretrained:
        raise UsageError("--weights and --pretrained exclude each other.", "Give one of them.")
    crop, whole = options.image_size, options.resize
    if crop is not None and whole is not None and not covers(whole, crop):
        raise UsageError(
            f"An image size of {show_size(crop)} can't be cut from {show_size(whole)} pixels.",
            "Give a --resize that is not smaller than --image-size.",
        )


def _check_weights(options: ModelOptions) -> None:
    if options.weights is None:
        for name, given in (("--weights-key", options.weights_key), ("--new-head", options.new_head)):
            if given:
                raise UsageError(f"{name} says how --weights are read, which is not given.", "Give --weights FILE.")


def _check_normalization(options: ModelOptions) -> None:
    for name, numbers in (("mean", options.mean), ("std", options.std)):
        if numbers is None:
            continue
        if not numbers or not all(map(math.isfinite, numbers)) or (name == "std" and min(numbers) <= 0):
            wanted = "numbers above 0" if name == "std" else "numbers"
            shown = " ".join(f"{number:g}" for number in numbers)
            raise UsageError(f"--{name} {shown} are no {wanted}.", f"Give one for each channel: --{name} 0.5 0.5 0.5.")
    if options.mean and options.std and len(options.mean) != len(options.std):
        raise UsageError(
            f"--mean has {len(options.mean)} numbers and --std {len(options.std)}.", "Give one for each channel."
        )


def _check_prune(options: PruneOptions) -> None:
    given = [f"--{name.replace('_', '-')}" for name in options.budgets]
    if options.steps not in Range(1, 1000) or (options.steps > 1 and {"latency", "max_drop"} & {*options.budgets}):
        raise UsageError(
            f"--steps {options.steps} can't be done.", "Give 1 or more, with --rate, --macs or --params as the budget."
        )
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are several budgets.", "Give one of them.")
    if options.use_sensitivity is not None and options.budgets in ([], ["rate"]):
        raise UsageError(
            "--use-sensitivity says which groups lose how much, and so does --rate.",
            "Give --macs, --params, --latency or --max-drop as the budget.",
        )
    if options.depth and (options.budgets in ([], ["rate"]) or options.use_sensitivity or options.sensitivity):
        other = "--sensitivity" if options.sensitivity else "--use-sensitivity" if options.use_sensitivity else "--rate"
        raise UsageError(
            f"--depth removes blocks, and {other} is of single groups of channels.",
            "Give --macs, --params, --latency or --max-drop as the budget, and no report.",
        )
    if options.target_machine is not None and options.latency is None:
        raise UsageError("--target-machine is for a --latency, which is not given.", "Give one, such as --latency 4ms.")
    if options.target_machine is not None and options.sensitivity:
        raise UsageError("--sensitivity measures this machine, and --target-machine is another.", "Leave one out.")
    if not _is_round_to(options.round_to):
        raise UsageError(f"--round-to {options.round_to} is no multiple.", "Give auto, none, or a number such as 16.")
    if options.latency is not None:
        # here, as it comes with torch, which takes a second to load
        from slimkit.core.pruning.choose.budgets import parse_latency

        parse_latency(options.latency)


def _is_round_to(text: str) -> bool:
    return text in ("auto", "none") or (text.isascii() and text.isdecimal() and int(text) > 0)


def _check_distill(options: DistillOptions) -> None:
    if options.teacher is None and options.teacher_weights is not None:
        raise UsageError("--teacher-weights are of no teacher.", "Name their network with --teacher, as resnet18.")
    for name in ("control", "views"):
        if getattr(options, name) and launch().count > 1:
            raise UsageError(f"--{name} is for one process.", "Leave it out under torchrun.")
    if options.views and (options.mixup or options.cutmix):
        raise UsageError(
            "--views and images that are mixed exclude each other: two that are mixed are hardly ever so again.",
            "Leave out --views, or --mixup and --cutmix.",
        )
    if options.method == "dkd" and (options.mixup or options.cutmix):
        raise UsageError(
            "--method dkd sets the right class apart, and mixed images have two.",
            "Leave --mixup and --cutmix out, or give another --method.",
        )


def _check_quantize(options: QuantizeOptions) -> None:
    if options.weight_bits not in (*WEIGHT_BITS, "auto"):
        known = ", ".join(map(str, WEIGHT_BITS))
        raise UsageError(f"--weight-bits {options.weight_bits} can't be had.", f"Give one of {known} or auto.")
    _check_max_size(options)
    if options.qat_epochs and options.scheme != "static":
        raise UsageError("--qat-epochs trains for fixed ranges of activations.", "Leave it out, or --scheme static.")


def _check_max_size(options: QuantizeOptions) -> None:
    if options.max_size is None:
        if options.weight_bits == "auto":
            raise UsageError("--weight-bits auto is for a size, which is not given.", "Give --max-size, such as 2MB.")
        return
    if options.weight_bits != "auto":
        raise UsageError(
            f"--max-size chooses the bits of each layer, and --weight-bits is {options.weight_bits}.",
            "Give --weight-bits auto.",
        )
    parse_bytes(options.max_size)
    if options.max_drop is not None:
        raise UsageError("--max-size and --max-drop are several budgets.", "Give one of them.")
    if not options.compress_weights:
        raise UsageError("--max-size counts coded weights.", "Leave out --no-compress-weights.")


def parse_min_accuracy(text: str, baseline: float) -> float:
    """The accuracy in % that `text` asks for: a share of the baseline's ("95%"), or points ("60").

    Raises UsageError.
    """
    number, share, rest = text.strip().partition("%")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if rest or not 0 <= value <= 100:
        raise UsageError(
            f"--min-accuracy {text} is no accuracy.", "Give 95%, of the baseline's, or points of accuracy such as 60."
        )
    return baseline * value / 100 if share else value


def _check_sandbox(options: SandboxOptions) -> None:
    parse_bytes(options.max_memory)
    if options.install_requirements and not options.run_code:
        raise UsageError("--install-requirements is for code that is run.", "Give --run-code, too.")


def _check_score(options: ScoreOptions) -> None:
    if options.verify and options.others:
        raise UsageError("--verify measures one results.json again, not several models.", "Leave the models out.")
    if options.details and (options.verify or options.others):
        other = "with --verify" if options.verify else "of several models"
        raise UsageError(f"--details can't be written {other}.", "Score one model by itself with --details FOLDER.")
