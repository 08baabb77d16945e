"""From a user's network to its graph, by torch.export."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

from slimkit.core.errors import ModelError, first_line
from slimkit.core.graph.functional import functionalize
from slimkit.core.graph.node import Graph
from slimkit.core.graph.normalize import is_known, normalize
from slimkit.core.graph.outputs import register_outputs
from slimkit.core.graph.patience import OutOfTime, within
from slimkit.core.graph.recall import forget, likeness_of, recall, remember
from slimkit.core.graph.source import is_users
from slimkit.core.measure.modes import evaluating, on_cpu
from slimkit.core.quiet import quiet
from slimkit.standalone.model import GraphNetwork

BATCH = 2  # a batch of one would be taken for a constant
PATIENCE = 30.0  # seconds of CPU time; a network of 1,000 operations takes a fifth of it


def capture(
    module: nn.Module, input_shape: Sequence[int], *, fixed_size: bool = False, output_index: int | None = None
) -> Graph:
    """The graph of a network in eval mode for images of `input_shape` (channels, height, width); `module` stays.

    Its tensors are those of `module` itself, in float32 on the CPU. The number of images is free, and so are height and
    width where the network lets them be. What is computed from weights alone is computed once, here.
    fixed_size: whether height and width are fixed, which torch captures in less than half of the time.
    output_index: which of several outputs, flattened, gives the logits.

    Raises ModelError, with the line of the user's code, for a network that torch.export can't capture, that calls an
    operation which is not in `standalone.model.OPERATIONS`, whose outputs are several, or that answers otherwise
    than what was captured of it.
    """
    module, input_shape = on_cpu(unwrap(module)), tuple(input_shape)
    likeness = likeness_of(module, input_shape, fixed_size, output_index)
    graph = recall(likeness, module)
    if graph is not None:
        try:
            _verify(graph, module, output_index or 0)
            return graph
        except ModelError:
            forget(likeness)
    graph = _read_or_say_why(module, input_shape, fixed_size, output_index)
    _verify(graph, module, output_index or 0)
    remember(likeness, graph, module)
    return graph


def network_of(graph: Graph) -> GraphNetwork:
    """The network of a graph, around copies of its tensors. To capture it costs nothing: it gives that graph."""
    network = graph.network()
    own = dataclasses.replace(graph, tensors={name: network.tensor(name) for name in graph.tensors})
    for fixed_size in (False, True) if graph.free == {0} else (False,):
        remember(likeness_of(network, graph.input_shape, fixed_size, None), own, network)
    return network


def unwrap(module: nn.Module) -> nn.Module:
    """The network inside of what DataParallel, torch.compile and weight averaging wrap around it.

    Raises ModelError for TorchScript, whose code is not there any more.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"{module.original_name} is TorchScript, which can't be captured.", "Give the network that it was made of."
        )
    wrapped = {nn.DataParallel: "module", nn.parallel.DistributedDataParallel: "module"}
    wrapped[torch.optim.swa_utils.AveragedModel] = "module"
    wrapped[torch._dynamo.OptimizedModule] = "_orig_mod"
    for kind, attribute in wrapped.items():
        if isinstance(module, kind):
            return unwrap(module.get_submodule(attribute))
    return module


def _read_or_say_why(
    module: nn.Module, input_shape: tuple[int, ...], fixed_size: bool, output_index: int | None
) -> Graph:
    """The graph. What went wrong is the network's own error where it does not run at all, and else torch's."""
    try:
        return _read(module, input_shape, fixed_size, output_index)
    except ModelError:
        if not register_outputs(_run(module, torch.zeros(BATCH, *input_shape))):
            raise
    return _read(module, input_shape, fixed_size, output_index)


def _read(module: nn.Module, input_shape: tuple[int, ...], fixed_size: bool, output_index: int | None) -> Graph:
    """The graph; height and width are fixed where their arithmetic is beyond torch's symbols, or takes it too long."""
    if not fixed_size:
        with suppress(OutOfTime, ModelError):
            with within(PATIENCE):
                program = _export(module, input_shape, (0, *range(2, 1 + len(input_shape))))
            return normalize(functionalize(program, is_known), module, input_shape, output_index)
    program = _export(module, input_shape, (0,))
    return normalize(functionalize(program, is_known), module, input_shape, output_index)


def _export(module: nn.Module, input_shape: tuple[int, ...], free: Sequence[int]) -> ExportedProgram:
    """The exported program; free: the dimensions of the images that may differ."""
    images = torch.zeros(BATCH, *input_shape)
    with evaluating(module), torch.no_grad(), quiet():
        try:
            return torch.export.export(module, (images,), dynamic_shapes=(dict.fromkeys(free, Dim.AUTO),), strict=False)
        except Exception as error:  # the network's own code runs here, and may raise anything
            raise ModelError(
                f"{type(module).__name__} can't be captured{_where(error)}: {first_line(error)}",
                "Let its forward() not depend on the values of tensors, and make no tensors or modules anew in it.",
            ) from error


def _run(module: nn.Module, images: Tensor) -> object:
    """What the network answers. Raises ModelError, with the line of the user's code, where it can't."""
    with evaluating(module), torch.no_grad(), quiet():
        try:
            return module(images)
        except Exception as error:  # as above
            raise ModelError(
                f"{type(module).__name__} does not run on images of shape {tuple(images.shape[1:])}"
                f"{_where(error)}: {first_line(error)}",
                "Give the --image-size that it takes, and images of as many channels; or correct its code.",
            ) from error


def _verify(graph: Graph, module: nn.Module, output_index: int) -> None:
    """Raise ModelError where the graph does not give the network's answers to random images."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH + 1, *graph.input_shape, generator=draws)  # another number than it was captured with
    wanted = [leaf for leaf in tree_leaves(_run(module, images)) if isinstance(leaf, Tensor)][output_index]
    try:
        with torch.no_grad():
            given = graph.network(copy=False)(images)
    except Exception as error:  # an operation refuses what it was read to take
        raise ModelError(
            f"What torch.export captured of {type(module).__name__} does not run: {first_line(error)}",
            "Please report this network as a bug.",
        ) from error
    if given.shape != wanted.shape or not torch.allclose(given, wanted, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise ModelError(
            f"{type(module).__name__} answers otherwise than what torch.export captured of it.",
            "Let its forward() depend on the images and on its parameters alone, and change nothing of the network.",
        )


def _where(error: Exception) -> str:
    """The last line of the user's own code that an error came through: " at net.py:12 (x = x[idx])"."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
