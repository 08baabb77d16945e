"""What a network may answer with: tensors, alone or in tuples, lists, dicts and dataclasses."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from slimkit.core.errors import ModelError


def register_outputs(answer: object) -> bool:
    """Let torch see the tensors in the user's dataclasses; gives whether there was one that it did not know.

    Raises ModelError for what may hold tensors unseen.
    """
    is_new = False
    for leaf in tree_leaves(answer):
        if leaf is None or isinstance(leaf, Tensor | bool | int | float | str):
            continue
        if not dataclasses.is_dataclass(leaf):
            raise ModelError(
                f"The network answers with an object of class {type(leaf).__name__}, in which slimkit sees no tensors.",
                "Let forward() return the logits, or tensors in a tuple, list, dict or dataclass.",
            )
        torch.export.register_dataclass(type(leaf))
        register_outputs([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
        is_new = True
    return is_new
