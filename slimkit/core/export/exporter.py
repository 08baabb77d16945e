"""torch's own ONNX exporter."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from slimkit.core.errors import ModelError
from slimkit.core.quiet import quiet

OPSET = 18
EXAMPLES = 2  # images in an example: torch would take a batch of one for a constant


def export_by_torch(
    module: nn.Module, examples: Sequence[Tensor], dynamic_shapes: Any, **names: Any
) -> onnx.ModelProto:
    """`module` as ONNX, for inputs like `examples`. Raises ModelError where torch gives nothing, and what torch raises.

    dynamic_shapes: as for `torch.onnx.export`. names: its `input_names` and `output_names`.
    """
    with quiet(), redirect_stdout(io.StringIO()):  # where the exporter tells of its steps
        program = torch.onnx.export(
            module,
            tuple(examples),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            dynamic_shapes=dynamic_shapes,
            verbose=False,
            **names,
        )
    if program is None:
        raise ModelError("torch gave no ONNX program for the model.", "Install a newer torch.")
    return program.model_proto
