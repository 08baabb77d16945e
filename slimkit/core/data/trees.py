"""Folders and .zip files as one thing: a tree of named files."""

import logging
import os
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Protocol

from slimkit.core.errors import DataError
from slimkit.standalone import model_loader

log = logging.getLogger("slimkit")

ZIP_HINT = "Pack the images into a new .zip, or unpack this one and name the folder."


class Tree(Protocol):
    """A tree of files. Goes whole to worker processes, so it can be pickled."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    def names(self) -> list[str]:
        """The paths of all files below the root, with slashes, sorted; those of folders end in a slash."""

    def read(self, name: str) -> bytes:
        """The content of a file. Raises DataError that names it."""


@dataclass(frozen=True)
class FolderTree:
    """A folder on the disk."""

    path: Path

    def names(self) -> list[str]:
        """As `Tree.names`; links are followed to folders that are not read anyway, hidden files are left out."""
        try:
            names, remarks = model_loader.walk(self.path)
        except OSError as error:
            reason = f"{error.filename} can't be read: {error.strerror}."
            raise DataError(reason, "Check the folder's permissions.") from error
        for remark in remarks:
            log.warning("%s", remark)
        return names

    def read(self, name: str) -> bytes:
        """As `Tree.read`."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.path / name} can't be read: {error.strerror}.", "Check the file.") from error


@dataclass(frozen=True)
class ZipTree:
    """A .zip file, read in place."""

    path: Path

    def names(self) -> list[str]:
        """As `Tree.names`. Raises DataError for a damaged file, and for names that lead out of it."""
        names = _open_zip(self.path, os.getpid()).namelist()
        for name in names:
            if name.startswith("/") or name[1:2] == ":" or "\\" in name or ".." in PurePosixPath(name).parts:
                raise DataError(f"{self.path} holds the unsafe name {name!r}.", ZIP_HINT)
        return model_loader.visible(names)

    def read(self, name: str) -> bytes:
        """As `Tree.read`."""
        try:
            return _open_zip(self.path, os.getpid()).read(name)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
            raise DataError(f"{name} in {self.path} can't be read: {error}.", ZIP_HINT) from error


@lru_cache(maxsize=4)
def _open_zip(path: Path, process: int) -> zipfile.ZipFile:
    """The open file; each process has its own, since a file's position is shared by forked processes."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is not a readable .zip: {error}.", ZIP_HINT) from error
