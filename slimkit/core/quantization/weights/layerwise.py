"""Rounding the weights of a network layer by layer, each on what the layers before it, rounded already, really give."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from slimkit.core.data import Batches
from slimkit.core.graph.lockstep import Lockstep, Values
from slimkit.core.progress import Progress
from slimkit.core.quantization.simulate import Simulation, Weighted
from slimkit.core.quantization.weights.rounded import RoundedLayer
from slimkit.core.quantization.weights.rounding import round_by_least_squares
from slimkit.core.regression.least_squares import Moments, damped_cholesky
from slimkit.core.regression.rows import Sampler, input_rows, output_rows, set_weight_matrix, weight_matrix

SAMPLES = 2**15  # patches of inputs that a layer's moments are taken from
RIDGE = 0.1  # of the mean variance: keeps the repair of earlier layers' errors from fitting noise


@torch.no_grad()
def round_layers(
    simulation: Simulation,
    batches: Batches,
    largest: Mapping[str, int],
    progress: Progress,
    prices: Mapping[str, float] | None = None,
) -> dict[str, RoundedLayer]:
    """Round the weights of `simulation.layers`, in place, from the first to the last; gives the rounded ones.

    batches: normalized float32 images [n, 3, h, w] each; where not all fit into `lockstep.MEMORY_LIMIT`, early layers
        see fewer. largest: the largest code, on both sides of 0, of each layer by name. prices: of a bit of its codes,
        in terms of the squared error of its outputs; 0 for layers that are not named.

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


def _moments(flow: Lockstep, position: int, layer: Weighted, residual: fx.Node | None) -> Moments:
    """The moments of the layer at node `position`, which has run in float.

    Rows are of the rounded network's inputs, targets of what its outputs lack of the float network's. residual: the
    rounded node that is added to the output.
    """
    moments, sampler = Moments(), Sampler(SAMPLES / len(flow.held))
    source = flow.changed.nodes[position].all_input_nodes[0]
    in_float = dict(zip(flow.changed.nodes, flow.original.nodes, strict=True))
    for batch in flow.held:
        inputs = batch.changed[source]
        lacking = batch.original[flow.original.nodes[position]] - layer(inputs)
        if residual is not None:
            lacking += batch.original[in_float[residual]] - batch.changed[residual]
        positions = sampler.positions(layer, lacking)
        moments.add(input_rows(layer, inputs, positions), output_rows(layer, lacking, positions))
    return moments


def _round_layer(layer: Weighted, moments: Moments, largest: int, price: float) -> RoundedLayer:
    """Round `layer` in place."""
    row_mean, target_mean, products, crossed = moments.centred()
    covariance = (products / moments.count).float()
    weight = weight_matrix(layer)  # [g, d, o]
    wanted = weight + torch.cholesky_solve(crossed, damped_cholesky(products, RIDGE)).float()
    codes, scale = round_by_least_squares(wanted.mT, covariance, -largest, largest, price)  # [g, o, d], [g, o]
    rounded = (codes * scale[..., None]).mT
    assert layer.bias is not None  # folded layers have one
    bias = layer.bias + (target_mean + row_mean @ (weight - rounded).double()).flatten().float()
    set_weight_matrix(layer, rounded)
    layer.bias.copy_(bias)
    return RoundedLayer(codes.to(torch.int8).view(layer.weight.shape), scale.flatten(), bias.detach().clone())
