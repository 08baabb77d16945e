"""What each stage can be told: the options of the commands, and the sections of a recipe, with their defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slimkit.core.sizes import Size

Device = Literal["auto", "cpu", "cuda", "mps"]
Optimizer = Literal["sgd", "adam", "adamw", "muon"]
Flip = Literal["none", "random", "alternate"]  # of training images
Scheme = Literal["static", "dynamic"]
Importance = Literal["error", "l1", "l2", "bn_scale", "taylor", "fpgm", "random"]
Scope = Literal["local", "global", "isomorphic"]
Target = Literal["fp32", "int8"]
Method = Literal["kd", "dkd", "dist", "standardized"]  # of distillation: see core/distillation/losses.py

WEIGHT_BITS = (2, 3, 4, 5, 6, 8)  # that weights can be quantized to
WeightBits = int | Literal["auto"]
OF_ONE_RUN = ("force", "resume")  # options that are said anew each time
DISTILL_EPOCHS = 5
DEFAULT_RATE = 0.3  # of a pruning that is given no budget
BUDGETS = ("rate", "macs", "params", "latency", "max_drop")  # of a pruning: at most one is given
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Calibration = Literal["minmax", "percentile", "mse"]
Objective = Literal["score", "size", "latency"]
Backend = Literal["torch", "compile", "onnxruntime", "openvino"]


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Shared by every stage that makes a model."""

    data: str | None = (
        None  # folder, .zip, or the name of a data set; None: what the model was made with, else digits100
    )
    image_size: Size | None = None  # pixels; None: what the model or the data set wants, else 224
    resize: Size | None = None  # pixels, of a square of the shorter side; None: 256/224 of the image size
    force: bool = False  # replace what is there
    seed: int = 0
    threads: int | None = None  # of this process; None: see `load.free_threads`


@dataclass(frozen=True, kw_only=True)
class NamedModelOptions:
    """What is said of a model that is no folder: a folder says it itself."""

    weights: Path | None = None  # a checkpoint
    weights_key: str | None = None  # of the state dict in a file with several; None: the likeliest
    new_head: bool = False  # a classifier for another number of classes starts from random
    pretrained: bool = False  # the library's ImageNet weights
    classes: Path | None = None  # a name per line, in the order of the logits; None: the data's classes
    mean: tuple[float, ...] | None = None  # of each channel, of values from 0 to 1; None: ImageNet's
    std: tuple[float, ...] | None = None
    interpolation: Interpolation | None = None  # of the images; None: bilinear
    model_args: str | None = None  # JSON object: what the user's own class or function takes
    output_index: int | None = None  # which of several outputs of the user's own network are the logits


OF_NAMED_MODELS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(NamedModelOptions)}


@dataclass(frozen=True, kw_only=True)
class ModelOptions(CommonOptions, NamedModelOptions):
    """Shared by every stage that starts from a model."""

    model: str  # a model folder, the name of a network, or one of the user's own; see `models/own.py`

    def naming(self, model: str, weights: Path | None, pretrained: bool = False) -> ModelOptions:
        """The same with another model, of which no more is said."""
        said = OF_NAMED_MODELS | {"weights": weights, "pretrained": pretrained}
        return dataclasses.replace(self, model=model, **said)


