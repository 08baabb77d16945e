"""A model as one ONNX file, checked against the model itself in ONNX Runtime."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimkit.core.data import ImageSet
from slimkit.core.export.agreement import Agreement
from slimkit.core.export.check import LogitCheck, check_answers, check_logits
from slimkit.core.export.convert import onnx_kind, to_onnx
from slimkit.core.export.exporter import OPSET
from slimkit.core.files import write_atomically
from slimkit.core.folder import Classifier
from slimkit.core.models.lineage import recorded_data
from slimkit.core.models.resolve import is_folder, open_data_for, open_folder, open_model_and_data
from slimkit.core.options import ExportOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.run import checked


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it agrees."""

    path: Path
    kind: str  # "float", "int8 (QDQ)", or "int8 weights, float activations"
    opset: int
    size: float  # MB
    checks: tuple[LogitCheck, ...]
    agreement: Agreement

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {**asdict(self), "path": str(self.path)}


@checked
def run_export(options: ExportOptions, progress: Progress = silent) -> ExportReport:
    """Write the model of `options` as ONNX. Raises MissedError, and writes nothing, where its logits disagree."""
    if is_folder(options.model):
        classifier, data = open_folder(options, may_resize=True), None
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
