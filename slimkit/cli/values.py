"""Flags that take more than a word or a number (sizes, a number for each channel), and what flags are called too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import typer
from typer.core import TyperCommand

from slimkit.core.options import Backend, WeightBits
from slimkit.core.sizes import Size, parse_size

PER_CHANNEL = ("--mean", "--std")
OTHER_NAMES = {  # by which flags are known too, some with their value
    "--against": "--baseline",
    "--portable": "--reduce-range",
    "--no-portable": "--no-reduce-range",
    "--onnx": "--backend=torch,onnxruntime",
    "--no-onnx": "--backend=torch",
}


def size(value: Any) -> Size:
    """--image-size 224 or 192x320; what comes from a file is one already."""
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]  # as the options dataclass has it
    parsed = parse_size(value)
    if parsed is None:
        raise typer.BadParameter(f"{value!r} is no size: write 224, or 192x320 for height and width.")
    return parsed


def weight_bits(value: Any) -> WeightBits:
    """--weight-bits 4 or auto; what comes from a file is one already."""
    try:
        return "auto" if value == "auto" else int(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is neither a number of bits nor auto.") from None


def numbers(value: Any) -> tuple[float, ...]:
    """--mean 0.5 0.5 0.5; what comes from a file is a tuple already."""
    try:
        return tuple(map(float, value.replace(",", " ").split())) if isinstance(value, str) else value
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not a number for each channel.") from None


def backends(value: Any) -> tuple[Backend, ...]:
    """--backend torch,onnxruntime; what comes from a file is a tuple already."""
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]  # as the options dataclass has it
    known: dict[str, Backend] = {name: name for name in get_args(Backend)}
    names = [name.strip() for name in value.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"{unknown[0]!r} is no backend: choose from {', '.join(known)}.")
    return tuple(dict.fromkeys(known[name] for name in names))


class FlagsCommand(TyperCommand):
    """A command whose --mean and --std take as many numbers as follow, and that knows OTHER_NAMES."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Click's, which knows options of one number of values alone."""
        return super().parse_args(ctx, _joined(OTHER_NAMES.get(word, word) for word in args))


def _joined(words: Iterable[str]) -> list[str]:
    """The words, with the numbers behind an option of PER_CHANNEL in one."""
    joined: list[str] = []
    for word in words:
        if len(joined) > 1 and joined[-2] in PER_CHANNEL and _is_number(word) and _is_number(joined[-1].split()[0]):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
