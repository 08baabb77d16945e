"""Regions of an exported program that only set a mode, put in line: autocast that is off, gradients that are not kept.

torch.export makes a program of its own of what stands below `with torch.autocast(..., enabled=False)` or
`torch.no_grad()`, and calls it. For a network that computes in float32 without gradients the mode changes nothing.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx
from torch.export import ExportedProgram

MODES = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}  # by name: the place of the inner program


def inline_modes(program: ExportedProgram) -> None:
    """Put in line, in place, what stands below modes that change nothing here."""
    graph = program.graph
    while (node := next((n for n in graph.nodes if _changes_nothing(n)), None)) is not None:
        place = MODES[_name(node)]
        inner: Any = program.graph_module.get_submodule(str(node.args[place].target))
        given = node.args[place + 1 :]
        values = dict(zip((n for n in inner.graph.nodes if n.op == "placeholder"), given, strict=True))
        with graph.inserting_before(node):
            results = graph.graph_copy(inner.graph, values)
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(results[user.args[1]])  # a tuple, as exported
            graph.erase_node(user)
        graph.erase_node(node)


def _name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", "") or str(node.target)


def _changes_nothing(node: fx.Node) -> bool:
    if node.op != "call_function" or _name(node) not in MODES:
        return False
    if _name(node) != "wrap_with_autocast":
        return True
    device, _, enabled, *_ = node.args
    return not enabled or device != "cpu"