def plain_options(options: CommonOptions) -> dict[str, Any]:
    """The options as YAML and JSON values, but those OF_ONE_RUN: to repeat it must not overwrite unasked."""
    return {name: _plain(value) for name, value in dataclasses.asdict(options).items() if name not in OF_ONE_RUN}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class LongRunOptions:
    """Shared by the stages that train for long."""

    minutes: float | None = None  # in place of epochs
    checkpoint_minutes: float = 5.0  # between two checkpoints; 0: as often as can be
    resume: bool = False  # go on from the last checkpoint
    ema: float | None = None  # decay of a moving average of the weights, which is what is evaluated and kept
    flip: Flip = "random"  # where a mirror image is of the same class
    min_crop: float | None = None  # share of an image's area that is seen at least; None: a part near its centre
    cutout: float = 0.0  # side of a square that is hidden, as a share of the image's sides
    mixup: float = 0.0  # alpha of the Beta distribution that shares are drawn from; 0: without
    cutmix: float = 0.0  # likewise
    plot: bool = False  # the course as a picture, in OUTPUT.curves.png
    tensorboard: bool = False  # the course in OUTPUT.tensorboard/ too


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ModelOptions, LongRunOptions):
    """`slimkit train`."""

    model: str = "resnet18"
    output: Path = Path("runs/train")
    width: int | None = None  # of slimresnet18's first layer
    epochs: int | None = None  # None: enough for the data set (stated in the log)
    batch_size: int = 128
    optimizer: Optimizer = "adamw"
    lr: float | None = None  # peak learning rate; None: the optimizer's usual one
    weight_decay: float | None = None  # None: the optimizer's usual one
    label_smoothing: float = 0.1
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class PruneOptions(ModelOptions):
    """`slimkit prune`."""

    model: str = "runs/train"
    output: Path = Path("runs/prune")
    # the budget: one of BUDGETS; none of them: the rate DEFAULT_RATE
    rate: float | None = None  # share of the channels to lose
    macs: float | None = None  # up to 1: the share to keep; else a number
    params: float | None = None  # up to 1: the share to keep; else a number
    latency: str | None = None  # of a batch on this CPU, with a unit: 4ms
    max_drop: float | None = None  # points of top-1 accuracy on held-out training images
    target_machine: Path | None = None  # the file of another one, which the latency is for; see pruning/cost/machine.py
    target: Target = "fp32"  # what the latency is measured in, and widths are rounded for
    batch_size: int = 1  # of the latency
    depth: bool = False  # remove whole residual blocks too, where that costs less than channels
    steps: int = (
        1  # in which a rate, MACs or parameters are reached; each scores the network that the last one repaired
    )
    importance: Importance = "error"
    scope: Scope | None = None  # what is ranked together; None: local for a rate, which every group loses, else global
    max_rate: float = 0.9  # of a group's channels, where groups are ranked together
    round_to: str = "auto"  # widths are multiples of it; none; auto: of the kernels' step on this CPU
    reconstruct: bool = True  # solve every layer anew after the cut
    reconstruction_images: int = 4096
    calibration_images: int = 2048  # training images for the recalibration of BatchNorm, where nothing is reconstructed
    tune_minutes: float = 0.0  # without labels, after the repair; for --max-drop of every network that is tried
    finetune_epochs: int = 0  # on the labels, after that; likewise
    sensitivity: bool = False  # prune nothing: report what each group would cost and save
    use_sensitivity: Path | None = None  # the JSON of such a report, for the choice of widths
    device: Device = "auto"  # of the fine-tuning

    @property
    def budgets(self) -> list[str]:
        """The names of those that are given."""
        return [name for name in BUDGETS if getattr(self, name) is not None]


