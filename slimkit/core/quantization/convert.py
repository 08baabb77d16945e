"""From a float classifier to an int8 one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from slimkit.core.architecture import FORMAT_VERSION, Architecture, Layer
from slimkit.core.data import random_images
from slimkit.core.errors import ModelError, UsageError
from slimkit.core.folder import Classifier
from slimkit.core.progress import Progress, silent
from slimkit.core.quantization.fidelity import DEFAULT_IMAGES, Fidelity, compare, nearest
from slimkit.core.quantization.lowering.lower import (
    PASSING,
    WEIGHTED,
    Operation,
    assign_codes,
    attribute_at,
    fuse_sums,
    lower,
    scale_owners,
)
from slimkit.core.quantization.ranges.calibrate import Method, Range, observe_ranges, scale_and_zero_point
from slimkit.core.quantization.weights.biases import correct_biases, round_biases
from slimkit.core.quantization.weights.per_channel import (
    batch_norm_as_affine,
    fold_batch_norm,
    quantize_weight,
)
from slimkit.core.quantization.weights.saturation import reduced_weight
from slimkit.standalone.model import build_model, pack

Scheme = Literal["static", "dynamic"]
CALIBRATION = "calibration images"
VARY_WITHIN = {  # beyond, these functions change by less than the width of a code, so none is spent there
    "functional.hardsigmoid": (-3.0, 3.0),
    "functional.hardswish": (-3.0, math.inf),
    "functional.sigmoid": (-7.0, 7.0),
    "functional.silu": (-8.0, math.inf),
}


@dataclass(frozen=True)
class QuantizeResult:
    """An int8 classifier, what was left in float, and how near its logits are to the float one's."""

    classifier: Classifier
    notes: tuple[str, ...]  # each layer that computes in float, and why
    fidelity: Fidelity


def quantize(
    classifier: Classifier,
    *,
    scheme: Scheme,
    calibration: Iterable[Tensor] | None,
    method: Method = "mse",
    keep_float: Collection[str] = (),
    weight_bits: Mapping[str, int] | None = None,
    weights: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    reduce_range: bool = False,
    progress: Progress = silent,
) -> QuantizeResult:
    """Make every Conv2d and Linear of a float classifier int8; weights get a scale per output channel.

    scheme: "static" keeps uint8 between the layers, in ranges found on `calibration`; "dynamic" takes the range of each
        layer's input at run time, per image, and needs no images.
    calibration: batches of normalized float32 images [n, 3, h, w] from the training data. Channels that vary
        unequally cost accuracy: see `equalize_if_nearer`, which is to be called before. The int8 logits are compared
        with the float ones on these images; on seeded random ones where there are none.
    method: how a range is chosen from what calibration saw: see `observe_ranges`.
    keep_float: names of layers that stay in float.
    weight_bits: for layers by name, how many bits their weights get, of WEIGHT_BITS; 8 for all others.
    weights: for layers by name, weights that are rounded already: int8 codes [out, in / groups, ...] and float32 scale
        [out], of the weight that `folded_layers` gives.
    reduce_range: keep the other weights of 8 bits to 7, so that no sum saturates on x86 CPUs without VNNI, where
        ONNX Runtime's answers are wrong otherwise, and a folder's own slower.
    Raises UsageError without calibration images for "static", ModelError for a model that is int8 already, or whose
    numbers are not finite.
    """
    if classifier.architecture.is_quantized:
        raise ModelError("The model is int8 already.", "Quantize the float model that it was made from.")
    traced, operations = lower(classifier.module.eval(), classifier.architecture.input_shape)
    batches = list(calibration or ())
    if scheme == "static" and not sum(len(batch) for batch in batches):
        raise UsageError("Static quantization needs calibration images.", "Give some, or use --scheme dynamic.")
    if scheme == "static":
        operations = assign_codes(operations, keep_float)
    else:
        operations = fuse_sums(operations)
        operations = [replace(o, is_float=o.name in keep_float or o.type not in WEIGHTED) for o in operations]
    bits = {o.name: (weight_bits or {}).get(o.name, 8) for o in operations}
    state = _weights(operations, bits, weights or {}, reduce_range) | _other_numbers(operations, traced)
    if scheme == "static":
        ranges = observe_ranges(traced, _nodes_with_ranges(operations), batches, method, progress)
        state |= _output_scales(operations, ranges)
    architecture = _architecture(classifier.architecture, operations, state, scheme, bits)
    network = _build(architecture, state)
    if scheme == "static":
        corrected = correct_biases(traced, operations, state, batches, progress)
        choices = [_build(architecture, state | round_biases(operations, s)) for s in (state, state | corrected)]
        network, fidelity = nearest(traced, choices, batches, CALIBRATION, progress)
    else:
        fidelity = _compare(traced, network, classifier.architecture.input_shape, batches, progress)
    return QuantizeResult(Classifier(network, architecture, None), _notes(operations, scheme), fidelity)


