"""Cross-layer equalization: channels scaled so that one range of codes serves all of them alike.

All channels between two layers share one scale of uint8 codes, so a channel that varies little gets few of them. Where
the first layer's output for a channel is divided by a factor and the second layer's weights for it are multiplied by
it, the network answers as before (Nagel et al. 2019, arXiv:1906.04721). Weights have a scale per output channel, so
that costs the first layer nothing, and a depthwise second layer neither: there each channel gets the whole range.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from slimkit.core.folder import Classifier
from slimkit.core.progress import Progress, silent
from slimkit.core.quantization.convert import CALIBRATION, quantize
from slimkit.core.quantization.fidelity import compare
from slimkit.core.quantization.lowering.lower import Operation, lower
from slimkit.core.quantization.ranges.calibrate import Method, observe_channel_maxima

HEADROOM = 1.1  # ReLU6 clips an equalized channel there, in terms of the largest value that was seen
SMALLEST_FACTOR = 1 / 256  # a channel that varies even less is nearly dead, and what was seen of it says little
HOMOGENEOUS = (None, "relu", "relu6")  # f(x / s) = f(x) / s, below 6

COMPARED = 2  # batches on which the equalized int8 network is compared with the plain one
WORTH_IT = 0.9  # of the plain one's error; where both are about as good, the weights stay as they are

Pair = tuple[Operation, Operation]


def equalize_if_nearer(
    classifier: Classifier, batches: Sequence[Tensor], method: Method, progress: Progress
) -> tuple[Classifier, tuple[str, ...]]:
    """`classifier`, equalized where its int8 logits come nearer to the float ones by it; and what is to be said of it.

    batches: calibration images as for `equalize`. method: how ranges are chosen: see `observe_ranges`.
    """
    equalized = equalize(classifier, batches, progress) if batches else classifier
    if equalized is classifier:
        return classifier, ()
    few, both = batches[:COMPARED], (classifier, equalized)
    made = [quantize(c, scheme="static", calibration=few, method=method, progress=progress).classifier for c in both]
    before, after = (f.error for f in compare(classifier.module, [c.module for c in made], few, CALIBRATION, progress))
    is_nearer = after < WORTH_IT * before
    said = (
        f"Channels were {'' if is_nearer else 'not '}equalized across layers: the logits' error is {after:.2%} with it "
        f"and {before:.2%} without, on {sum(len(batch) for batch in few)} training images."
    )
    return equalized if is_nearer else classifier, (said,)


def equalize(classifier: Classifier, batches: Sequence[Tensor], progress: Progress = silent) -> Classifier:
    """The float `classifier` with its channels equalized; the very same one where no two layers allow it.

    batches: normalized float32 images [n, 3, h, w] each, for the largest value of each channel. The answers to them
        stay; behind ReLU6 a channel is clipped at 1.1 times the largest value that they gave, if that is below 6.
    Raises ModelError for what can't be captured.
    """
    module = copy.deepcopy(classifier.module).eval()
    traced, operations = lower(module, classifier.architecture.input_shape)
    pairs = list(_pairs(operations))
    if not pairs:
        return classifier
    maxima = observe_channel_maxima(traced, {first.node for first, _ in pairs}, batches, progress)
    with torch.no_grad():
        for first, second in pairs:
            _divide_outputs(first, factors := _factors(first, second, maxima[first.node]))
            _multiply_inputs(second, factors)
    return replace(classifier, module=module)


def _pairs(operations: list[Operation]) -> Iterator[Pair]:
    """Convolutions of which one alone reads the other."""
    for first in operations:
        readers = [o for o in operations if first.name in o.inputs]
        if first.type != "Conv2d" or first.activation not in HOMOGENEOUS or len(readers) != 1:
            continue
        scalable = first.batch_norm is None or first.batch_norm.affine
        if readers[0].type == "Conv2d" and scalable:
            yield first, readers[0]


def _is_depthwise(operation: Operation) -> bool:
    return _weight(operation).shape[1] == 1


def _factors(first: Operation, second: Operation, maxima: Tensor) -> Tensor:
    """What each channel between the two layers is divided by, [channels], at most 1; 1 where either gives but 0."""
    weights = _by_input(second).abs().amax((1, 3, 4)).flatten()
    if not (maxima.max() > 0 and weights.max() > 0):
        return torch.ones_like(maxima)
    top = torch.tensor(6 / HEADROOM) if first.activation == "relu6" else maxima.max()
    filling = (maxima / top).clamp(SMALLEST_FACTOR, 1)  # gives each channel the whole range
    if _is_depthwise(second):
        return filling
    balanced = (filling / weights.clamp(min=SMALLEST_FACTOR * float(weights.max()))).sqrt()
    return (balanced / balanced.max()).maximum(filling)


def _divide_outputs(operation: Operation, factors: Tensor) -> None:
    module = operation.module if operation.batch_norm is None else operation.batch_norm
    assert isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    module.weight.div_(factors.view(-1, *[1] * (module.weight.ndim - 1)))
    if module.bias is not None:
        module.bias.div_(factors)


def _multiply_inputs(operation: Operation, factors: Tensor) -> None:
    by_input = _by_input(operation)
    by_input.mul_(factors.view(by_input.shape[0], 1, -1, 1, 1))


def _by_input(operation: Operation) -> Tensor:
    """The weight as [groups, out / groups, in / groups, height, width], a view."""
    assert isinstance(operation.module, nn.Conv2d)
    weight = _weight(operation)
    return weight.view(operation.module.groups, -1, *weight.shape[1:])


def _weight(operation: Operation) -> Tensor:
    assert isinstance(operation.module, nn.Conv2d)
    return operation.module.weight
