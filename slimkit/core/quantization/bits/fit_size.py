"""Bits for the weights of each layer so that the weights file, as it is written, has at most a given size."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from slimkit.core.coding.classifier import stored_bytes, with_coded_weights
from slimkit.core.errors import MissedError
from slimkit.core.folder import Classifier, serialize_weights
from slimkit.core.measure.size import MB
from slimkit.core.quantization.bits.allocation import Choices, Rounding, allocate, smallest, total_size
from slimkit.core.quantization.convert import QuantizeResult

log = logging.getLogger("slimkit")

TRIES = 4
CLOSE = 0.97  # of the size that is allowed: no larger one is looked for
MARGIN_OF_HINT = 1.02  # of the smallest size, as it is estimated before anything is rounded
MARGIN = 0.995  # of the size that is allowed, which is aimed at; once more at each further try

Make = Callable[[Mapping[str, Rounding]], QuantizeResult]


def fit_size(choices: Choices, plain: Classifier, make: Make, limit: int) -> QuantizeResult:
    """The int8 classifier of the least divergence whose coded weights file has at most `limit` bytes.

    choices: the roundings that each layer may have. plain: an int8 classifier of the same layers, for what the rest of
    the file takes. make: makes one whose layers are rounded in the ways given. Its size is known once it is made; so
    what is aimed at is corrected by what came of it, a few times at most.
    Raises MissedError for a size that can't be reached, with the smallest that can.
    """
    taken = stored_bytes(with_coded_weights(plain))
    rest = coded_file_size(plain) - sum(taken[f"{name}.weight"] for name in choices)
    least = rest + total_size(smallest(choices)) / 8
    best, most, aim = None, 0, MARGIN * (limit - rest)  # of the codes alone, as they are expected to come
    tried: list[dict[str, Rounding]] = []
    sizes: list[int] = []
    while rest + aim >= least and most < CLOSE * limit and len(tried) < TRIES:
        chosen = allocate(choices, 8 * aim)
        if chosen in tried:
            break
        tried.append(chosen)
        made = make(chosen)
        sizes.append(size := coded_file_size(made.classifier))
        log.info("the weights file takes %.3f MB; %.3f are allowed", size / MB, limit / MB)
        if most < size <= limit:
            best, most = made, size
        aim = MARGIN ** len(sizes) * (limit - rest) * total_size(chosen) / 8 / (size - rest)
    if best is None:
        raise _too_small(limit, min(sizes, default=least))
    return replace(best, notes=(*best.notes, _say_bits(best.classifier, most, limit)))


def _too_small(limit: int, smallest_size: float) -> MissedError:
    return MissedError(
        f"The weights can't be brought down to {limit / MB:.3f} MB: about {smallest_size / MB:.3f} MB is the smallest "
        "with which the answers are still near the float model's. Nothing was written.",
        f"Give --max-size {smallest_size * MARGIN_OF_HINT / MB:.3f}MB or more, or prune the model first.",
    )


def _say_bits(classifier: Classifier, size: int, limit: int) -> str:
    layers = Counter(classifier.architecture.weight_bits.values())
    counts = ", ".join(f"{bits} bits in {layers[bits]}" for bits in sorted(layers))
    return f"The weights file takes {size / MB:.3f} MB of {limit / MB:.3f}. Layers by the bits of weights: {counts}."


def coded_file_size(classifier: Classifier) -> int:
    """Bytes of the weights file of an int8 classifier, coded."""
    return len(serialize_weights(classifier.module, coded=True))