def _compare(
    traced: nn.Module, network: nn.Module, shape: tuple[int, ...], batches: list[Tensor], progress: Progress
) -> Fidelity:
    images = CALIBRATION if batches else "random images"
    (fidelity,) = compare(traced, [network], batches or [random_images(shape, DEFAULT_IMAGES)], images, progress)
    return fidelity


def _notes(operations: list[Operation], scheme: Scheme) -> tuple[str, ...]:
    """What computes in float, though the scheme would have it in int8."""
    kept = [
        f"{o.name} ({o.type}) is kept in float for the sake of accuracy."
        for o in operations
        if o.is_float and o.type in WEIGHTED
    ]
    functions = [o for o in operations if o.type == "Function" and scheme == "static"]
    return (*kept, *(f"{o.name} ({o.options['function']}) computes in float: it has no int8 form." for o in functions))


def folded_layers(classifier: Classifier) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight [out, in / groups, ...] and bias [out], float64, that `quantize` rounds for each Conv2d and Linear."""
    _, operations = lower(classifier.module.eval(), classifier.architecture.input_shape)
    return {o.name: fold_batch_norm(o.module, o.batch_norm) for o in operations if o.module and o.type in WEIGHTED}


def _nodes_with_ranges(operations: list[Operation]) -> list[fx.Node]:
    return [o.node for o in operations if o.has_scale]


def _output_scales(operations: list[Operation], ranges: dict[fx.Node, Range]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    owners = scale_owners(operations)
    for operation in [o for o in operations if o.has_scale]:
        sharing = [
            _needed(o, operations, ranges[o.node])
            for o in operations
            if o.has_scale and owners[o.name] == owners[operation.name]
        ]
        scale, zero_point = scale_and_zero_point(min(low for low, _ in sharing), max(high for _, high in sharing))
        state[f"{operation.name}.output_scale"] = torch.tensor(scale)
        state[f"{operation.name}.output_zero_point"] = torch.tensor(zero_point, dtype=torch.uint8)
    return state


def _needed(operation: Operation, operations: list[Operation], span: Range) -> Range:
    """The part of a range that is not all alike to the functions that read it."""
    readers = [o.options.get("function") for o in operations if operation.name in o.inputs]
    if not readers or not all(function in VARY_WITHIN for function in readers):
        return span
    lows, highs = zip(*(VARY_WITHIN[str(function)] for function in readers), strict=True)
    return max(span[0], min(lows)), min(span[1], max(highs))


def _other_numbers(operations: list[Operation], traced: fx.GraphModule) -> dict[str, Tensor]:
    """Of BatchNorm that no convolution took in, and of constants."""
    state: dict[str, Tensor] = {}
    for operation in operations:
        if isinstance(operation.module, nn.BatchNorm2d):
            scale, shift = batch_norm_as_affine(operation.module)
            state[f"{operation.name}.weight"], state[f"{operation.name}.bias"] = (
                scale.cpu().float(),
                shift.cpu().float(),
            )
        elif operation.type == "Constant":
            state[f"{operation.name}.value"] = attribute_at(traced, str(operation.node.target)).detach().cpu().float()
    return state


def _weights(
    operations: list[Operation],
    bits: Mapping[str, int],
    given: Mapping[str, tuple[Tensor, Tensor]],
    reduce_range: bool,
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for operation in operations:
        if operation.type not in WEIGHTED:
            continue
        assert operation.module is not None
        name = operation.name
        weight, bias = fold_batch_norm(operation.module, operation.batch_norm)
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ModelError(f"Layer {name!r} has weights that are not finite.", "Train the model again.")
        state[f"{name}.bias"] = bias.cpu().float()
        if operation.is_float:
            state[f"{name}.weight"] = weight.cpu().float()
            continue
        if name in given:
            codes, scale = given[name]
        elif reduce_range and bits[name] == 8:
            codes, scale = reduced_weight(weight.cpu())
        else:
            codes, scale = quantize_weight(weight.cpu(), bits[name])
        state[f"{name}.weight"] = pack(codes) if bits[name] == 4 else codes
        state[f"{name}.weight_scale"] = scale
    return state


def _build(architecture: Architecture, state: dict[str, Tensor]) -> nn.Module:
    network = build_model(architecture.to_dict())
    network.load_state_dict(state)
    return network


def _architecture(
    before: Architecture,
    operations: list[Operation],
    state: dict[str, Tensor],
    scheme: Scheme,
    bits: Mapping[str, int],
) -> Architecture:
    floats = {layer.name: layer for layer in before.layers}
    layers = tuple(
        _layer(operation, floats.get(operation.name), state, _quantization(operation, scheme, bits))
        for operation in operations
    )
    steps = (*before.compression_steps, f"quantize ({scheme} int8)")
    count = before.count and dataclasses.replace(before.count, parameters=_count_parameters(layers, state))
    return dataclasses.replace(
        before, layers=layers, compression_steps=steps, count=count, tensors=None, format_version=FORMAT_VERSION
    )


def _count_parameters(layers: tuple[Layer, ...], state: dict[str, Tensor]) -> int:
    """Weights and biases, and the constants that take part in sums and products."""
    constants = [state[f"{layer.name}.value"] for layer in layers if layer.type == "Constant"]
    return sum(layer.parameters for layer in layers) + sum(t.numel() for t in constants if t.is_floating_point())


def _layer(
    operation: Operation, before: Layer | None, state: dict[str, Tensor], quantization: dict[str, Any] | None
) -> Layer:
    """The entry of `operation` in the architecture; `before` is its entry in the float one."""
    tensors = [tensor for key, tensor in state.items() if key.rpartition(".")[0] == operation.name]
    geometry = _geometry(operation.module) | ({"padding": operation.padding} if operation.padding else {})
    return Layer(
        name=operation.name,
        type=f"Quantized{operation.type}" if quantization and operation.type in WEIGHTED else operation.type,
        inputs=operation.inputs,
        activation=operation.activation,
        options=operation.options or None,
        width_before=before.width_before if before else None,
        macs=before.macs if before else 0,
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        quantization=quantization,
        **geometry,
    )


def _quantization(operation: Operation, scheme: Scheme, bits: Mapping[str, int]) -> dict[str, Any] | None:
    """How a layer is quantized; None where it computes in float."""
    if operation.is_float:
        return None
    entry: dict[str, Any] = {"scheme": scheme}
    if operation.type in WEIGHTED:
        count = bits[operation.name]
        entry |= {"weight_bits": count, "weight": f"int{count} per output channel"}
    entry |= {"activation": "uint8 per tensor" if scheme == "static" else "uint8 per image"}
    if operation.type not in PASSING:
        entry["output"] = "uint8 per tensor" if operation.gives_codes else "float32"
    return entry


def _geometry(module: nn.Module | None) -> dict[str, Any]:
    if isinstance(module, nn.Linear):
        return {"in_channels": module.in_features, "out_channels": module.out_features, "bias": True}
    if isinstance(module, nn.Conv2d):
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        return {name: getattr(module, name) for name in names} | {"bias": True}
    if isinstance(module, nn.BatchNorm2d):
        return {"in_channels": module.num_features, "out_channels": module.num_features, "bias": True}
    return {}
