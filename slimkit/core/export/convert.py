"""A classifier as ONNX: int8 by slimkit's own writer, float by torch's exporter."""

from __future__ import annotations

import onnx
import torch

from slimkit.core.errors import ModelError, first_line
from slimkit.core.export.exporter import EXAMPLES, export_by_torch
from slimkit.core.export.int8_graph import build_onnx
from slimkit.core.folder import Classifier


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


def onnx_kind(classifier: Classifier) -> str:
    """What the ONNX form of `classifier` computes in."""
    schemes = {layer.quantization["scheme"] for layer in classifier.architecture.layers if layer.quantization}
    return "int8 (QDQ)" if "static" in schemes else "int8 weights, float activations" if schemes else "float"


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
