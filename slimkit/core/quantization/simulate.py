"""The int8 network once more, in float32 with the same rounding: what weights are rounded, trained and searched in."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from slimkit.core.folder import Classifier
from slimkit.core.quantization.lowering.lower import WEIGHTED, Operation, assign_codes, fuse_sums, lower
from slimkit.core.quantization.weights.per_channel import batch_norm_as_affine, fold_batch_norm

Weighted = nn.Conv2d | nn.Linear


class RoundToCodes(nn.Module):
    """Rounds activations to the uint8 codes of one scale; gradients pass where nothing is clipped."""

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.scale, self.zero_point = scale, zero_point
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        if not self.enabled:
            return x
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, 255)


class FrozenNorm(nn.Module):
    """A BatchNorm that no convolution took in, as int8 networks compute it: its statistics stay, in training too."""

    factor: Tensor
    shift: Tensor

    def __init__(self, batch_norm: nn.BatchNorm2d) -> None:
        super().__init__()
        for name, numbers in zip(("factor", "shift"), batch_norm_as_affine(batch_norm), strict=True):
            self.register_buffer(name, numbers.float()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] -> the same."""
        return torch.addcmul(self.shift, x, self.factor)


@dataclass(frozen=True, eq=False)
class Simulation:
    """The network, and where its layers are. What is done to `layers` and `rounding` shows in `network`."""

    network: fx.GraphModule  # normalized images [n, 3, h, w] -> logits [n, classes]
    layers: dict[str, Weighted]  # those with int8 weights, in the order in which they run; BatchNorm is folded in
    residuals: dict[str, fx.Node]  # by a layer's name: what is added to its output
    rounding: dict[str, RoundToCodes]  # by the name of the operation that gives the codes

    def float_network(self) -> fx.GraphModule:
        """A copy of the network, node by node, with the weights as they are now, that rounds no activation."""
        network = copy.deepcopy(self.network)
        for module in network.modules():
            if isinstance(module, RoundToCodes):
                module.enabled = False
        return network


def simulate(source: Classifier, made: Classifier) -> Simulation:
    """Simulate the int8 classifier `made` with the weights of the float one that it was made from, not yet rounded.

    Activations are rounded to the very scales of `made`; a dynamic network has none, and keeps them in float.
    """
    traced, lowered = lower(source.module.eval(), source.architecture.input_shape)
    state = made.module.state_dict()
    kept = {o.name for o in lowered if o.type in WEIGHTED and f"{o.name}.weight_scale" not in state}
    operations = assign_codes(lowered, kept)
    network = copy.deepcopy(traced)
    nodes = {node.name: node for node in network.graph.nodes}
    layers = {o.name: _fold(network, traced, o) for o in operations if o.type in WEIGHTED}
    for operation in operations:
        if isinstance(operation.module, nn.BatchNorm2d):
            network.set_submodule(operation.name, FrozenNorm(operation.module))
    rounding = {}
    for operation in operations:
        if f"{operation.name}.output_scale" in state:
            numbers = state[f"{operation.name}.output_scale"].item(), state[f"{operation.name}.output_zero_point"]
            rounding[operation.name] = RoundToCodes(numbers[0], int(numbers[1]))
            _insert_after(
                network, nodes[operation.node.name], f"codes_of_{operation.node.name}", rounding[operation.name]
            )
    sums = {o.name: nodes[o.before_sum.name] for o in fuse_sums(lowered) if o.before_sum is not None}
    residuals = {name: _added_to(node) for name, node in sums.items()}
    network.recompile()
    layers = {name: layer for name, layer in layers.items() if name not in kept}
    return Simulation(network.eval().requires_grad_(False), layers, residuals, rounding)


def _fold(network: fx.GraphModule, traced: fx.GraphModule, operation: Operation) -> Weighted:
    """Put a layer with its BatchNorm worked in where both were."""
    layer = copy.deepcopy(operation.module)
    assert isinstance(layer, Weighted)
    weight, bias = fold_batch_norm(layer, operation.batch_norm)
    layer.weight = nn.Parameter(weight.float())
    layer.bias = nn.Parameter(bias.float())
    network.set_submodule(operation.name, layer)
    for name, module in traced.named_modules():
        if operation.batch_norm is not None and module is operation.batch_norm:
            network.set_submodule(name, nn.Identity())
    return layer


def _added_to(node: fx.Node) -> fx.Node:
    """The other term of the sum that reads `node`, as it is or rounded."""
    reader = next(iter(node.users))
    if len(reader.all_input_nodes) == 1:
        node, reader = reader, next(iter(reader.users))
    return next(source for source in reader.all_input_nodes if source is not node)


def _insert_after(network: fx.GraphModule, node: fx.Node, name: str, module: nn.Module) -> None:
    network.add_submodule(name, module)
    with network.graph.inserting_after(node):
        inserted = network.graph.call_module(name, (node,))
    node.replace_all_uses_with(inserted, delete_user_cb=lambda user: user is not inserted)
