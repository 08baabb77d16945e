"""The proof of a cut: the network computes what the original does with the same channels masked to zero effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slimkit.core.errors import MissedError, first_line
from slimkit.core.graph import Graph
from slimkit.core.graph.node import IMAGE
from slimkit.core.pruning.channels.groups import Grouping
from slimkit.core.pruning.channels.trace import Trace, spans
from slimkit.core.pruning.cut.arguments import Kept
from slimkit.core.pruning.cut.surgery import channel_masks

TOLERANCE = 1e-4


def verify_cut(grouping: Grouping, chosen: Sequence[Tensor], cut: Graph) -> float:
    """Compare the logits of both networks, and what is left of every layer's outputs, on two random images.

    chosen: the channels that each group has lost in `cut`, int64. Returns the largest difference of the logits,
    relative to the largest logit. Raises MissedError where a difference is above TOLERANCE. The layers are compared
    because a network that damps what happens inside it (untrained ones do) has the right logits whatever is cut.
    """
    kept = Kept(grouping.trace, grouping.left(chosen))
    watched = [node.name for node in grouping.graph.nodes if node.name in grouping.trace.mixed]
    images = grouping.trace.random_images()
    if joined := _joins_channels_and_images(grouping.trace):
        _verify_one_by_one(cut, images)
        images = images[:1]
    wanted = _values(grouping.graph, images, channel_masks(kept), watched)
    try:
        got = _values(cut, images, {}, watched)
    except Exception as error:  # torch raises what it likes
        raise _missed(f"The cut network does not run: {first_line(error)}") from error
    difference = 0.0
    for name, before in wanted.items():
        atoms = grouping.trace.values[name]
        for dim in range(0 if joined else 1, before.dim()):
            left = kept.along(atoms, dim)
            if not left.all():
                before = before.index_select(dim, left.nonzero().flatten())
        difference = _difference(before, got[name])
        if not difference <= TOLERANCE:  # a NaN must not pass
            raise _missed(
                f"{name} of the cut network differs by {difference:.1e} from that of the original with the same "
                "channels masked."
            )
    return difference


def verify_bypass(graph: Graph, branches: Mapping[str, str], short: Graph, images: Tensor) -> float:
    """Compare `short` with `graph` where what a sum (key) reads of its branch (value) counts as zero.

    images: [n, channels, height, width]. Returns the largest difference of the logits, relative to the largest logit.
    Raises MissedError where a difference is above TOLERANCE, of the logits or of any value that both networks have.
    """
    masks = {total: {branch: torch.zeros(())} for total, branch in branches.items()}
    shared = [node.name for node in short.nodes if node.name in graph.by_name]
    wanted, got = _values(graph, images, masks, shared), _values(short, images, {}, shared)
    difference = 0.0
    for name, value in got.items():
        difference = _difference(wanted[name], value)
        if not difference <= TOLERANCE:  # a NaN must not pass
            raise _missed(f"{name} of the network without {', '.join(branches)} differs by {difference:.1e}.")
    return difference


def _joins_channels_and_images(trace: Trace) -> bool:
    """Whether channels lie along the dimension of the images, as heads do for bmm: masks are for one image alone."""
    return any(0 in spans(trace.values[name]) for node, inputs in trace.mixed.items() for name in (node, *inputs))


def _verify_one_by_one(cut: Graph, images: Tensor) -> None:
    """Raise MissedError where the network answers otherwise to several images than to each alone."""
    network = cut.network(copy=False)
    with torch.no_grad():
        try:
            difference = _difference(torch.cat([network(image[None]) for image in images]), network(images))
        except Exception as error:  # torch raises what it likes
            raise _missed(f"The cut network does not run: {first_line(error)}") from error
    if not difference <= TOLERANCE:
        raise _missed(f"The cut network's answers to two images differ by {difference:.1e} from those to each alone.")


def _values(
    graph: Graph, images: Tensor, masks: Mapping[str, Mapping[str, Tensor]], watched: Sequence[str]
) -> dict[str, Tensor]:
    """The values of the watched nodes and, last, the logits; `masks` are multiplied into what single nodes read."""
    values, found = {IMAGE: images}, {}
    network = graph.network(copy=False)
    with torch.no_grad():
        for step in network.steps:
            whole = {name: values[name] for name in masks.get(step.name, ())}
            values |= {name: values[name] * mask for name, mask in masks.get(step.name, {}).items()}
            step.run(values, images.shape)
            values |= {name: value for name, value in whole.items() if name in values}
            if step.name in watched:
                found[step.name] = values[step.name]
    last = network.steps[-1].name
    found.pop(last, None)
    return {**found, last: values[last]}


def _difference(wanted: Tensor, got: Tensor) -> float:
    if wanted.shape != got.shape:
        return float("inf")
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


def _missed(what: str) -> MissedError:
    return MissedError(what, "Nothing was written. Please report this network as a bug.")
