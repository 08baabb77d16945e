"""An exported program without operations that change a tensor in place.

torch.export keeps `relu_` and `+=` as they were written. Its own `run_decompositions` makes any program functional, but
traces it a second time, which takes longer than the first. Most networks change in place only what nothing else shares;
for these it is enough to let all later readers read the result.
"""

from __future__ import annotations

from torch import fx
from torch.export import ExportedProgram

from slimkit.core.graph.inline import inline_modes


def functionalize(program: ExportedProgram) -> ExportedProgram:
    """The program, if reading the results of in-place operations is enough for it; else what torch makes of it."""
    inline_modes(program)
    if _shares_nothing_changed(program.graph):
        _read_results(program.graph)
        return program
    return program.run_decompositions({})  # type: ignore[no-any-return]  # untyped in torch


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
