"""From a float network to the list of operations that its int8 network runs.

The network is captured as a graph, so nothing here knows the attribute names of any family. One operation is made per
node, then BatchNorm, ReLU and residual sums are fused into the convolutions before them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from slimkit.core.graph import capture
from slimkit.core.quantization.lowering.functions import read_call
from slimkit.core.quantization.lowering.reading import Call
from slimkit.core.quantization.lowering.traced import OPERATION, traced_network


@dataclass(frozen=True)
class Operation:
    """One layer of the int8 network, still tied to the float one."""

    name: str
    type: str  # of the standalone layers ("Quantized" is put before "Conv2d" and "Linear" later)
    inputs: tuple[str, ...]  # names of earlier operations; "input" is the image
    node: fx.Node  # its output in the float graph
    module: nn.Module | None = None  # the float layer, where it has one
    options: dict[str, Any] = field(default_factory=dict)  # the function that it calls, and with what
    batch_norm: nn.BatchNorm2d | None = None  # to be folded into `module`
    padding: tuple[int, int] | None = None  # of a convolution that took in the zeros put around its input before it
    activation: str | None = None  # "relu" or "relu6"
    gives_codes: bool = False  # whether the output is uint8 codes; otherwise it is float
    is_float: bool = False  # whether it computes in float
    before_sum: fx.Node | None = None  # where a residual is added: the convolution's own output in the float graph

    @property
    def has_scale(self) -> bool:
        """Whether its output is codes of a scale of its own."""
        return self.gives_codes and self.type not in PASSING

    @property
    def passes_codes(self) -> bool:
        """Whether codes go through it, and keep the scale of its inputs."""
        return self.type in PASSING and not self.is_float


BATCH = 2  # images with which shapes are found
WEIGHTED = ("Conv2d", "Linear")
PASSING = ("Concatenate", "Flatten", "MaxPool2d", "Rearrange", "ZeroPad")  # give codes of their inputs' scale, or float
VIEWS = ("Flatten", "Rearrange")  # of these, the ones whose output may be their input's memory
FLOAT = ("Constant", "Function")  # have no int8 form


class _Shapes(fx.Interpreter):
    """Runs a traced network and keeps every node's value, as a shape where it is a tensor."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        parts = isinstance(result, tuple | list) and not isinstance(result, torch.Size) and result
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        elif parts and all(isinstance(part, Tensor) for part in parts):
            n.meta["parts"] = [tuple(part.shape) for part in parts]
        else:
            n.meta["value"] = result
        return result


