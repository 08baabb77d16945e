"""An exported program without operations that change a tensor in place, or that have no normal form.

torch.export keeps `relu_` and `+=` as they were written. Its own `run_decompositions` makes any program functional, but
traces it a second time, which takes longer than the first. Most networks change in place only what nothing else shares;
for these it is enough to let all later readers read the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from slimkit.core.graph.inline import inline_modes

ROUNDS = 3  # in which what an operation was decomposed into is decomposed

Decomposition = Callable[..., object]


def functionalize(program: ExportedProgram, is_known: Callable[[str], bool]) -> ExportedProgram:
    """The program, if reading the results of in-place operations is enough for it; else what torch makes of it.

    is_known: whether the operation of a name has a normal form. Others are decomposed as far as torch knows how.
    """
    inline_modes(program)
    shares = not _shares_nothing_changed(program.graph)
    for _ in range(ROUNDS):
        chosen = _decompositions_of(program.graph, is_known)
        if not chosen and not shares:
            break
        program, shares = program.run_decompositions(chosen), False
    _read_results(program.graph)
    return program


def _decompositions_of(graph: fx.Graph, is_known: Callable[[str], bool]) -> dict[object, Decomposition]:
    """How to decompose the operations of a graph that are not known, as far as that can be done."""
    targets = {node.target for node in graph.nodes if node.op == "call_function" and hasattr(node.target, "_schema")}
    unknown = {target for target in targets if not is_known(operation_name(target))}
    return {target: _table()[target] for target in unknown if target in _table()}


def operation_name(target: object) -> str:
    """The name of an operation without its overload: "add_"; "prims::cos" for one that isn't ATen's."""
    return str(target._schema.name).removeprefix("aten::")  # type: ignore[attr-defined]  # an overload


@cache
def _table() -> Mapping[object, Decomposition]:
    own: dict[object, Decomposition] = {torch.ops.aten.cdist.default: _cdist}
    table = torch.export.default_decompositions()
    return {**{target: table[target] for target in table}, **own}


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """Distances of each row of x1 [..., a, c] to each of x2 [..., b, c]: [..., a, b]."""
    distances: Tensor = torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), ord=p, dim=-1)
    return distances


def _shares_nothing_changed(graph: fx.Graph) -> bool:
    """Whether nothing that is changed in place is a view, has one, or comes from outside."""
    owners: dict[fx.Node, fx.Node] = {}  # the node that first made a node's memory
    shared: set[fx.Node] = set()  # owners of memory that several nodes show
    for node in graph.nodes:
        if node.op != "call_function":
            owners[node] = node
            shared.add(node)  # the caller's
            continue
        changed = changed_argument(node)
        if changed is not None:
            if owners[changed] in shared:
                return False
            owners[node] = owners[changed]
        elif _is_view(node):
            source = owners.get(node.all_input_nodes[0], node) if node.all_input_nodes else node
            owners[node] = source
            shared.add(source)
        else:
            owners[node] = node
    return True


def _read_results(graph: fx.Graph) -> None:
    """Let what comes after an in-place operation read its result in place of what it changed."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        changed = changed_argument(node) if node.op == "call_function" else None
        if changed is not None:
            for user in list(changed.users):
                if order[user] > order[node]:
                    user.replace_input_with(changed, node)


def changed_argument(node: fx.Node) -> fx.Node | None:
    """What a call changes in place, if it does."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return None
    for argument, value in zip(schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, fx.Node):
            return value
    return None


def _is_view(node: fx.Node) -> bool:
    """Whether a call may give a view of its input: also those that give the very parts of a list."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(argument.alias_info is not None for argument in schema.arguments)
