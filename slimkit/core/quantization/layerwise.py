"""Rounding the weights of a network layer by layer, each on what the layers before it, rounded already, really give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from slimkit.core.data import Batches
from slimkit.core.graph.lockstep import Lockstep, Values
from slimkit.core.progress import Progress
from slimkit.core.quantization.rounded import RoundedLayer
from slimkit.core.quantization.rounding import round_by_least_squares
from slimkit.core.quantization.simulate import Simulation, Weighted

SAMPLES = 2**15  # patches of inputs that a layer's moments are taken from
RIDGE = 0.1  # of the mean variance: keeps the repair of earlier layers' errors from fitting noise


@dataclass(frozen=True)
class _Moments:
    """Means and covariances, over patches, of a layer's inputs x and of what its outputs lack, y."""

    x: Tensor  # [g, d]
    y: Tensor  # [out]
    xx: Tensor  # [g, d, d]
    yx: Tensor  # [g, out / g, d]


@torch.no_grad()
def round_layers(
    simulation: Simulation,
    batches: Batches,
    largest: Mapping[str, int],
    progress: Progress,
    prices: Mapping[str, float] | None = None,
) -> dict[str, RoundedLayer]:
    """Round the weights of `simulation.layers`, in place, from the first to the last; gives the rounded ones.

    batches: normalized float32 images [n, 3, h, w] each; where not all fit into `flow.MEMORY_LIMIT`, early layers see
        fewer. largest: the largest code, on both sides of 0, of each layer by name. prices: of a bit of its codes, in
        terms of the squared error of its outputs; 0 for layers that are not named.

    A layer's weights are first moved by ridge regression, so that on the inputs that the rounded layers before it give,
    it gives what the float network does (Li et al. 2025, GPTAQ, arXiv:2504.02692), its residual's error included; then
    they are rounded by least squares; then its bias takes up what the mean of the outputs still lacks.
    """
    runners = _TracedRunner(simulation.float_network()), _TracedRunner(simulation.network)
    stops = {i for i, node in enumerate(runners[0].nodes) if node.target in simulation.layers}
    flow = Lockstep(*runners, batches, stops)
    done: dict[str, RoundedLayer] = {}
    with progress("round weights", len(simulation.layers)) as advance:
        for position, node in enumerate(flow.changed.nodes):
            flow.seek(position)
            flow.step_original(position)
            if node.op == "call_module" and node.target in simulation.layers:
                name = str(node.target)
                moments = _moments(flow, position, simulation.layers[name], simulation.residuals.get(name))
                price = (prices or {}).get(name, 0.0)
                done[name] = _round_layer(simulation.layers[name], moments, largest[name], price)
                advance(1)
            flow.step_changed(position)
    return done