def lower(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[fx.GraphModule, list[Operation]]:
    """Capture `module` and fuse: the network, and the operations in the order that they run.

    input_shape: (channels, height, width) of one image. The network has the very tensors of `module`.
    Raises ModelError that names what can't be captured or written down.
    """
    traced = traced_network(capture(module, input_shape, fixed_size=True))
    with torch.no_grad():
        _Shapes(traced).run(torch.zeros(BATCH, *input_shape))
    operations = _take_padding(_read_graph(traced))
    operations = _fuse(operations, "BatchNorm2d", ("Conv2d",), _take_batch_norm)
    operations = _fuse(operations, "Activation", ("Conv2d", "Linear", "Add", "BatchNorm2d"), _take_activation)
    return traced, operations


def assign_codes(operations: list[Operation], keep_float: Collection[str]) -> list[Operation]:
    """For the static scheme: decide what computes on codes, and insert a Quantize where float meets an int8 layer.

    Layers named in `keep_float`, functions without an int8 form and what is done to logits compute in float, and so
    does what has no weights and is read by such alone, as the sums between a transformer's LayerNorms, and what joins
    float to codes, whose one scale could be far too coarse for it; all others compute on codes. Their output is codes
    where any that reads it computes on codes; otherwise, as at the classifier, it is float.
    """
    late = _after_the_last_weights(operations)  # to round there would cost the logits bits and gain next to no time
    joined = _joined_to_float(operations)
    are_float = [o.name in {*keep_float, *late, *joined} or o.type in FLOAT for o in operations]
    operations = _mark_outputs([replace(o, is_float=f) for o, f in zip(operations, are_float, strict=True)])
    result: list[Operation] = []
    quantized: dict[str, str] = {}  # a float tensor -> the same as codes
    is_codes = {"input": False}
    nodes = {"input": next(iter(operations[0].node.graph.nodes))} | {o.name: o.node for o in operations}
    for operation in operations:
        inputs = list(operation.inputs)
        for index, source in enumerate(inputs):
            if not is_codes[source] and _must_be_codes(operation, index, [is_codes[other] for other in inputs]):
                if source not in quantized:
                    quantized[source] = f"quantize_{len(quantized)}" if quantized else "quantize"
                    result.append(Operation(quantized[source], "Quantize", (source,), nodes[source], gives_codes=True))
                    is_codes[quantized[source]] = True
                inputs[index] = quantized[source]
        if operation.passes_codes:
            operation = replace(operation, gives_codes=is_codes[inputs[0]])
        result.append(replace(operation, inputs=tuple(inputs)))
        is_codes[operation.name] = operation.gives_codes
    return result


def _after_the_last_weights(operations: list[Operation]) -> set[str]:
    """The names of what turns vectors [n, features] into others and feeds no layer with weights: a temperature, say."""
    feeding: set[str] = set()
    for operation in reversed(operations):
        if operation.type in WEIGHTED or operation.name in feeding:
            feeding.update(operation.inputs)
    others = [o for o in operations if o.name not in feeding and o.type not in (*WEIGHTED, *PASSING)]
    return {o.name for o in others if all(_has_vectors(node) for node in (o.node, *o.node.all_input_nodes))}


def _joined_to_float(operations: list[Operation]) -> set[str]:
    """The names of what joins several tensors, one of which at least is of a function without an int8 form."""
    in_float, joined = set[str](), set[str]()
    for operation in operations:
        from_float = in_float.intersection(operation.inputs)
        if operation.type in FLOAT or (operation.type in PASSING and from_float):
            in_float.add(operation.name)
        if operation.type in PASSING and from_float and len(set(operation.inputs)) > 1:
            joined.add(operation.name)
    return joined


def _has_vectors(node: fx.Node) -> bool:
    return len(node.meta.get("shape", ())) <= 2


def _must_be_codes(operation: Operation, index: int, are_codes: list[bool]) -> bool:
    """Whether input `index` has to be codes: an int8 layer's is, its residual's where its output is."""
    if operation.passes_codes:
        return any(are_codes)
    return operation.type in WEIGHTED and not operation.is_float and (index == 0 or operation.gives_codes)


def _mark_outputs(operations: list[Operation]) -> list[Operation]:
    """Set `gives_codes` of what computes on codes, from the last operation to the first; what feeds float alone is."""
    result: list[Operation] = []
    wanted: set[str] = set()  # the tensors that some reader wants as codes
    in_float: set[str] = set()  # those that some reader takes as numbers
    for operation in reversed(operations):
        passes, feeds_float = operation.passes_codes, operation.name in in_float and operation.name not in wanted
        is_float = operation.is_float or (feeds_float and not passes and operation.type not in WEIGHTED)
        gives_codes = operation.name in wanted and not is_float
        result.insert(0, replace(operation, gives_codes=gives_codes, is_float=is_float))
        if gives_codes or (not passes and not is_float):
            wanted.update(operation.inputs)
        elif is_float or feeds_float:
            in_float.update(operation.inputs)
    return result


def scale_owners(operations: list[Operation]) -> dict[str, str]:
    """For each operation that gives codes: one of those that share its scale, the same for all of them.

    What is concatenated has one scale, and what merely passes codes on has its input's.
    """
    owners = {"input": "input"}

    def find(name: str) -> str:
        while owners[name] != name:
            name = owners[name]
        return name

    for operation in operations:
        owners[operation.name] = operation.name
        if operation.type in PASSING and operation.gives_codes:
            for source in operation.inputs:
                owners[find(source)] = operation.name
    return {operation.name: find(operation.name) for operation in operations if operation.gives_codes}


def _read_graph(traced: fx.GraphModule) -> list[Operation]:
    """One operation per node, except for those that do nothing in eval mode or give no tensor."""
    operations: list[Operation] = []
    names: dict[fx.Node, str] = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            names[node] = "input"
        elif node.op != "output" and "shape" in node.meta:
            operation = _read_node(node, traced, names, {o.name for o in operations})
            names[node] = operation.inputs[0] if operation.type == "Identity" else operation.name
            operations += [operation] if operation.type != "Identity" else []
    read = {source for operation in operations for source in operation.inputs}
    return [o for o in operations if o.type != "Constant" or o.name in read]


def _read_node(node: fx.Node, traced: fx.GraphModule, names: dict[fx.Node, str], taken: set[str]) -> Operation:
    if node.op == "get_attr":
        value = attribute_at(traced, str(node.target))
        return Operation(node.name, "Constant", (), node, options={"shape": list(value.shape)})
    if node.op == "call_module":
        module, name = traced.get_submodule(str(node.target)), str(node.target)
        kind = "BatchNorm2d" if isinstance(module, nn.BatchNorm2d) else type(module).__name__
        dimensions = len(node.meta["shape"])
        options = {} if dimensions == (2 if isinstance(module, nn.Linear) else 4) else {"dimensions": dimensions}
        return Operation(name, kind, (names[node.all_input_nodes[0]],), node, module, options)
    call: Call = read_call(node)
    own = str(node.meta[OPERATION].name)
    name = own if own not in taken else node.name
    return Operation(name, call.type, tuple(names[source] for source in call.sources), node, options=call.options)


def attribute_at(traced: fx.GraphModule, path: str) -> Tensor:
    """The parameter or buffer at the dotted `path`."""
    parent, _, attribute = path.rpartition(".")
    value: Tensor = getattr(traced.get_submodule(parent), attribute)
    return value


def _take_padding(operations: list[Operation]) -> list[Operation]:
    """Let convolutions put zeros around their input themselves, where an operation before them does it evenly."""
    pads = {o.name: (o.inputs[0], around) for o in operations if (around := _zeros_around(o)) is not None}
    taken = []
    for operation in operations:
        source = operation.inputs[0] if operation.inputs else ""
        if source in pads and isinstance(operation.module, nn.Conv2d) and not isinstance(operation.module.padding, str):
            before, (rows, columns) = pads[source]
            own = operation.module.padding
            operation = replace(operation, inputs=(before,), padding=(own[0] + rows, own[1] + columns))
        taken.append(operation)
    users = _count_users(taken)
    return [o for o in taken if o.name not in pads or users[o.name] or o is operations[-1]]


def _zeros_around(operation: Operation) -> tuple[int, int] | None:
    """How many rows and columns of zeros are put on each side, where they are as many on opposite sides."""
    if operation.type != "ZeroPad":
        return None
    sides: list[int] = operation.options["arguments"][1]
    left, right, top, bottom, *others = *sides, 0, 0
    is_even = left == right >= 0 and top == bottom >= 0 and not any(others)
    return (top, left) if is_even else None


def _take_batch_norm(host: Operation, guest: Operation) -> Operation | None:
    assert isinstance(guest.module, nn.BatchNorm2d)
    return replace(host, batch_norm=guest.module) if host.batch_norm is None else None


def _take_activation(host: Operation, guest: Operation) -> Operation | None:
    activation = {"functional.relu": "relu", "functional.relu6": "relu6"}.get(guest.options["function"])
    if activation is None or (activation == "relu6" and host.type == "Add"):
        return None
    return replace(host, activation=activation)


def _fuse(
    operations: list[Operation],
    kind: str,
    hosts: Iterable[str],
    take: Callable[[Operation, Operation], Operation | None],
) -> list[Operation]:
    """Let `take` put each operation of `kind` into the one before it, where that feeds nothing else."""
    result: list[Operation] = []
    renamed: dict[str, str] = {}
    users = _count_users(operations)
    for operation in operations:
        operation = replace(operation, inputs=tuple(renamed.get(source, source) for source in operation.inputs))
        if operation.type == kind:
            index = next((i for i, o in enumerate(result) if o.name == operation.inputs[0]), None)
            host = result[index] if index is not None else None
            if index is not None and host and host.type in hosts and not host.activation and users[host.name] == 1:
                changed = take(host, operation)
                if changed:
                    result[index] = replace(changed, node=operation.node)
                    renamed[operation.name] = host.name
                    users[host.name] = users[operation.name]
                    continue
        result.append(operation)
    return result


def fuse_sums(operations: list[Operation]) -> list[Operation]:
    """For the dynamic scheme: put each sum with a ReLU into the convolution that is the later of its two inputs.

    A static network rounds the convolution's output before the sum, as other runtimes do: they have no convolution that
    adds. Fused there too, ResNet18 was no more accurate, and ONNX Runtime gave other answers to 0.8 % of the images.
    The kernel writes over the other input, the residual. So that has to be dead after it, and not the caller's image.
    """
    result = list(operations)
    for total in operations:
        if total.type != "Add" or not total.activation:
            continue
        total = next(o for o in result if o.node is total.node)  # its inputs may have got other names meanwhile
        index, host = max(((i, o) for i, o in enumerate(result) if o.name in total.inputs), key=lambda pair: pair[0])
        others = [source for source in total.inputs if source != host.name]
        if len(others) != 1 or others == ["input"] or not _may_take_sum(host, total, others[0], result):
            continue
        result[index] = replace(
            host, inputs=(*host.inputs, *others), node=total.node, activation="relu", before_sum=host.node
        )
        result.remove(total)
        result = [replace(o, inputs=tuple(host.name if s == total.name else s for s in o.inputs)) for o in result]
    return result


def _may_take_sum(host: Operation, total: Operation, residual: str, operations: list[Operation]) -> bool:
    if host.type != "Conv2d" or host.activation or len(host.inputs) > 1:
        return False
    later = operations[operations.index(host) :]
    views = [o for o in operations if o.type in VIEWS and residual in (o.name, *o.inputs)]  # share its memory
    return not views and not any(o is not total and {residual, host.name} & {*o.inputs} for o in later)


def _count_users(operations: list[Operation]) -> dict[str, int]:
    sources = [source for operation in operations for source in operation.inputs]
    return {operation.name: sources.count(operation.name) for operation in operations}
