"""Where in the user's network a traced call comes from."""

from __future__ import annotations

import importlib.util
import re
import sysconfig
from pathlib import Path

from torch import fx

_NOT_USERS = tuple(
    Path(spec.origin).parent  # not imported for it: sympy takes half a second
    for package in ("torch", "sympy", "slimkit")
    if (spec := importlib.util.find_spec(package)) and spec.origin
)
_PYTHON = Path(sysconfig.get_path("stdlib"))
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in \S+\n\s*(?P<code>[^\n]*)')


def module_path(node: fx.Node) -> str:
    """The path of the module whose forward() makes the call; "" for the network's own."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return paths[-1].split("@")[0] if paths else ""  # "@1" marks a module's second call


def source_line(node: fx.Node) -> str:
    """The last line of code outside of torch that led to the call: "net.py:12: x = self.conv(x)"; "" if unknown."""
    frames = [f for f in _FRAME.finditer(node.meta.get("stack_trace") or "") if is_users(f["file"])]
    if not frames:
        return ""
    frame = frames[-1]
    return f"{Path(frame['file']).name}:{frame['line']}: {frame['code'].strip()}"


def is_users(filename: str) -> bool:
    """Whether a file of Python code is none of Python's, of slimkit's, or of torch and what torch computes with."""
    file = Path(filename)
    if filename.startswith("<") or any(file.is_relative_to(folder) for folder in _NOT_USERS):
        return False
    return not file.is_relative_to(_PYTHON) or "site-packages" in file.parts
