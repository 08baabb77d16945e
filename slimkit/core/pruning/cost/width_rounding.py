"""Widths that the CPU likes: its kernels compute channels in blocks, so the last channel costs as much as a block."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from slimkit.core.errors import ModelError, UsageError
from slimkit.core.measure.layer_times import Runtime, TimedLayer, time_layers

log = logging.getLogger("slimkit")

TARGETS: dict[str, tuple[Runtime, ...]] = {"fp32": ("fp32", "onnx"), "int8": ("int8", "onnx")}
CANDIDATES = (32, 16, 8)
WIDTHS = tuple(range(32, 100, 4))  # channels at which the curve is taken
FLAT = 0.95  # a width that takes this share of the time of the next step's takes as long
PARTS = 4  # steps that a group has at least; a narrower one gets a smaller step
VECTOR = {"AVX512": 16, "AVX2": 8}  # float32 numbers; 4 on others


def steps_of(
    round_to: str, widths: Sequence[int], target: Literal["fp32", "int8"] = "fp32", step: int | None = None
) -> list[int]:
    """For each group, of `widths` channels, what its remaining channels are made a multiple of.

    round_to: "none" (1), a number, or "auto": the step of this CPU's kernels for `target`, see `kernel_step`, halved
        for a narrow group until it has PARTS of them. step: that of another CPU. Raises UsageError for anything else.
    """
    if round_to == "none":
        return [1] * len(widths)
    if round_to == "auto":
        step = kernel_step(target) if step is None else step
        return [_part_of(step, width) for width in widths]
    if not round_to.isdecimal() or int(round_to) < 1:
        raise UsageError(f"--round-to {round_to} is no multiple.", "Give auto, none, or a number such as 16.")
    return [int(round_to)] * len(widths)


def kernel_step(target: Literal["fp32", "int8"] = "fp32") -> int:
    """The channels in a block of this CPU's kernels: the largest step found in any runtime that `target` is for.

    Read from the times of a 3x3 convolution of 28x28 pixels on one thread, which are cached. Where that can't be timed,
    it is as many as a vector register holds numbers.
    """
    try:
        return max(find_step(_curve(runtime)) for runtime in TARGETS[target])
    except ModelError as error:
        step = VECTOR.get(torch.backends.cpu.get_cpu_capability(), 4)
        log.warning("%s Widths are made multiples of %d, the width of a vector.", error, step)
        return step


def find_step(times: Mapping[int, float]) -> int:
    """The largest of CANDIDATES within which a curve of ms over channels is flat; 1 where it has no such steps."""
    for step in CANDIDATES:
        shares = [
            times[width] / times[-(-width // step) * step]
            for width in times
            if width % step and -(-width // step) * step in times
        ]
        if shares and sum(shares) / len(shares) >= FLAT:
            return step
    return 1


def _part_of(step: int, width: int) -> int:
    while step > 1 and step * PARTS > width:
        step //= 2
    return step


def _curve(runtime: Runtime) -> dict[int, float]:
    """ms of a convolution from so many channels to as many."""
    one = (1, 1)
    layers = {
        width: TimedLayer("Conv2d", width, width, (3, 3), one, one, one, groups=1, height=28, width=28)
        for width in WIDTHS
    }
    times = time_layers(list(layers.values()), runtime, threads=1)
    return {width: times[layer] for width, layer in layers.items()}
