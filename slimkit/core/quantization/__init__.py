"""From a float network to an int8 one: lowering, weights, calibration."""

from slimkit.core.quantization.convert import QuantizeResult, folded_layers, quantize
from slimkit.core.quantization.ranges.calibrate import Method

__all__ = ["Method", "QuantizeResult", "folded_layers", "quantize"]
