"""The scores of channels that are measured on images, kept on disk: another budget for the same network finds them."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from slimkit.core.data import Batches
from slimkit.core.digests import digest_of, digest_of_state
from slimkit.core.pruning.channels.groups import Grouping
from slimkit.core.shelf import Shelf

SHELF = Shelf("channel-scores", most=2**28)
FORM = 1  # of how they are measured: raise it where that changes

Scores = tuple[Tensor, ...]  # of the channels of each group: float64 [width] each


def kept_scores(
    grouping: Grouping, importance: str, batches: Batches, seed: int, measure: Callable[[], Scores]
) -> Scores:
    """What `measure` gives, or gave before for the same network, importance, images and seed."""
    graph, widths = grouping.graph, [group.width for group in grouping.groups]
    nodes = json.dumps([node.to_json() for node in graph.nodes], default=str)
    depends_on = f"{FORM} {importance} {seed} {nodes} {digest_of_state(graph.tensors)} {digest_of(batches)} {widths}"

    found = SHELF.get(depends_on, (sum(widths),), np.float64, lambda: torch.cat(measure()).double().numpy())
    return torch.split(torch.from_numpy(np.array(found)), widths)
