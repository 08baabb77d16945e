"""Channels as atoms: which of them must be cut together, and which can't be cut at all."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Atoms:
    """A union-find over channel atoms, numbered from 0, with a reason for each that must stay.

    A tensor of atoms has an activation's shape and holds, at each position, the channel that its value belongs to.
    """

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Tensor:
        """`count` new atoms: int64 [count]."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Let the atoms at equal positions of two broadcastable tensors be cut together only."""
        first, second = _without_repeats(*broadcast(first, second))
        differ = first != second
        for code in distinct(first[differ] * len(self._parents) + second[differ]):
            one, other = sorted((self._root(code // len(self._parents)), self._root(code % len(self._parents))))
            self._parents[other] = one

    def freeze(self, atoms: Tensor, reason: str) -> None:
        """Let these atoms stay; the first reason given to an atom is the one reported."""
        for atom in distinct(atoms):
            self._reasons.setdefault(atom, reason)

    def roots(self) -> Tensor:
        """For each atom, the lowest number among the atoms that it is cut with: int64 [atoms]."""
        return torch.tensor([self._root(atom) for atom in range(len(self._parents))])

    def reasons(self) -> dict[int, str]:
        """For each root whose atoms must stay, why."""
        found: dict[int, str] = {}
        for atom, reason in self._reasons.items():
            found.setdefault(self._root(atom), reason)
        return found

    def _root(self, atom: int) -> int:
        while self._parents[atom] != atom:
            self._parents[atom] = self._parents[self._parents[atom]]
            atom = self._parents[atom]
        return atom


def broadcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, expanded to their common shape."""
    return tuple(torch.broadcast_tensors(*tensors))  # type: ignore[no-untyped-call]  # torch lacks the annotation


def distinct(atoms: Tensor) -> list[int]:
    """The different numbers in a tensor, sorted."""
    (narrow,) = _without_repeats(atoms)
    numbers: list[int] = narrow.unique().tolist()  # type: ignore[no-untyped-call]  # torch lacks the annotation
    return numbers


def varies(atoms: Tensor, dim: int) -> bool:
    """Whether different channels lie along a dimension."""
    (narrow,) = _without_repeats(atoms)
    return bool((narrow != narrow.narrow(dim, 0, 1)).any())


def is_spread_over_channels(operand: Tensor, whole: Sequence[Tensor]) -> bool:
    """Whether broadcasting repeats `operand` along a dimension in which another operand holds different channels."""
    sizes = [1] * (whole[0].dim() - operand.dim()) + list(operand.shape)
    repeated = [dim for dim, size in enumerate(sizes) if size == 1 < whole[0].shape[dim]]
    return any(varies(other, dim) for dim in repeated for other in whole)


def _without_repeats(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Drop what expand() merely repeats in all of them: maps of atoms repeat over space, so this keeps them small."""
    for dim in range(tensors[0].dim()):
        if all(t.stride(dim) == 0 for t in tensors):
            tensors = tuple(t.narrow(dim, 0, 1) for t in tensors)
    return tensors
