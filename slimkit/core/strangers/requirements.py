"""What a stranger's requirements.txt asks for, installed into throwaway environments; none of its code runs meanwhile.

Wheels alone are installed, since whatever else pip takes is built by code of its own. Each of the environments is
installed into once, since Python runs the .pth files of one where it starts. The child sees their packages after its
walls are up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from slimkit.core.errors import FolderError, ModelError
from slimkit.core.measure.processes import worker_environment
from slimkit.core.strangers.convention import Submission, printable

NAME = "requirements.txt"
MOST_BYTES = 2**16  # of that file
PIP = ("-m", "pip", "install", "--only-binary", ":all:", "--no-input", "--no-compile", "--quiet")
PIP_SECONDS = 900.0
FROM_INDEX: tuple[str, ...] = ()
LOCAL = ("--no-deps",)  # a wheel's own requirements may be addresses of what is built by its code


@contextmanager
def installed(submission: Submission) -> Iterator[tuple[Path, ...]]:
    """Folders of packages for sys.path, while the block runs; none where `submission` has no requirements.txt.

    What is installed here already is not installed again. Raises FolderError for a line that is neither a package's
    name nor a wheel in the folder, ModelError where pip can't install what is asked for.
    """
    names, wheels = read_requirements(submission.folder)
    with tempfile.TemporaryDirectory(prefix="slimkit-requirements-", ignore_cleanup_errors=True) as place:
        wanted = [(kind, asked) for kind, asked in ((FROM_INDEX, names), (LOCAL, wheels)) if asked]
        yield tuple(
            _install(submission, Path(place) / str(number), [*kind, *asked])
            for number, (kind, asked) in enumerate(wanted)
        )


def read_requirements(folder: Path) -> tuple[list[str], list[str]]:
    """The packages that pip finds by name, and the wheels in the folder. Raises FolderError for any other line."""
    file = folder / NAME
    if not file.is_file():
        return [], []
    if file.stat().st_size > MOST_BYTES:
        raise FolderError(f"{folder.name}: {NAME} has more than {MOST_BYTES:,} bytes.", "Name a few packages.")
    names: list[str] = []
    wheels: list[str] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        asked = line.split(" #")[0].strip()
        if not asked or asked.startswith("#"):
            continue
        if asked.endswith(".whl") and "://" not in asked:
            wheels.append(_wheel(folder, asked))
        else:
            names.append(_named(folder, asked))
    return names, wheels


def _wheel(folder: Path, asked: str) -> str:
    file = (folder / asked).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        raise FolderError(
            f"{folder.name}: {NAME} asks for {printable(asked)}, which is not in the folder.", "Put the wheel there."
        )
    return str(file)


def _named(folder: Path, asked: str) -> str:
    try:
        requirement = Requirement(asked)
    except InvalidRequirement:
        requirement = None
    if requirement is None or requirement.url:
        raise FolderError(
            f"{folder.name}: {NAME} asks for {printable(asked)!r}, which is no package's name.",
            "Packages by name and version are installed, and wheels in the folder; no options, addresses and sources.",
        )
    return str(requirement)


def _install(submission: Submission, environment: Path, asked: Sequence[str]) -> Path:
    """The folder of packages of a new environment that holds what is asked for and not here."""
    venv.create(environment)
    python = environment / "bin" / "python"
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    own["PYTHONPATH"] = worker_environment(1)["PYTHONPATH"]  # by which pip is found, and what is here already
    try:
        done = subprocess.run([python, *PIP, *asked], capture_output=True, env=own, timeout=PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise _failure(submission, f"pip took more than {PIP_SECONDS:g} s") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise _failure(submission, lines[-1] if lines else f"pip ended with code {done.returncode}")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return environment / "lib" / version / "site-packages"


def _failure(submission: Submission, why: str) -> ModelError:
    return ModelError(
        f"{printable(submission.folder.name)} failed: its requirements can't be installed ({printable(why)}).",
        "pip has to reach an index that has them as wheels, by its own settings.",
    )
