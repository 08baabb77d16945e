"""A model as one ONNX file, and the one comparison of two runtimes' answers."""

from slimkit.core.export.check import check_answers, check_logits
from slimkit.core.export.convert import to_onnx
from slimkit.core.export.run import ExportReport, export_onnx, run_export

__all__ = ["ExportReport", "check_answers", "check_logits", "export_onnx", "run_export", "to_onnx"]
