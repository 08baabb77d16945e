"""Which tables of frequencies the columns of a matrix of bytes are coded with."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimkit.standalone.model import EVEN, LEVELS, OWN, PRECISION, SAME, UNIFORM, frequencies_of


@dataclass(frozen=True)
class Table:
    """The levels of all 256 bytes, and how they are written."""

    levels: bytes
    stored: bytes

    @property
    def frequencies(self) -> Tensor:
        """Of each byte: int64 [256]."""
        return frequencies_of(self.levels)

    def bits(self, counts: Tensor) -> float:
        """What it takes to code each byte as often as `counts` [256] says, and the table itself."""
        return float((_bits_of_each(self.levels) * counts)[counts > 0].sum()) + 8 * len(self.stored)


@functools.lru_cache(maxsize=1024)
def _bits_of_each(levels: bytes) -> Tensor:
    """What each of the 256 bytes takes, float64; infinite where one never comes."""
    return PRECISION - frequencies_of(levels).double().log2()


FLAT = Table(EVEN, UNIFORM)


def choose_tables(matrix: Tensor, before: Table) -> list[Table]:
    """The tables, one for each column of `matrix`, uint8 [columns, rows], with which it takes least.

    They are those of the column before (`before`: of the first), one for all columns, or one for each.
    """
    counts = [torch.bincount(column, minlength=256) for column in matrix]
    shared = _fit(sum(counts, torch.zeros(256, dtype=torch.long)))
    choices = ([_again(before)] * len(counts), [shared, *[_again(shared)] * (len(counts) - 1)], _each(counts))
    return min(choices, key=lambda tables: _total_bits(tables, counts))


def _each(counts: Sequence[Tensor]) -> list[Table]:
    return [min(FLAT, _fit(each), key=lambda table: table.bits(each)) for each in counts]


def _total_bits(tables: Sequence[Table], counts: Sequence[Tensor]) -> float:
    return sum(table.bits(each) for table, each in zip(tables, counts, strict=True))


def _again(table: Table) -> Table:
    return Table(table.levels, SAME)


def _fit(counts: Tensor) -> Table:
    """The table nearest to how often each byte comes."""
    total, highest = int(counts.sum()), len(LEVELS) - 1
    levels = [max(1, highest + round(8 * math.log2(n / total))) if n else 0 for n in counts.tolist()]
    present = [byte for byte, level in enumerate(levels) if level]
    low, high = present[0], present[-1]
    return Table(bytes(levels), OWN + bytes([low, high, *levels[low : high + 1]]))