class _TracedRunner:
    """Runs a network that torch.fx has traced."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self._interpreter = fx.Interpreter(traced)
        self._like = next(traced.parameters())
        self.nodes: tuple[fx.Node, ...] = tuple(self._interpreter.graph.nodes)

    def start(self, images: Tensor) -> Values:
        """The image is node 0; a copy, because the first operation may work in place."""
        return {self.nodes[0]: images.to(self._like.device, self._like.dtype, copy=True)}

    def step(self, position: int, values: Values, shape: torch.Size) -> None:
        """Compute one node."""
        node = self.nodes[position]
        if node.op == "placeholder":
            return
        self._interpreter.env = values
        values[node] = self._interpreter.run_node(node)
        for used in self._interpreter.user_to_last_uses.get(node, ()):
            values.pop(used, None)


def _moments(flow: Lockstep, position: int, layer: Weighted, residual: fx.Node | None) -> _Moments:
    """The moments of the layer at node `position`, which has run in float.

    x is of the rounded network, y of float - rounded. residual: the rounded node that is added to the output.
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    generator = torch.Generator().manual_seed(0)
    count, sums, centre = 0, None, None
    source = flow.changed.nodes[position].all_input_nodes[0]
    in_float = dict(zip(flow.changed.nodes, flow.original.nodes, strict=True))
    for batch in flow.held:
        x = batch.changed[source]
        lacking = batch.original[flow.original.nodes[position]] - layer(x)
        if residual is not None:
            lacking += batch.original[in_float[residual]] - batch.changed[residual]
        patches, outputs = sample_patches(x, lacking, layer, -(-SAMPLES // flow.images), generator)
        patches = patches.reshape(len(patches), groups, -1).transpose(0, 1)  # [g, n, d]
        if centre is None:
            centre = patches.mean(1, keepdim=True)  # near enough to the mean for float32 to hold the variances
        part = _sum_moments(patches - centre, outputs)
        sums = part if sums is None else tuple(a + b for a, b in zip(sums, part, strict=True))
        count += len(outputs)
    assert sums is not None
    assert centre is not None
    x, y, xx, yx = (total / count for total in sums)
    covariances = xx - x[:, :, None] * x[:, None], yx - y.view(groups, -1, 1) * x[:, None]
    return _Moments(x + centre[:, 0], y, *covariances)


def sample_patches(
    x: Tensor, y: Tensor, layer: Weighted, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Up to `count` places per image: the inputs that each is computed from [n, in, ...], and its outputs [n, out]."""
    if isinstance(layer, nn.Linear):
        x, y = x.flatten(1, -2) if x.ndim > 2 else x[:, None], y.flatten(1, -2) if y.ndim > 2 else y[:, None]
        places = torch.randperm(y.shape[1], generator=generator)[:count]
        return x[:, places].flatten(0, 1), y[:, places].flatten(0, 1)
    assert not isinstance(layer.padding, str)  # the lowering lets none pass
    (pad_y, pad_x), (step_y, step_x), (gap_y, gap_x) = layer.padding, layer.stride, layer.dilation
    height, width = layer.kernel_size
    windows = functional.pad(x, (pad_x, pad_x, pad_y, pad_y))
    windows = windows.unfold(2, (height - 1) * gap_y + 1, step_y).unfold(3, (width - 1) * gap_x + 1, step_x)
    windows = windows[..., ::gap_y, ::gap_x]  # [n, in, h', w', kernel height, kernel width], a view
    places = torch.randperm(y.shape[2] * y.shape[3], generator=generator)[:count]
    rows, columns = places // y.shape[3], places % y.shape[3]
    return windows[:, :, rows, columns].transpose(1, 2).flatten(0, 1), y[:, :, rows, columns].transpose(1, 2).flatten(
        0, 1
    )


def _sum_moments(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Sums over the patches x [g, n, d] and outputs y [n, out] of x, y, x x^T and y x^T."""
    by_group = y.view(len(y), len(x), -1).permute(1, 2, 0)  # [g, out / g, n]
    return x.sum(1), y.sum(0), x.transpose(1, 2) @ x, by_group @ x


def _round_layer(layer: Weighted, moments: _Moments, largest: int, price: float) -> RoundedLayer:
    """Round `layer` in place."""
    groups, size = moments.x.shape
    weight = layer.weight.detach().view(groups, -1, size)  # [g, out / g, d]
    variance = moments.xx.diagonal(dim1=1, dim2=2).mean(1)
    ridge = (RIDGE * variance + 1e-12)[:, None, None] * torch.eye(size)
    wanted = weight + torch.linalg.solve(moments.xx + ridge, moments.yx, left=False)
    codes, scale = round_by_least_squares(wanted, moments.xx, -largest, largest, price)
    rounded = codes * scale[..., None]
    assert layer.bias is not None  # folded layers have one
    bias = layer.bias + moments.y + ((weight - rounded) * moments.x[:, None]).sum(2).flatten()
    layer.weight.copy_(rounded.view_as(layer.weight))
    layer.bias.copy_(bias)
    return RoundedLayer(codes.to(torch.int8).view(layer.weight.shape), scale.flatten(), bias.detach().clone())
