"""Writing files and folders so that they are there whole, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimkit.core.errors import FolderError


def cache_folder() -> Path:
    """Where downloads and timings are kept for the next time: $SLIMKIT_CACHE, else ~/.cache/slimkit."""
    return Path(os.environ.get("SLIMKIT_CACHE") or Path.home() / ".cache" / "slimkit")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to a temporary file beside `path`, flush it to the disk and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; when the block ends well, it takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield staging
        for file in staging.iterdir():
            _flush_to_disk(file)
        staging.chmod(0o777 & ~_umask())
        _replace_folder(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def require_absent(path: Path, force: bool) -> None:
    """Raise FolderError where `path` holds something that must not be overwritten."""
    if force or not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    raise FolderError(f"{path} exists already.", "Give -f/--force to replace it, or -o/--output to write elsewhere.")


def _replace_folder(staging: Path, path: Path) -> None:
    if path.exists():
        old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
        path.replace(old / path.name)
        staging.replace(path)
        shutil.rmtree(old)
    else:
        staging.replace(path)
    _flush_to_disk(path.parent)


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
