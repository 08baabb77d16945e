"""Arrays that take long to find, kept on disk by what they depend on: each is found once, whatever asks for it."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

import slimkit
from slimkit.core.files import cache_folder, write_atomically

log = logging.getLogger("slimkit")


@dataclass(frozen=True)
class Shelf:
    """A folder of such arrays."""

    name: str  # of the folder in `cache_folder()`
    most: int  # bytes of all files together: those go that were not used for longest

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return cache_folder() / self.name

    def get(
        self, depends_on: str, shape: tuple[int, ...], dtype: DTypeLike, find: Callable[[], NDArray[Any]]
    ) -> NDArray[Any]:
        """What `find` gave, or gives now, for all that `depends_on` says in words. A damaged file is made anew.

        An array that can't be kept is given all the same, and a warning is in the log.
        """
        digest = hashlib.sha256(f"{slimkit.__version__} {depends_on}".encode()).hexdigest()
        file = self.folder / f"{digest[:40]}.npy"
        known = _read(file)
        if known is not None and known.shape == shape and known.dtype == dtype:
            return known
        found = find()
        self._keep(file, found)
        return found

    def _keep(self, file: Path, found: NDArray[Any]) -> None:
        content = io.BytesIO()
        np.save(content, found)
        try:
            write_atomically(file, content.getvalue())
            self._forget_oldest()
        except OSError as error:
            log.warning("%s is not kept for the next time: %s", self.name, error)

    def _forget_oldest(self) -> None:
        files = sorted(self.folder.glob("*.npy"), key=lambda file: file.stat().st_mtime, reverse=True)
        total = 0
        for file in files:
            total += file.stat().st_size
            if total > self.most:
                file.unlink(missing_ok=True)


def _read(file: Path) -> NDArray[Any] | None:
    """None where there is no such file, or a damaged one."""
    try:
        known: NDArray[Any] = np.load(file, mmap_mode="r")
        file.touch()  # it is of use
    except (OSError, ValueError, EOFError):
        return None
    return known
