"""Weights into a network that was built for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from slimkit.core.errors import ModelError
from slimkit.core.models.catalog import pretrained_state, without_auxiliary_heads

log = logging.getLogger("slimkit")

NETWORK_HINT = "Name the network that these weights belong to."
SHOWN = 5  # names in one error


def fill(module: nn.Module, state: dict[str, Tensor], file: Path, num_classes: int, *, new_head: bool = False) -> None:
    """Load `state` into `module`.

    new_head: the classifier stays random where `file` has one for another number of classes.
    Raises ModelError that names the tensors that are missing, that don't fit, or that the network lacks.
    """
    own = module.state_dict()
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    head = [key for key in wrong if _is_head(state[key], own[key], num_classes)]
    if head and head == wrong:
        count = state[head[0]].shape[0]
        if not new_head:
            raise ModelError(
                f"{file} is for {count} classes ({head[-1]}); the data have {num_classes}.",
                "Give the data that the weights were trained on with --data, or start that layer anew by --new-head.",
            )
        log.info("%s is for %d classes: %s start from random.", file, count, " and ".join(head))
        state = {key: tensor for key, tensor in state.items() if key not in head}
    elif wrong:
        raise ModelError(
            f"{file}: {wrong[0]} has shape {tuple(state[wrong[0]].shape)}, the network wants "
            f"{tuple(own[wrong[0]].shape)}" + (f"; {len(wrong) - 1} others differ too." if len(wrong) > 1 else "."),
            NETWORK_HINT,
        )
    needed = [key for key in own if key not in head and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    if missing := [key for key in needed if key not in state]:
        instead = f"; it has {_listed(unknown)}, which the network has not" if unknown else ""
        raise ModelError(f"{file} lacks {_listed(missing)} of the network{instead}.", NETWORK_HINT)
    if unknown:
        raise ModelError(f"{file} has {_listed(unknown)}, which the network has not.", NETWORK_HINT)
    own.update(state)  # it knows the versions of the modules, for which MNASNet asks
    module.load_state_dict(own)


def count_classes(module: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The classes that `state` is for, where they are not as many as `module` has; None where they are."""
    own = module.state_dict()
    others = [key for key in own if key in state and state[key].shape != own[key].shape and state[key].dim()]
    return int(state[others[-1]].shape[0]) if others else None


def fill_pretrained(module: nn.Module, name: str, num_classes: int) -> None:
    """ImageNet's weights; the classifier stays random where the number of classes differs."""
    own = module.state_dict()
    state = without_auxiliary_heads(pretrained_state(name))
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    own.update(fitting)
    module.load_state_dict(own)
    if len(fitting) < len(state):
        log.info("ImageNet's 1000 classes are not the data's %d: the classifier starts from random.", num_classes)


def _is_head(given: Tensor, own: Tensor, num_classes: int) -> bool:
    """Whether two tensors are those of a classifier, for another number of classes."""
    return own.dim() > 0 and own.shape[0] == num_classes and given.shape[1:] == own.shape[1:]


def _listed(names: Sequence[str]) -> str:
    """Up to SHOWN names, and how many there are."""
    shown = ", ".join(names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"the tensor{'s' if len(names) > 1 else ''} {shown}{more}"
