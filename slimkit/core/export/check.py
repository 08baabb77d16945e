"""Whether ONNX Runtime computes what the model does: its logits, and its answers to many images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnxruntime
import torch
from torch import Tensor

from slimkit.core.data import CalibrationBatches, ImageSet, random_images
from slimkit.core.errors import MissedError
from slimkit.core.export.agreement import AGREEMENT, BATCH, Agreement, compare_logits
from slimkit.core.export.convert import onnx_kind
from slimkit.core.folder import Classifier
from slimkit.core.progress import Progress, silent
from slimkit.core.quantization.weights.rounded import read_rounded
from slimkit.standalone.model import can_saturate, cpu_arithmetic

BATCH_SIZES = (1, 2, 7)
FLOAT_TOLERANCE = 1e-3  # of the largest logit
IMAGES = 1000


@dataclass(frozen=True)
class LogitCheck:
    """ONNX Runtime's logits against the model's own, on random images."""

    batch_size: int
    relative_error: float  # norm of the difference over the norm of the model's logits
    largest_error: float  # largest difference over the largest logit
    same_top1: int  # images whose best class is the same


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
) -> Agreement:
    """Compare the best classes of up to 1,000 training images; of random images, where there are no data.

    Raises MissedError where less than 99.5 % are the same.
    """
    session, ours, theirs = _session(content), [], []
    with torch.no_grad(), progress("compare answers", IMAGES) as advance:
        for batch in _images(classifier, data):
            theirs.append(torch.from_numpy(session.run(None, {"input": batch.numpy()})[0]))
            ours.append(classifier.module(batch))
            advance(len(batch))
    images = f"training images of {data.name}" if data else "random images"
    check = compare_logits(images, torch.cat(ours), torch.cat(theirs))
    if check.agreement < AGREEMENT:
        raise MissedError(
            f"ONNX Runtime answers {check.agreement:.1f} % of {check.count} {images} as the model does "
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
