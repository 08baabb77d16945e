"""Counting multiply-adds.

One MAC is one multiplication with its addition. `count_macs` counts the layers that can be cut or quantized, which are
convolutions and linear layers. `count_network` counts every matrix product and convolution, those of attention too, and
names whatever else computes: biases, normalization, activations and pooling are no multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from slimkit.core.architecture import Count
from slimkit.core.errors import ModelError, first_line
from slimkit.core.measure.modes import evaluating, skipping_norms

COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
MOVES = {  # operations that compute nothing
    "arange",
    "as_strided",
    "as_strided_",
    "cat",
    "clone",
    "constant_pad_nd",
    "copy",
    "copy_",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "eye",
    "fill",
    "fill_",
    "flip",
    "full",
    "full_like",
    "gather",
    "index",
    "index_select",
    "lift_fresh",
    "new_empty",
    "new_full",
    "new_ones",
    "new_zeros",
    "ones",
    "ones_like",
    "pixel_shuffle",
    "repeat",
    "roll",
    "scalar_tensor",
    "stack",
    "unsafe_view",
    "unsafe_split",
    "zero_",
    "zeros",
    "zeros_like",
    "to_copy",
}


@dataclass(frozen=True)
class LayerCost:
    """What one layer does for one image, summed over its calls."""

    macs: int
    output_shape: tuple[int, ...]  # of the last call, without the batch


def count_macs(module: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """MACs of each convolution and linear layer for one image of `input_shape` (channels, ...), in execution order."""
    return {name: cost.macs for name, cost in layer_costs(module, input_shape).items()}


def layer_costs(module: nn.Module, input_shape: Sequence[int]) -> dict[str, LayerCost]:
    """MACs and output shape of each convolution and linear layer, from one forward pass in eval mode.

    The pass has no numbers in it (torch's meta device), save where the network looks at some.
    Raises ModelError where the network does not take such an image.
    """
    try:
        return _costs_of_pass(module, lambda: _pass_without_numbers(module, input_shape))
    except Exception:  # whatever the network's own code raises where it asks for what isn't there
        return _costs_of_pass(module, lambda: _pass_with_numbers(module, input_shape))


def count_network(module: nn.Module, input_shape: Sequence[int]) -> Count:
    """Parameters by their tensors, each once, and the MACs of all operations for one image of `input_shape`.

    Raises ModelError where the network does not take such an image.
    """
    try:
        counter = _count_pass(module, lambda: _pass_without_numbers(module, input_shape))
    except Exception:  # as above
        counter = _count_pass(module, lambda: _pass_with_numbers(module, input_shape))
    norms = {"batch_norm"} if any(isinstance(part, _BatchNorm) for part in module.modules()) else set()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Count(parameters, counter.macs, tuple(sorted(counter.not_counted | norms)))


def _count_pass(module: nn.Module, run: Callable[[], Any]) -> _OperationCounter:
    counter = _OperationCounter()
    with evaluating(module), torch.no_grad(), counter:
        run()
    return counter


class _OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Counts the operations that run below it, by torch's own formulas (`torch.utils.flop_counter`)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.macs = 0
        self.not_counted: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.macs += formula(*args, **(kwargs or {}), out_val=result) // 2
        elif not func.is_view:
            name = str(func.overloadpacket).partition(".")[2].strip("_").removeprefix("native_").removeprefix("safe_")
            self.not_counted |= {name.removesuffix("_with_indices")} - MOVES
        return result


def _pass_without_numbers(module: nn.Module, input_shape: Sequence[int]) -> Any:
    tensors = {name: value.to("meta") for name, value in (*module.named_parameters(), *module.named_buffers())}
    image = _first_parameter(module).new_zeros(1, *input_shape, device="meta")
    with skipping_norms(module):
        return torch.func.functional_call(module, tensors, (image,))


def _pass_with_numbers(module: nn.Module, input_shape: Sequence[int]) -> Any:
    try:
        return module(_first_parameter(module).new_zeros(1, *input_shape))
    except Exception as error:  # the network's own code runs here, and may raise anything
        raise ModelError(
            f"{type(module).__name__} does not take an image of shape {tuple(input_shape)}: {first_line(error)}",
            "Give the size that it takes, such as --image-size 224.",
        ) from error


def _costs_of_pass(module: nn.Module, run: Callable[[], Any]) -> dict[str, LayerCost]:
    """What the layers cost in one run of the network."""
    costs: dict[str, LayerCost] = {}
    hooks = [
        layer.register_forward_hook(_counter(name, costs))
        for name, layer in module.named_modules()
        if isinstance(layer, COUNTED)
    ]
    try:
        with evaluating(module), torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return costs


def _counter(name: str, costs: dict[str, LayerCost]) -> Any:
    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        before = costs[name].macs if name in costs else 0
        # weight[0] is what makes one output value: [in / groups, *kernel] or [in]
        costs[name] = LayerCost(before + output.numel() * weight[0].numel(), tuple(output.shape[1:]))

    return count


def _first_parameter(module: nn.Module) -> Tensor:
    """It has the type and device that the input must have."""
    return next(module.parameters(), torch.empty(0))
