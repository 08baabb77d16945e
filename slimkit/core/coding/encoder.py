"""Coding the state dict of an int8 network by interleaved rANS: the reverse of `standalone.model.decode_weights`."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimkit.core.coding.tables import FLAT, Table, choose_tables
from slimkit.standalone.model import (
    CODED_HEADER,
    CODED_MARK,
    LOWEST,
    MOST_STEPS,
    PRECISION,
    WORD,
    CodedGroup,
    Int8Network,
    coded_groups,
)
from slimkit.standalone.model_loader import EXPANSION

BYTES_OF_A_LANE = 2048  # of coded weights: the 4 bytes of its state are 0.2 % of them


@dataclass(frozen=True)
class _Column:
    """What is coded with one table."""

    group: CodedGroup
    symbols: Tensor  # uint8 [rows]
    table: Table

    @functools.cached_property
    def bits(self) -> float:
        return self.table.bits(torch.bincount(self.symbols, minlength=256))


def encode_weights(network: Int8Network) -> Tensor:
    """The network's state dict, coded: uint8 [bytes]."""
    columns = list(_columns(network))
    states = torch.full((_lanes(columns),), LOWEST)
    words = _push_all(columns, states)
    tables = zlib.compress(b"".join(column.table.stored for column in columns), 9)
    parts = tables + states.numpy().astype("<u4").tobytes() + words.numpy().astype("<u2").tobytes()
    matrices = zlib.crc32(torch.cat([column.symbols for column in columns]).numpy().tobytes())
    numbers = matrices, len(states), len(words), len(tables)
    checksum = zlib.crc32(CODED_HEADER.pack(CODED_MARK, 0, *numbers)[8:] + parts)
    header = CODED_HEADER.pack(CODED_MARK, checksum, *numbers)
    return torch.frombuffer(bytearray(header + parts), dtype=torch.uint8)


def _lanes(columns: Sequence[_Column]) -> int:
    """As many as keep their bytes few beside the rest, the steps few, and the whole as large as a reader demands."""
    symbols, size = sum(len(column.symbols) for column in columns), sum(column.bits for column in columns) / 8
    return math.ceil(max(size / BYTES_OF_A_LANE, 2 * symbols / MOST_STEPS, (symbols / EXPANSION[True] - size) / 4))


def coded_bytes(network: Int8Network) -> dict[str, float]:
    """What each tensor of the network's state dict takes of the coded weights, tables included."""
    taken: dict[str, float] = {}
    for column in _columns(network):
        count = sum(map(math.prod, column.group.shapes.values()))
        for name, shape in column.group.shapes.items():
            taken[name] = taken.get(name, 0.0) + column.bits / 8 * math.prod(shape) / count
    return taken


def _columns(network: Int8Network) -> Iterator[_Column]:
    """All that is coded, in the order in which it is decoded."""
    state, last = network.state_dict(), FLAT
    for group in coded_groups(network):
        matrix = group.matrix(state)
        tables = choose_tables(matrix, last)
        last = tables[-1]
        for symbols, table in zip(matrix, tables, strict=True):
            yield _Column(group, symbols, table)


def _push_all(columns: Sequence[_Column], states: Tensor) -> Tensor:
    """Push what `columns` hold onto `states`, int64 [lanes], the last first; gives the words that they give off."""
    words: list[Tensor] = []
    for column in reversed(columns):
        frequencies = column.table.frequencies
        starts = frequencies.cumsum(0) - frequencies
        for row in reversed(torch.split(column.symbols, len(states))):
            words.append(_push(states[: len(row)], frequencies[row.long()], starts[row.long()]))
    return torch.cat(words[::-1])


def _push(states: Tensor, frequencies: Tensor, starts: Tensor) -> Tensor:
    """One step, in place: a state s becomes TOTAL * (s // f) + s % f + start, below 2^32."""
    full = (states >= frequencies << (2 * WORD - PRECISION)).nonzero().squeeze(1)
    words: Tensor = states[full] & (2**WORD - 1)
    states[full] >>= WORD
    quotients = states.div(frequencies, rounding_mode="floor")
    states += (quotients << PRECISION) - quotients * frequencies + starts
    return words
