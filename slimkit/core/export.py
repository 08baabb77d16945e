"""A model as one ONNX file, checked against the model itself in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from slimkit.core.data import CalibrationBatches, ImageSet, random_images
from slimkit.core.errors import MissedError, ModelError, first_line
from slimkit.core.files import write_atomically
from slimkit.core.folder import Classifier, read_folder
from slimkit.core.models.lineage import recorded_data
from slimkit.core.models.resolve import is_folder, open_data_for, open_model_and_data
from slimkit.core.options import ExportOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.quantization.onnx_exporter import EXAMPLES, OPSET, export_by_torch
from slimkit.core.quantization.onnx_graph import build_onnx
from slimkit.core.quantization.rounded import read_rounded
from slimkit.core.run import checked
from slimkit.standalone.model import can_saturate, cpu_arithmetic

BATCH_SIZES = (1, 2, 7)
BATCH = 50  # images at once, where many are compared
FLOAT_TOLERANCE = 1e-3  # of the largest logit
AGREEMENT = 99.5  # % of the images that must have the same best class; int8 logits differ where sums are near a tie
IMAGES = 1000


@dataclass(frozen=True)
class LogitCheck:
    """ONNX Runtime's logits against the model's own, on random images."""

    batch_size: int
    relative_error: float  # norm of the difference over the norm of the model's logits
    largest_error: float  # largest difference over the largest logit
    same_top1: int  # images whose best class is the same


@dataclass(frozen=True)
class AgreementCheck:
    """To how many images ONNX Runtime gives the model's own answer."""

    images: str  # what they are
    count: int
    agreement: float  # % with the same best class


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it agrees."""

    path: Path
    kind: str  # "float", "int8 (QDQ)", or "int8 weights, float activations"
    opset: int
    size: float  # MB
    checks: tuple[LogitCheck, ...]
    agreement: AgreementCheck

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {**asdict(self), "path": str(self.path)}


@checked
def run_export(options: ExportOptions, progress: Progress = silent) -> ExportReport:
    """Write the model of `options` as ONNX. Raises MissedError, and writes nothing, where its logits disagree."""
    if is_folder(options.model):
        classifier, data = read_folder(Path(options.model)), None
        if options.data or recorded_data(classifier):
            data = open_data_for(classifier, options, progress=progress)
    else:
        classifier, data = open_model_and_data(options, progress=progress)
    return export_onnx(classifier, options.output, data, progress)


def export_onnx(
    classifier: Classifier, path: Path, data: ImageSet | None = None, progress: Progress = silent
) -> ExportReport:
    """Write `classifier` as ONNX to `path`; an existing file is replaced.

    data: on whose training images both are compared; None: on random ones.
    Raises MissedError, and writes nothing, where the logits disagree.
    """
    content = to_onnx(classifier)
    checks = check_logits(classifier, content)
    agreement = check_answers(classifier, content, data, progress)
    write_atomically(path, content)
    return ExportReport(path, onnx_kind(classifier), OPSET, len(content) / 2**20, checks, agreement)


def onnx_kind(classifier: Classifier) -> str:
    """What the ONNX form of `classifier` computes in."""
    schemes = {layer.quantization["scheme"] for layer in classifier.architecture.layers if layer.quantization}
    return "int8 (QDQ)" if "static" in schemes else "int8 weights, float activations" if schemes else "float"


def to_onnx(classifier: Classifier) -> bytes:
    """The bytes of an ONNX file: input "input" [batch, 3, h, w] float32, output "logits", any batch size."""
    if classifier.architecture.is_quantized:
        model = build_onnx(classifier.architecture, classifier.module)
    else:
        model = _trace_float(classifier)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"The model makes no valid ONNX graph: {first_line(error)}",
            "Use the model folder itself, or make it again from the float model.",
        ) from error
    content: bytes = model.SerializeToString()
    return content


def check_logits(classifier: Classifier, content: bytes) -> tuple[LogitCheck, ...]:
    """Compare the ONNX file `content` with the model at several batch sizes.

    Raises MissedError where a float file's logits disagree; those of int8 are judged by `check_answers`.
    """
    session = _session(content)
    generator = torch.Generator().manual_seed(0)
    checks = []
    for batch_size in BATCH_SIZES:
        images = torch.randn(batch_size, *classifier.architecture.input_shape, generator=generator)
        with torch.no_grad():
            ours = classifier.module(images)
        theirs = torch.from_numpy(session.run(None, {"input": images.numpy()})[0])
        checks.append(_compare(ours, theirs))
    if not classifier.architecture.is_quantized:
        _require_equal(checks)
    return tuple(checks)


def check_answers(
    classifier: Classifier, content: bytes, data: ImageSet | None = None, progress: Progress = silent
) -> AgreementCheck:
    """Compare the best classes of up to 1,000 training images; of random images, where there are no data.

    Raises MissedError where less than 99.5 % are the same.
    """
    session, same, count = _session(content), 0, 0
    with torch.no_grad(), progress("compare answers", IMAGES) as advance:
        for batch in _images(classifier, data):
            theirs = torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])
            same += int((classifier.module(batch).argmax(1) == theirs.argmax(1)).sum())
            count += len(batch)
            advance(len(batch))
    check = AgreementCheck(f"training images of {data.name}" if data else "random images", count, 100 * same / count)
    if check.agreement < AGREEMENT:
        raise MissedError(
            f"ONNX Runtime answers {check.agreement:.1f} % of {count} {check.images} as the model does "
            f"(at least {AGREEMENT} % is required); nothing was written.",
            _hint_for(classifier),
        )
    return check


def _hint_for(classifier: Classifier) -> str:
    weights = [layer.codes for layer in read_rounded(classifier).values()]
    if onnx_kind(classifier) == "int8 (QDQ)" and cpu_arithmetic().saturates and any(map(can_saturate, weights)):
        return (
            "Its sums saturate on this CPU, which has no VNNI: quantize again with --reduce-range, or export elsewhere."
        )
    return "Try another version of onnxruntime, and report the model."


def _images(classifier: Classifier, data: ImageSet | None) -> Iterable[Tensor]:
    if data is None:
        return torch.split(random_images(classifier.architecture.input_shape, IMAGES), BATCH)
    return CalibrationBatches(data.train, data.preprocessing, IMAGES, seed=1, batch_size=BATCH)


def _compare(ours: Tensor, theirs: Tensor) -> LogitCheck:
    difference, smallest = theirs - ours, torch.finfo(torch.float32).tiny
    return LogitCheck(
        batch_size=len(ours),
        relative_error=float(difference.norm() / ours.norm().clamp(min=smallest)),
        largest_error=float(difference.abs().max() / ours.abs().max().clamp(min=smallest)),
        same_top1=int((ours.argmax(1) == theirs.argmax(1)).sum()),
    )


def _require_equal(checks: list[LogitCheck]) -> None:
    for check in checks:
        if not check.largest_error <= FLOAT_TOLERANCE:  # so that NaN fails too
            raise MissedError(
                f"At batch {check.batch_size} the ONNX file's logits differ from the model's by "
                f"{check.largest_error:.2%} (at most {FLOAT_TOLERANCE:.1%} is allowed); nothing was written.",
                "Try another version of onnxruntime, and report the model.",
            )


def _session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would slow torch's
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _trace_float(classifier: Classifier) -> onnx.ModelProto:
    """Export by torch."""
    example = torch.zeros(EXAMPLES, *classifier.architecture.input_shape)
    return export_by_torch(
        classifier.module.cpu().eval(),
        [example],
        ({0: torch.export.Dim("batch", min=1)},),
        input_names=["input"],
        output_names=["logits"],
    )
