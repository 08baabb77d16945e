"""Sizes that depend on the images, from torch's symbolic integers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING

import torch

from slimkit.core.errors import ModelError
from slimkit.core.graph.node import Size

if TYPE_CHECKING:  # half a second for what torch.export loads where it is needed
    import sympy  # type: ignore[import-untyped]  # it carries no types

_FUNCTIONS = {
    "Add": "add",
    "Mul": "mul",
    "FloorDiv": "floordiv",
    "CleanDiv": "floordiv",
    "Mod": "mod",
    "PythonMod": "mod",
    "Max": "max",
    "Min": "min",
}


def read_size(value: object, symbols: Mapping[str, int]) -> Size | int | float | bool:
    """A traced integer as a function of the images' shape; symbols: the dimension that each symbol stands for.

    Raises ModelError for what is no such function.
    """
    if isinstance(value, bool | int | float):
        return value
    if not isinstance(value, torch.SymInt):
        raise ModelError(f"The network computes with {value!r}.", "Compute sizes from the shape of the images.")
    return _read(value.node.expr, symbols)


def _read(expression: sympy.Expr, symbols: Mapping[str, int]) -> Size | int:
    kind = type(expression).__name__
    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol and str(expression) in symbols:
        return Size("image", (symbols[str(expression)],))
    if kind == "Pow" and expression.exp.is_Integer and int(expression.exp) > 0:
        return reduce(lambda a, b: Size("mul", (a, b)), [_read(expression.base, symbols)] * int(expression.exp))
    if kind in ("CeilToInt", "FloorToInt", "TruncToInt") and type(expression.args[0]).__name__ == "IntTrueDiv":
        return _quotient(*(_read(part, symbols) for part in expression.args[0].args), up=kind == "CeilToInt")
    if kind not in _FUNCTIONS:
        raise ModelError(f"The network computes the size {expression}.", "Compute sizes by whole numbers.")
    function = _FUNCTIONS[kind]
    parts = [_read(part, symbols) for part in expression.args]
    return reduce(lambda a, b: Size(function, (a, b)), parts)  # type: ignore[arg-type]  # a literal


def _quotient(dividend: Size | int, divisor: Size | int, *, up: bool) -> Size | int:
    """Of whole numbers, rounded down, or up: -(-a // b)."""
    if not up:
        return Size("floordiv", (dividend, divisor))
    return Size("mul", (-1, Size("floordiv", (Size("mul", (-1, dividend)), divisor))))
