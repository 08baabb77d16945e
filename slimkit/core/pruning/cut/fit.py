"""From a graph that was cut back to a classifier: its graph, or the network that it was captured of."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from slimkit.core.errors import ModelError
from slimkit.core.folder import Classifier
from slimkit.core.graph import Graph
from slimkit.core.measure.macs import count_network
from slimkit.core.measure.modes import evaluating
from slimkit.core.models.describe import describe_graph, describe_layers, known_widths

TOLERANCE = 1e-3


def fit_classifier(classifier: Classifier, graph: Graph, images: Tensor) -> Classifier:
    """The classifier with `graph`, which was cut, in place of its network. images: as for `fit_module`.

    Raises ModelError as `fit_module` does.
    """
    architecture = classifier.architecture
    widths = known_widths(architecture)
    if architecture.is_graph:
        return Classifier(graph.network(), describe_graph(architecture, graph, widths))
    module = fit_module(classifier.module, graph, images).eval()
    layers = describe_layers(module, architecture.input_shape, widths)
    count = count_network(module, architecture.input_shape)
    return Classifier(module, dataclasses.replace(architecture, layers=layers, count=count))


def fit_module(module: nn.Module, graph: Graph, images: Tensor) -> nn.Module:
    """A copy of the network with the tensors of `graph`, which was captured of it, and with layers of their sizes.

    images: float32 [n, channels, height, width], for which both must answer alike.
    Raises ModelError where the copy does not answer as the graph does: its code knows the sizes by themselves.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    result = copy.deepcopy(module, shared)
    names = {id(tensor): name for name, tensor in reversed([*module.named_parameters(), *module.named_buffers()])}
    made: dict[int, Tensor] = {}  # a tensor of two layers stays one
    for part in result.modules():
        for attribute, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if id(tensor) not in made:
                made[id(tensor)] = _copied(graph.tensors.get(names[id(tensor)], tensor), tensor)
            setattr(part, attribute, made[id(tensor)])
    groups = {node.weight("weight"): node.arguments.get("groups") for node in graph.nodes}
    for name, part in result.named_modules():
        _fit_fields(part, groups.get(f"{name}.weight" if name else "weight"))
    _verify(result, graph, images)
    return result


def _copied(tensor: Tensor, like: Tensor) -> Tensor:
    value = tensor.detach().to(like.device, like.dtype, copy=True)
    return nn.Parameter(value, like.requires_grad) if isinstance(like, nn.Parameter) else value


def _fit_fields(part: nn.Module, groups: object) -> None:
    """Let a layer know the sizes that its tensors have."""
    if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        part.groups = groups if isinstance(groups, int) else part.groups
        part.out_channels, part.in_channels = part.weight.shape[0], part.weight.shape[1] * part.groups
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
        part.num_features = len(part.running_mean)
    elif isinstance(part, nn.PReLU):
        part.num_parameters = part.weight.numel()


def _verify(module: nn.Module, graph: Graph, images: Tensor) -> None:
    like = next(module.parameters())
    with evaluating(module), torch.no_grad():
        try:
            given = module(images.to(like.device, like.dtype)).float().cpu()
            wanted = graph.network(copy=False)(images)
            is_right = torch.allclose(given, wanted, rtol=TOLERANCE, atol=TOLERANCE * float(wanted.abs().max()))
        except Exception:  # the network's own code runs here, and may raise anything
            is_right = False
    if not is_right:
        raise ModelError(
            f"{type(module).__name__} does not compute with fewer channels what its graph does.",
            "Prune it as a network of its own, with slimkit.core.pruning.prune_module.",
        )
