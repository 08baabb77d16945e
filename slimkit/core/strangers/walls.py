"""The walls that a process puts around itself before it touches a stranger's code. They can't be taken down again."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from slimkit.core.strangers import seccomp

SPARE_ADDRESSES = 8 * 2**30  # bytes that may be mapped beyond the memory that may be used: libraries, stacks
MOST_FILE = 64 * 2**20  # bytes of each file that it writes
MOST_FILES = 256  # open at once
MOST_SECONDS = 3600  # of computing, over all threads
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime")
PYTHON = ("bin", "lib", "lib64", "pyvenv.cfg")  # of the folder of an interpreter, in which there may be more
DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")
HARDWARE = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system", "/proc/self")

WALLS = ("limits", "capabilities", "no_new_privs", "landlock", "seccomp")  # in the order in which they go up
BUBBLEWRAP = "bubblewrap"  # around all of them, where it works


def raise_walls(shown: Sequence[Path], scratch: Path, memory: int) -> dict[str, str]:
    """Put up what can be put up; gives for each of WALLS "" where it holds, or why it is missing.

    shown: folders that may be read. scratch: may be written, too. memory: bytes that may be used. To be called before
    other threads are started: two of the walls are of one thread and those that it starts.
    """
    walls: dict[str, Callable[[], None]] = {
        "limits": lambda: set_limits(memory),
        "capabilities": drop_capabilities,
        "no_new_privs": keep_privileges_down,
        "landlock": lambda: hide_files(shown, scratch),
        "seccomp": seccomp.install,
    }
    return {name: _try(walls[name]) for name in WALLS}


def _try(wall: Callable[[], None]) -> str:
    try:
        wall()
    except (OSError, ValueError, ImportError, AttributeError) as error:
        return str(error) or type(error).__name__
    return ""


def set_limits(memory: int) -> None:
    """Bound memory, files, computing time and processes, and end with the parent."""
    limits = {
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_AS: memory + SPARE_ADDRESSES,
        resource.RLIMIT_FSIZE: MOST_FILE,
        resource.RLIMIT_NOFILE: MOST_FILES,
        resource.RLIMIT_CPU: MOST_SECONDS,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 2**20,
    }
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    parent = os.getppid()
    _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise OSError(errno.ESRCH, "the parent is gone already")


def drop_capabilities() -> None:
    """Root keeps no more power than its files give it."""
    for capability in range(64):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; those that do not exist fail
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    nothing = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def keep_privileges_down() -> None:
    """No program that is started gets more rights than this one."""
    _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS


def hide_files(shown: Sequence[Path], scratch: Path) -> None:
    """Leave of the file system the interpreter with its packages, and `shown` to read, `scratch` to write."""
    from landlockpy import AccessFS, Ruleset, Scope

    read = AccessFS.READ_FILE | AccessFS.READ_DIR
    write = read | AccessFS.WRITE_FILE | AccessFS.TRUNCATE | AccessFS.MAKE_REG | AccessFS.MAKE_DIR
    write |= AccessFS.REMOVE_FILE | AccessFS.REMOVE_DIR
    with Ruleset(scoped=Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL) as rules:
        for path in readable():
            rules.allow_path(path, read | AccessFS.EXECUTE if path.is_dir() else AccessFS.READ_FILE)
        for path in _readable_here(DEVICES):
            rules.allow_path(path, AccessFS.READ_FILE | AccessFS.WRITE_FILE)
        for folder in shown:
            rules.allow_path(folder, read)
        rules.allow_path(scratch, write)
        rules.restrict()


def readable() -> list[Path]:
    """What every process may read: the interpreter with its packages, the system's libraries, what the hardware is."""
    return _readable_here([*_interpreter(), *SYSTEM, *HARDWARE])


def _interpreter() -> list[str]:
    """Where Python and its packages lie: folders of packages alone, not what else is on sys.path."""
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages", "lib-dynload")]
    own = str(Path(__file__).resolve().parents[2])  # slimkit itself
    parts = [str(Path(root, name)) for root in (sys.prefix, sys.base_prefix) for name in PYTHON]
    return [*packages, *parts, own]


def _readable_here(paths: Iterable[str]) -> list[Path]:
    return [Path(path) for path in dict.fromkeys(paths) if os.access(path, os.R_OK)]


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
