"""The numbers of int8 layers: read out of a classifier, and put into one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slimkit.core.folder import Classifier
from slimkit.core.quantization.weights.per_channel import fit_biases, round_bias
from slimkit.standalone.model import QuantizedConv2d, QuantizedLinear, pack


@dataclass(frozen=True)
class RoundedLayer:
    """What an int8 layer computes with."""

    codes: Tensor  # int8 [out, in / groups, ...]
    scale: Tensor  # float32 [out]
    bias: Tensor  # float32 [out]

    @property
    def weight(self) -> Tensor:
        """The weight that the codes stand for: float32 [out, in / groups, ...]."""
        return self.codes.float() * self.scale.view(-1, *[1] * (self.codes.ndim - 1))


def read_rounded(made: Classifier) -> dict[str, RoundedLayer]:
    """The layers of an int8 classifier that have int8 weights, by name, in the order in which they run."""
    found = {}
    for name, layer in made.module.named_modules():
        if isinstance(layer, QuantizedConv2d | QuantizedLinear):
            state = layer.state_dict()
            found[name] = RoundedLayer(layer.weight_codes(), state["weight_scale"], state["bias"])
    return {layer.name: found[layer.name] for layer in made.architecture.layers if layer.name in found}


def replace_rounded(made: Classifier, layers: Mapping[str, RoundedLayer]) -> Classifier:
    """`made` with the numbers of `layers` in place of its own, and all its scales of activations.

    In a static network each bias is rounded to a multiple of the sums' scale, and that is raised where an int32 would
    not hold the bias: runtimes add it as one.
    """
    module = copy.deepcopy(made.module)
    state = module.state_dict()
    for name, layer in layers.items():
        input_scale, is_packed = _input_scale(made, state, name), state[f"{name}.weight"].dtype == torch.uint8
        codes, scale, bias = layer.codes, layer.scale, layer.bias
        if input_scale is not None:
            codes, scale = fit_biases(codes, scale, bias, input_scale)
            bias = round_bias(bias, input_scale, scale)
        state[f"{name}.weight"] = pack(codes) if is_packed else codes
        state[f"{name}.weight_scale"], state[f"{name}.bias"] = scale, bias
    module.load_state_dict(state)
    return dataclasses.replace(made, module=module)


def _input_scale(made: Classifier, state: Mapping[str, Tensor], name: str) -> Tensor | None:
    """The scale of the codes that the layer reads, which layers without a scale of their own hand on; else None."""
    inputs = {layer.name: layer.inputs for layer in made.architecture.layers}
    source = inputs[name][0]
    while source in inputs and f"{source}.output_scale" not in state:
        source = inputs[source][0]
    return state.get(f"{source}.output_scale")
