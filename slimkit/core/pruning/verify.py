"""The proof of a cut: the network computes what the original does with the same channels masked to zero effect."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from slimkit.core.errors import MissedError, first_line
from slimkit.core.measure.macs import COUNTED
from slimkit.core.measure.modes import evaluating, on_cpu
from slimkit.core.pruning.groups import Cut
from slimkit.core.pruning.network import share_tensors, small_shape

TOLERANCE = 1e-4

LayerOutput = tuple[str, Tensor]  # the layer's name, and what one call of it gave, channels first


def verify_cut(original: nn.Module, cut: nn.Module, cuts: Mapping[str, Cut], input_shape: Sequence[int]) -> float:
    """Compare the logits of both networks, and every layer's remaining outputs, on two random images.

    The images are of `input_shape` (channels, height, width), or smaller where the network takes smaller ones.
    Returns the largest difference of the logits, relative to the largest logit. Computed in float32 on the CPU,
    whatever the networks are in. Raises MissedError where a difference is above TOLERANCE. The layers are compared
    because a network that damps what happens inside it (untrained ones do) has the right logits whatever is cut.
    """
    images, wanted = _first_outputs(mask_channels(original, cuts), input_shape)
    try:
        got = _outputs(cut, images)
    except Exception as error:  # here too
        raise _missed(f"The cut network does not run: {first_line(error)}") from error
    for (name, before), (_, after) in zip(wanted, got, strict=True):
        kept = torch.ones(len(before), dtype=torch.bool)
        if name in cuts:
            kept[cuts[name].outputs] = False
        difference = _difference(before[kept], after)
        if not difference <= TOLERANCE:  # a NaN must not pass
            raise _missed(
                f"{name or 'The output'} of the cut network differs by {difference:.1e} from that of the original with "
                "the same channels masked."
            )
    return difference


def mask_channels(module: nn.Module, cuts: Mapping[str, Cut]) -> nn.Module:
    """A network in which every layer ignores the inputs that it is to lose; the tensors that stay are shared."""
    masked = share_tensors(module)
    for name, cut in cuts.items():
        layer = masked.get_submodule(name)
        if not isinstance(layer, COUNTED) or len(cut.inputs) == 0:
            continue
        weight = layer.weight.detach()
        if isinstance(layer, nn.Linear) or layer.groups == 1:
            masked_weight = weight.index_fill(1, cut.inputs.to(weight.device), 0)
        else:
            masked_weight = weight.clone()
            # a view: [groups, out / groups, in / groups, *kernel]
            groups = masked_weight.view(layer.groups, -1, *weight.shape[1:])
            size = layer.in_channels // layer.groups
            groups[cut.inputs // size, :, cut.inputs % size] = 0
        layer.weight = nn.Parameter(masked_weight)
    return masked


def _first_outputs(module: nn.Module, input_shape: Sequence[int]) -> tuple[Tensor, list[LayerOutput]]:
    """The smallest images that a network takes, of those that are tried, and what `_outputs` gives for them."""
    small, whole = small_shape(input_shape), tuple(input_shape)
    images = _random_images(small)
    try:
        return images, _outputs(module, images)
    except Exception:  # the network's own code runs here, and may raise anything
        if small == whole:
            raise
    images = _random_images(whole)
    return images, _outputs(module, images)


def _random_images(shape: Sequence[int]) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def _outputs(module: nn.Module, images: Tensor) -> list[LayerOutput]:
    """What each call of a convolution or linear layer gave, in order, and last, under no name, the network itself."""
    module = on_cpu(module)
    found: list[LayerOutput] = []
    with ExitStack() as stack:
        stack.enter_context(evaluating(module))
        for name, layer in module.named_modules():
            if isinstance(layer, COUNTED):
                recorder = _recorder(name, -1 if isinstance(layer, nn.Linear) else 1, found)
                stack.callback(layer.register_forward_hook(recorder).remove)
        stack.enter_context(torch.no_grad())
        outputs = tree_flatten(module(images))[0]
    return [*found, ("", torch.cat([output.flatten() for output in outputs if isinstance(output, Tensor)]))]


def _recorder(name: str, dim: int, found: list[LayerOutput]) -> Callable[[nn.Module, Any, Tensor], None]:
    # cloned, because the next operation may work in place
    return lambda layer, inputs, output: found.append((name, output.movedim(dim, 0).clone()))


def _difference(wanted: Tensor, got: Tensor) -> float:
    if wanted.shape != got.shape:
        return float("inf")
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


def _missed(what: str) -> MissedError:
    return MissedError(what, "Nothing was written. Please report this network as a bug.")
