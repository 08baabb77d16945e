"""The biases of static int8 layers: corrected for what rounding the weights took, and rounded themselves."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from slimkit.core.progress import Progress
from slimkit.core.quantization.lowering.lower import WEIGHTED, Operation, scale_owners
from slimkit.core.quantization.ranges.calibrate import observe_means
from slimkit.core.quantization.weights.per_channel import fit_biases, fold_batch_norm, round_bias
from slimkit.standalone.model import pack, unpack

State = Mapping[str, Tensor]


def correct_biases(
    traced: fx.GraphModule, operations: list[Operation], state: State, batches: Sequence[Tensor], progress: Progress
) -> dict[str, Tensor]:
    """Biases with what rounding the weights took from each channel's mean (Nagel et al. 2019, arXiv:1906.04721).

    batches: normalized float32 images [n, 3, h, w] each. The result has the keys that the biases have in `state`.
    """
    nodes = {"input": next(iter(traced.graph.nodes))} | {o.name: o.node for o in operations}
    layers = [o for o in _int8_layers(operations) if "dimensions" not in o.options]
    means = observe_means(traced, {nodes[o.inputs[0]] for o in layers}, batches, progress)
    biases = {}
    for operation in layers:
        name, mean = operation.name, means[nodes[operation.inputs[0]]]
        assert operation.module is not None
        weight, _ = fold_batch_norm(operation.module, operation.batch_norm)
        codes = unpack(state[f"{name}.weight"], weight.shape)
        lost = weight.cpu() - codes * state[f"{name}.weight_scale"].double().view(-1, *[1] * (weight.ndim - 1))
        lost = lost.flatten(2).sum(2) if lost.ndim > 2 else lost  # [out, in / groups]
        groups = mean.numel() // lost.shape[1]
        inputs = mean.view(groups, -1).repeat_interleave(len(lost) // groups, 0)  # [out, in / groups]
        biases[f"{name}.bias"] = (state[f"{name}.bias"] + (lost * inputs).sum(1)).float()
    return biases


def round_biases(operations: list[Operation], state: State) -> dict[str, Tensor]:
    """All biases of int8 layers as runtimes add them, and the weights and scales that hold them: see `fit_biases`."""
    owners = scale_owners(operations)
    scales = {owners[o.name]: state[f"{o.name}.output_scale"] for o in operations if o.has_scale}
    rounded = {}
    for operation in _int8_layers(operations):
        name, input_scale = operation.name, scales[owners[operation.inputs[0]]]
        assert isinstance(operation.module, nn.Conv2d | nn.Linear)
        stored, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        codes = unpack(stored, operation.module.weight.shape)
        codes, scale = fit_biases(codes, state[f"{name}.weight_scale"], bias, input_scale)
        rounded[f"{name}.weight"] = pack(codes) if stored.dtype == torch.uint8 else codes
        rounded[f"{name}.weight_scale"], rounded[f"{name}.bias"] = scale, round_bias(bias, input_scale, scale)
    return rounded


def _int8_layers(operations: list[Operation]) -> list[Operation]:
    return [o for o in operations if o.type in WEIGHTED and not o.is_float]