@dataclass(frozen=True, kw_only=True)
class DistillOptions(ModelOptions, LongRunOptions):
    """`slimkit distill`."""

    model: str = "runs/prune"
    output: Path = Path("runs/distill")
    teacher: str | None = None  # model folder or name; None: the model that the student was cut from
    teacher_weights: Path | None = None
    epochs: int | None = None  # None: DISTILL_EPOCHS
    batch_size: int = 128
    optimizer: Optimizer = "muon"
    lr: float | None = None  # None: the optimizer's usual one; so for the next
    weight_decay: float | None = None
    method: Method = "kd"
    temperature: float = 4.0
    alpha: float = 0.9  # weight of the teacher's loss; the labels' has 1 - alpha
    views: int | None = None  # ways in which each image is augmented, epoch by epoch in turn; None: anew each time
    control: int = 0  # seeds with which it is held against the same training without a teacher
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(ModelOptions):
    """`slimkit quantize`."""

    model: str = "runs/distill"
    output: Path = Path("submission")
    scheme: Scheme = "static"
    calibration: Calibration = "mse"  # how a range is chosen from the values seen; see `observe_ranges`
    calibration_images: int = 512
    weight_bits: WeightBits = 8  # one of WEIGHT_BITS; the first and the last layer keep 8. auto: see quantization/bits/
    max_size: str | None = None  # of the weights file, such as 2MB, for which auto chooses the bits of each layer
    compress_weights: bool = True  # store the weights coded by their frequencies, with the same answers
    reduce_range: bool | None = (
        None  # weights of 7 bits, whose sums can't saturate on x86 CPUs without VNNI; None: where this CPU is one
    )
    qat_epochs: int = 0  # of fine-tuning through the rounding
    max_drop: float | None = None  # points of accuracy on the held-out images; layers stay in float to keep to it
    min_agreement: float = 50.0  # % of the calibration images that must keep their answer
    device: Device = "auto"  # of the fine-tuning


@dataclass(frozen=True, kw_only=True)
class GoalOptions:
    """`slimkit compress --objective`: what a search for the recipe's MACs and bits is to find."""

    objective: Objective = "score"
    min_accuracy: str = "95%"  # of the baseline's on held-out training images; without %: points
    minutes: float = 60.0  # for all but the baseline's own training


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """`slimkit export`."""

    model: str = "submission"
    output: Path = Path("model.onnx")


@dataclass(frozen=True, kw_only=True)
class SandboxOptions:
    """What may be done with folders that slimkit did not write."""

    run_code: bool = False  # behind walls
    allow_weaker_sandbox: bool = False  # where a wall can't be put up
    install_requirements: bool = False  # into a throwaway environment
    max_memory: str = "4GiB"  # that such code may use


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(ModelOptions, SandboxOptions):
    """`slimkit benchmark`."""

    model: str = "submission"
    others: tuple[str, ...] = ()  # more models
    baseline: str | None = None  # None: the model it came from, where that can be found
    backend: tuple[Backend, ...] = ("torch", "onnxruntime")  # each model runs in all, the baseline in the first
    batch_size: int = 1
    restarts: int = 3  # of each process, after its first start, at least
    min_seconds: float = 10.0  # of samples of each candidate, unless `precision` is reached before
    precision: float = 2.0  # % of a ratio: the width of its 95 % interval
    streams: int = 1  # processes side by side, whose throughput is measured, too
    plot: bool = False
    layer_times: bool = False  # no comparison: how long each layer of the models takes by itself
    widths: bool = False  # with that: at all widths that pruning may give it, for `PruneOptions.target_machine`
    output: Path = Path("benchmark.json")

    @property
    def beside(self) -> tuple[Path, Path]:
        """The files beside the output: every run that was timed, and the picture of them."""
        return self.output.with_name(f"{self.output.name}.samples.npz"), self.output.with_name(
            f"{self.output.name}.png"
        )


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(ModelOptions, SandboxOptions):
    """`slimkit score`."""

    model: str = "submission"
    others: tuple[str, ...] = ()  # more models: all are ranked
    baseline: str | None = None  # None: the model it came from, where that can be found
    baseline_weights: Path | None = None  # of a baseline that is named
    baseline_pretrained: bool = False
    baseline_size: float | None = None  # MB
    baseline_latency: float | None = None  # ms
    baseline_accuracy: float | None = None  # %
    min_accuracy: float | None = None  # %; None: 95 % of the baseline's
    runs: int = 100
    output: Path = Path("results.json")
    verify: Path | None = None  # results of an earlier run, which are measured again
    details: Path | None = None  # folder for the accuracy of each class, and what was taken for what
    device: Device = "auto"  # of the accuracy
