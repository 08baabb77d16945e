"""From a float network to an int8 one: lowering, weights, calibration."""

from slimkit.core.quantization.calibrate import Method
from slimkit.core.quantization.convert import QuantizeResult, folded_layers, quantize

__all__ = ["Method", "QuantizeResult", "folded_layers", "quantize"]
