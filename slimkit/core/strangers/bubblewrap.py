"""bubblewrap around a stranger's process, where it works: it then has file system, processes and network of its own.

What the other walls forbid to open does not even exist there. See bwrap(1).
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from slimkit.core.measure.processes import worker_environment
from slimkit.core.strangers.walls import readable
from slimkit.core.strangers.watch import MOST_SCRATCH

PROBE_SECONDS = 20.0


@functools.cache
def why_absent() -> str:
    """Why bubblewrap can't be used here; "" where it works, which is tried."""
    if shutil.which("bwrap") is None:
        return "bwrap is not installed"
    probe = [*around([], None), sys.executable, "-c", "import slimkit.core.strangers.walls"]
    try:
        done = subprocess.run(probe, capture_output=True, env=worker_environment(1), timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = done.stderr.decode(errors="replace").splitlines()
    return "" if done.returncode == 0 else lines[-1] if lines else f"it ended with code {done.returncode}"


def around(shown: Sequence[Path], scratch: Path | None) -> list[str]:
    """What stands in front of a command that sees the folders `shown`, may write to `scratch`, and else has Python."""
    command = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL"]
    command += ["--proc", "/proc", "--dev", "/dev"]
    for path in (*readable(), *shown):
        if not path.is_relative_to("/proc"):
            command += ["--ro-bind", str(path), str(path)]
    if scratch:
        command += ["--size", str(MOST_SCRATCH), "--tmpfs", str(scratch), "--chdir", str(scratch)]
    return [*command, "--"]
