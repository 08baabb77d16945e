"""The weights in a checkpoint file, however its trainer wrapped them.

    {"epoch": 9, "model_ema": {"module.conv1.weight": ...}}     torchvision's references
    {"state_dict": {"model.conv1.weight": ...}}                 Lightning
    {"_orig_mod.conv1.weight": ...}                             torch.compile

What is taken is found by the names of the network's own tensors, and said in the log.
"""

import argparse
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slimkit.core.errors import FolderError, ModelError
from slimkit.standalone.model_loader import SPARE_BYTES

log = logging.getLogger("slimkit")

# averaged weights come first: they are what a trainer that averages reports the accuracy of
CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "net")
DEPTH = 3  # of dictionaries in one another
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # modules around another
# what trainers store beside the weights, options and figures: making these runs nothing else
SCALAR: Any = np.float64(0).__reduce__()[0]  # makes a NumPy number
PLAIN: list[Any] = [argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i8"))]
PLAIN += [(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
EXPANSION = 4  # a file may unpack to so many times its size
SAVE_HINT = "Save a state dict of tensors: torch.save(model.state_dict(), FILE)."


@dataclass(frozen=True)
class _Weights:
    """Tensors of the network in one of the dictionaries of a file."""

    path: tuple[str, ...]  # of keys to the dictionary
    tensors: dict[str, Tensor]  # by the network's names, where the prefix is that of its own
    prefix: str  # that was taken off
    left_out: tuple[str, ...]  # keys without it

    def covered(self, names: Set[str]) -> int:
        """How many of the network's tensors are here."""
        return len(names & self.tensors.keys())


def read_checkpoint(file: Path, names: Set[str], key: str | None = None) -> dict[str, Tensor]:
    """The weights in `file` for a network whose tensors are called `names`, by those names; nothing is executed.

    key: the dictionary in the file that is to be taken, as dotted keys such as model_ema; None: the likeliest.
    Tensors that the network lacks stay, and some that it has may be missing. Raises FolderError where the file holds no
    weights, ModelError where two sets of them fit or their numbers are not finite.
    """
    content = _load(file)
    found = [_unwrap(path, tensors, names, file) for path, tensors in _dictionaries(content, ())]
    if not found:
        raise FolderError(f"{file} holds no state dict.", SAVE_HINT)
    if key is not None:
        found = _of_key(found, key, file)
    needed = {name for name in names if not name.endswith("num_batches_tracked")}
    found.sort(key=_rank)
    # the first that is whole, else the one that has most
    chosen = max(found, key=lambda weights: weights.covered(needed))
    _log_choice(file, chosen, [weights for weights in found if weights is not chosen and weights.covered(needed)])
    for name in chosen.tensors:
        _require_memory(file, name, chosen.tensors[name])
        _require_finite(file, name, chosen.tensors[name])
    return chosen.tensors


def _of_key(found: list[_Weights], key: str, file: Path) -> list[_Weights]:
    """Those that lie where `key` says."""
    if chosen := [weights for weights in found if ".".join(weights.path) == key]:
        return chosen
    known = [".".join(weights.path) for weights in found if weights.path]
    hint = (
        f"It has weights in: {', '.join(known)}." if known else "Its weights lie at the top: leave --weights-key out."
    )
    raise FolderError(f"{file} has no weights in {key!r}.", hint)


def _load(file: Path) -> Any:
    """The plain values in `file`. Raises FolderError for anything else."""
    if file.is_dir():
        raise FolderError(f"{file} is a folder.", "Name the file of weights in it, such as model.safetensors.")
    if not file.is_file():
        raise FolderError(f"There is no file {file}.", "Check the path given with --weights.")
    if file.suffix == ".safetensors":
        return _load_safetensors(file)
    _require_whole(file)
    try:
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle raises nearly anything
        raise FolderError(f"{file} can't be read as plain weights: {_reason(error)}.", SAVE_HINT) from None


def _load_safetensors(file: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise FolderError(
            f"{file} wants the package safetensors, which can't be imported: {error}.", "Run: pip install safetensors"
        ) from None
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise FolderError(f"{file} can't be read as safetensors: {error}.", "Write the file again.") from None


def _require_whole(file: Path) -> None:
    """Raise FolderError for an archive that unpacks to many times its size, before memory is taken for it, or damaged.

    torch.load computes no checksums: it would give wrong weights.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > EXPANSION * file.stat().st_size + SPARE_BYTES:
                raise FolderError(f"{file} is {file.stat().st_size:,} bytes, and would unpack to {size:,}.", SAVE_HINT)
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return  # an older format, or damaged: torch.load tells
    if damaged is not None:
        raise FolderError(
            f"{file} is damaged: the checksum of {damaged} in it is wrong.",
            "Copy or download the file again; save it again where it was saved without checksums.",
        )


def _reason(error: Exception) -> str:
    """What is wrong with a file, out of what torch.load says."""
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds an object of {refused[1]}, which is code"
    if "torchscript" in str(error).lower():
        return "it is a TorchScript archive, which is code"
    return "torch.save did not write it, or it is damaged"


def _dictionaries(content: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dictionary in `content` that holds tensors by name, with the keys that lead to it."""
    if not isinstance(content, Mapping) or len(path) > DEPTH:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    for key, value in named.items():
        yield from _dictionaries(value, (*path, key))


def _unwrap(path: tuple[str, ...], tensors: dict[str, Tensor], names: Set[str], file: Path) -> _Weights:
    """`tensors` without the prefix that most of the network's names have there."""
    splits = {key: dict(_readings(key, names)) for key in tensors}
    counts = Counter(prefix for readings in splits.values() for prefix in readings)
    best = max(counts.values(), default=0)
    prefixes = sorted(prefix for prefix, count in counts.items() if count == best)
    if len(prefixes) > 1 and prefixes[0] and best > 1:
        shown = " and ".join(repr(prefix) for prefix in prefixes[:2])
        raise ModelError(f"{file} holds the network twice, as {shown}.", "Save the one that is meant alone.")
    prefix = prefixes[0] if prefixes else ""
    own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    renamed = {splits[key].get(prefix, key.removeprefix(prefix)): tensor for key, tensor in own.items()}
    return _Weights(path, renamed, prefix, tuple(key for key in tensors if key not in own))


def _readings(key: str, names: Set[str]) -> Iterator[tuple[str, str]]:
    """Each way to read `key` as a prefix and one of `names`, between whose parts wrappers may stand."""
    parts = key.split(".")
    for start in range(len(parts)):
        rest = ".".join(parts[start:])
        unwrapped = ".".join(part for part in parts[start:] if part not in WRAPPERS)
        name = rest if rest in names else unwrapped
        if name in names and (name == rest or parts[start] not in WRAPPERS):
            yield "".join(f"{part}." for part in parts[:start]), name


def _rank(weights: _Weights) -> int:
    last = weights.path[-1] if weights.path else ""
    return CONTAINERS.index(last) if last in CONTAINERS else len(CONTAINERS)


def _log_choice(file: Path, chosen: _Weights, others: list[_Weights]) -> None:
    """Say what was taken where it isn't the plain content of the file."""
    if chosen.path or chosen.prefix:
        place = f"{'.'.join(chosen.path)!r}" if chosen.path else "the weights"
        prefix = f" without the prefix {chosen.prefix!r}" if chosen.prefix else ""
        log.info("%s: took %s%s.", file, place, prefix)
    for weights in others:
        log.info("%s: left out %r, which holds the network, too.", file, ".".join(weights.path))
    if chosen.left_out:
        log.info(
            "%s: left out %d tensors of other modules, such as %s.", file, len(chosen.left_out), chosen.left_out[0]
        )


def _require_memory(file: Path, name: str, tensor: Tensor) -> None:
    """Raise FolderError for a tensor that repeats little memory over and over: as weights it would take it all."""
    if tensor.is_meta or tensor.layout != torch.strided:
        return
    claimed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > stored + SPARE_BYTES:
        raise FolderError(
            f"{file}: {name} would take {claimed:,} bytes, of which the file holds {stored:,}.", SAVE_HINT
        )


def _require_finite(file: Path, name: str, tensor: Tensor) -> None:
    """Raise ModelError that names a tensor with NaN or infinity in it."""
    if not tensor.is_floating_point() or tensor.is_meta:
        return
    values = tensor.float()
    kinds = {"NaN": values.isnan().sum().item(), "infinity": values.isinf().sum().item()}
    for kind, count in kinds.items():
        if count:
            raise ModelError(
                f"{file}: {name} holds {kind} ({count:,} of {tensor.numel():,} values).",
                "The training that wrote these weights diverged: take weights from before that.",
            )
