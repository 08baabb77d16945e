"""Writing files and folders so that they are there whole, or not at all.

A folder takes the place of another one in a single step, where the system can exchange two names (Linux, macOS). Where
it can't, the old folder is called `.NAME.old` for a moment: `recover_folder` gives it its name back if the process was
killed just then, the next time that the folder is read or written.
"""

import csv
import ctypes
import errno
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slimkit.core.errors import FolderError

WRITTEN_HERE = "# slimkit "  # how every configuration begins that slimkit wrote


def cache_folder() -> Path:
    """Where downloads and timings are kept for the next time: $SLIMKIT_CACHE, else ~/.cache/slimkit."""
    return Path(os.environ.get("SLIMKIT_CACHE") or Path.home() / ".cache" / "slimkit")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to a temporary file beside `path`, flush it to the disk and rename it into place for good."""
    path = Path(os.path.realpath(path))  # a link stays one: what it leads to is replaced
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
        _flush_to_disk(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; when the block ends well, it takes the place of `path`."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield staging
        for file in (*staging.iterdir(), staging):
            _flush_to_disk(file)
        staging.chmod(0o777 & ~_umask())
        _replace_folder(staging, path)
    finally:  # what is there by that name now is what was not finished, or what was replaced
        shutil.rmtree(staging, ignore_errors=True)


def require_absent(path: Path, force: bool) -> None:
    """Raise FolderError where `path` can't be made, or holds something that must not be overwritten."""
    _require_parent(path)
    recover_folder(path)
    if force or not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return
    raise FolderError(f"{path} exists already.", "Give -f/--force to replace it, or -o/--output to write elsewhere.")


def require_file(path: Path, force: bool) -> None:
    """Raise FolderError where no file can be written to `path`, or one must not be overwritten."""
    if path.is_dir():
        raise FolderError(f"{path} is a folder, and a file is to be written.", "Give -o/--output the name of a file.")
    require_absent(path, force)
    if path.exists() and not path.is_file():
        raise FolderError(f"{path} is no regular file, so it is not replaced.", "Give another -o/--output.")


def require_folder(path: Path, force: bool) -> None:
    """Raise FolderError where no folder can be written to `path`, or what it holds must not be overwritten."""
    if path.exists() and not path.is_dir():
        raise FolderError(f"{path} is a file, and a folder is to be written.", "Give another -o/--output.")
    real = Path(os.path.realpath(path))
    if real in (Path.cwd(), *Path.cwd().parents):
        raise FolderError(
            f"{path} is the working folder, or holds it, so it is not replaced.", "Give -o/--output a folder in it."
        )
    require_absent(path, force)


def recover_folder(path: Path) -> None:
    """Give a folder its name back that lost it to a replacement which was killed half-way."""
    aside = _aside(path)
    if not os.path.lexists(path) and aside.is_dir():
        aside.rename(path)


def _require_parent(path: Path) -> None:
    """Raise FolderError where the folder that `path` is to be in is none, or can't be written to."""
    parent = Path(os.path.realpath(path)).parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise FolderError(f"{path} can't be written: {parent} is no folder.", "Give another -o/--output.")
    try:
        with tempfile.TemporaryFile(dir=parent):  # what permissions say is not all: a full or a virtual file system
            pass
    except OSError as error:
        raise FolderError(
            f"{path} can't be written: the folder {parent} takes no files ({error.strerror}).",
            "Give yourself access, or another -o/--output.",
        ) from None


def _replace_folder(staging: Path, path: Path) -> None:
    """Let `staging` be called `path`; what was called so, if anything, is called `staging` then, or gone."""
    if not path.exists():
        staging.replace(path)
    elif not _exchange(staging, path):
        _replace_in_two_steps(staging, path)
    _flush_to_disk(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system can't."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        failed = libc.renamex_np(*names, ctypes.c_uint(2))  # RENAME_SWAP
    elif hasattr(libc, "renameat2"):
        here = ctypes.c_int(-100)  # AT_FDCWD
        failed = libc.renameat2(here, names[0], here, names[1], ctypes.c_uint(2))  # RENAME_EXCHANGE
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _replace_in_two_steps(staging: Path, path: Path) -> None:
    aside = _aside(path)
    shutil.rmtree(aside, ignore_errors=True)  # of a replacement that was killed before it cleaned up
    try:
        path.rename(aside)
        staging.rename(path)
    except BaseException:
        recover_folder(path)
        raise
    shutil.rmtree(aside)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old") if path.name else path


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


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """A table as the content of a .csv file."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
