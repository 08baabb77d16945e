"""What the processes that time networks inherit, and how long they are waited for."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import slimkit
from slimkit.waiting import limit_spinning

ANSWER_SECONDS = 600.0  # that one answer may take: a hundred times what the largest network needs

_VARIABLES = frozenset(
    {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "LD_LIBRARY_PATH", "LD_PRELOAD"}
    | {"DYLD_LIBRARY_PATH", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES", "LRU_CACHE_CAPACITY"}
)
_PREFIXES = ("LC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "ATEN_", "MALLOC_", "GLIBC_")


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of a process that computes on so many threads: what concerns the computation, no secrets.

    It finds the very slimkit that runs here, be it a checkout in the current folder, and all else that is found here.
    """
    kept = {name: value for name, value in os.environ.items() if name in _VARIABLES or name.startswith(_PREFIXES)}
    limit_spinning(kept)
    path = os.pathsep.join([str(Path(slimkit.__file__).resolve().parents[1]), *filter(None, sys.path)])
    return kept | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def read_answer(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints; "" where it ended, or was ended since it took too long.

    Raises TimeoutError in the latter case. Each answer is one line, and the next is asked for when it was read.
    """
    assert process.stdout is not None  # a pipe, by construction
    ready, _, _ = select.select([process.stdout], [], [], ANSWER_SECONDS)
    if not ready:
        process.kill()
        raise TimeoutError(f"it gave no answer in {ANSWER_SECONDS:g} s")
    return process.stdout.readline()
