"""Finding out by trial whether an operation keeps channels apart, so that no list of operations has to be complete."""

from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor

from slimkit.core.pruning.atoms import broadcast

Operation = Callable[[Sequence[Tensor]], object]
Shape = torch.Size
Kind = Literal["elementwise", "channelwise", "mixing"]


class Trials:
    """Finds out what kind operations are of, each but once."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Kind] = {}

    def kind(self, operation: Operation, shapes: Sequence[Shape], key: Hashable | None) -> Kind:
        """The kind of an operation on tensors of these shapes; `key` tells it from all others, None is tried anew."""
        if key is not None and key in self._known:
            return self._known[key]
        kind: Kind = "mixing"
        if is_elementwise(operation, shapes):
            kind = "elementwise"
        elif is_channelwise(operation, shapes):
            kind = "channelwise"
        if key is not None:
            self._known[key] = kind
        return kind


def is_elementwise(operation: Operation, shapes: Sequence[Shape]) -> bool:
    """Whether each value of the result depends only on the values at its own (broadcast) position."""
    generator = torch.Generator().manual_seed(0)
    masks = [_half(shape, generator) for shape in shapes]
    before, after = _results(operation, masks, generator)
    try:
        spread = broadcast(*masks)
    except RuntimeError:  # their shapes don't fit each other
        return False
    if before is None or after is None or before.shape != spread[0].shape:
        return False
    untouched = ~torch.stack(spread).any(0)
    return torch.equal(before[untouched], after[untouched])


def is_channelwise(operation: Operation, shapes: Sequence[Shape]) -> bool:
    """Whether each channel (dimension 1) of the result depends only on the same channel of the one input."""
    if len(shapes) != 1 or len(shapes[0]) < 3:
        return False
    generator = torch.Generator().manual_seed(0)
    channels = _half(shapes[0][1:2], generator)
    mask = channels.reshape(1, -1, *[1] * (len(shapes[0]) - 2)).expand(shapes[0])
    before, after = _results(operation, [mask], generator)
    if before is None or after is None or before.shape[:2] != shapes[0][:2]:
        return False
    return torch.equal(before[:, ~channels], after[:, ~channels])


def random_values(shape: Shape) -> Tensor:
    """Numbers to try an operation on: the same for the same shape, whatever the caller draws."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _half(shape: Shape, generator: torch.Generator) -> Tensor:
    """A random mask that is neither all false nor, where there are two positions, all true."""
    mask = torch.rand(shape, generator=generator) < 0.5
    mask.view(-1)[:1] = True
    mask.view(-1)[1:2] = False
    return mask


def _results(
    operation: Operation, masks: Sequence[Tensor], generator: torch.Generator
) -> tuple[Tensor | None, Tensor | None]:
    """The operation on random values, and on the same with other values under the masks; None where no tensor."""
    values = [torch.rand(mask.shape, generator=generator) for mask in masks]
    changed = [torch.where(m, torch.rand(m.shape, generator=generator), v) for m, v in zip(masks, values, strict=True)]
    before, after = operation(values), operation(changed)  # each list is used once: the operation may work in place
    return before if isinstance(before, Tensor) else None, after if isinstance(after, Tensor) else None
