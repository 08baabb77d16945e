"""From an exported, functional program to the nodes of the normal form.

Each call of the program becomes one node, several, or none: calls that change nothing are left out, calls of several
results become one node for each result that is read, and spellings of the same operation become one operation
(`spellings.py`). Then what nobody reads is dropped, and what depends on weights alone, or on the number of images too
but is alike for each (`alike.py`), is computed.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves

from slimkit.core.errors import ModelError
from slimkit.core.graph.alike import compute_for_one_image
from slimkit.core.graph.call import Call, Name, Parts, Result
from slimkit.core.graph.fold import fold_constants
from slimkit.core.graph.functional import operation_name
from slimkit.core.graph.node import IMAGE, Argument, Graph, Input, Node, Size, Weight
from slimkit.core.graph.sizes import read_size
from slimkit.core.graph.source import module_path, source_line
from slimkit.core.graph.spellings import SPELLINGS
from slimkit.standalone.model import DTYPES, OPERATIONS

_IGNORED = frozenset({"device", "layout", "pin_memory", "non_blocking", "cudnn_enabled", "copy"})
_NO_VALUE = ("_assert", "sym_constrain", "sym_size", "_guards_fn")  # calls that give no tensor and none reads
_IN_PLACE = re.compile(r"_(_\d+)?$")  # what is left of a name such as add_ or relu__1
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def is_known(name: str) -> bool:
    """Whether an operation has a normal form, or gives no tensor; name: as `functional.operation_name` has it."""
    return name.startswith(_NO_VALUE) or name in SPELLINGS or _base(name) in SPELLINGS or _base(name) in OPERATIONS


def _base(name: str) -> str:
    """The name without the mark of an operation in place."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def normalize(
    program: ExportedProgram, module: nn.Module, input_shape: tuple[int, ...], output_index: int | None
) -> Graph:
    """The graph of a functional program that was exported from `module`. Raises ModelError, see `capture`."""
    reader = _Reader(program, module)
    for node in program.graph.nodes:
        if node.op == "call_function":
            reader.read(node)
    logits = reader.logits(output_index)
    nodes = _reached(reader.nodes, logits)
    reached = {name for node in nodes for name in node.weights}
    nodes, tensors = fold_constants(compute_for_one_image(nodes, reader.tensors), reader.tensors)
    read = {name: tensors[name] for node in nodes for name in node.weights}
    unused = tuple(name for name, _ in module.named_parameters() if name not in reached and name in reader.tensors)
    return Graph(_named_by_module(nodes), read, input_shape, reader.free_dimensions(), unused)


class _Reader:
    """Reads the calls of a program in their order."""

    def __init__(self, program: ExportedProgram, module: nn.Module) -> None:
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self._program = program
        self._results: dict[fx.Node, Result] = {}  # of each call and placeholder
        self._names: set[str] = {IMAGE}
        self._image: fx.Node
        self._read_placeholders(module)

    def _read_placeholders(self, module: nn.Module) -> None:
        own = {id(tensor): name for name, tensor in _named_tensors(module)}
        nodes = {node.name: node for node in self._program.graph.nodes if node.op == "placeholder"}
        for spec in self._program.graph_signature.input_specs:
            node = nodes[spec.arg.name]
            if spec.kind == InputKind.USER_INPUT:
                self._image, self._results[node] = node, Name(IMAGE)
                continue
            target = str(spec.target)
            tensor = self._tensor(module, target)
            name = own.get(id(tensor), target)
            self.tensors[name] = tensor
            self._results[node] = Weight(name)
        self._symbols = _free_symbols(self._image.meta["val"].shape)

    def _tensor(self, module: nn.Module, target: str) -> Tensor:
        """A parameter or buffer of the module, or a constant that its code makes."""
        path, _, attribute = target.rpartition(".")
        try:
            value = getattr(module.get_submodule(path), attribute)
        except AttributeError:
            value = self._program.constants[target]
        if not isinstance(value, Tensor):
            raise ModelError(f"The network reads {target}, which is no tensor.", "Make it a parameter or a buffer.")
        return value

    def free_dimensions(self) -> frozenset[int]:
        """The dimensions of the images that may differ."""
        return frozenset(self._symbols.values())

    def logits(self, output_index: int | None) -> Name:
        """The name of the node that gives them. Raises ModelError where there are several outputs, or none."""
        if 0 not in self.free_dimensions():
            raise ModelError(
                "The network's code fixes the number of images in a batch.",
                "Let forward() take it from the images: x.shape[0], not len(x), or -1 in view().",
            )
        specs = self._program.graph_signature.output_specs
        outputs = next(node for node in self._program.graph.nodes if node.op == "output").args[0]
        assert isinstance(outputs, Sequence)
        given = [out for out, spec in zip(outputs, specs, strict=True) if spec.kind == OutputKind.USER_OUTPUT]
        tensors = [out for out in given if isinstance(out, fx.Node) and isinstance(out.meta["val"], Tensor)]
        if output_index is not None and not 0 <= output_index < len(tensors):
            raise ModelError(
                f"There is no output {output_index}: the network has {len(tensors)}, counted from 0.",
                "Give --output-index one of these.",
            )
        if len(tensors) != 1 and output_index is None:
            shapes = ", ".join(str(_traced_shape(out.meta["val"])[1:]) for out in tensors)
            raise ModelError(
                f"The network has {len(tensors)} outputs, of shapes {shapes or 'unknown'} for one image.",
                "Choose the one that gives the logits with --output-index, counted from 0.",
            )
        result = self._results[tensors[output_index or 0]]
        if not isinstance(result, Name) or result == IMAGE:
            raise ModelError("The network's output does not depend on the images.", "Give a classifier.")
        return result

    def read(self, node: fx.Node) -> None:
        """Make nodes of one call."""
        name = getattr(node.target, "__name__", str(node.target))
        if getattr(node.target, "_schema", None) is None:
            self._read_python(node, name)
            return
        packet = operation_name(node.target)
        if not packet.startswith(_NO_VALUE):
            self._results[node] = self._read_operation(node, packet)

    def _read_python(self, node: fx.Node, name: str) -> None:
        """A part of a result; arithmetic on sizes is read where it is used."""
        if name == "getitem" and isinstance(node.args[0], fx.Node):
            whole, index = self._results.get(node.args[0]), node.args[1]
            if node.users and isinstance(whole, Parts) and isinstance(index, int):
                self._results[node] = whole.take(index)
        elif any(isinstance(leaf, Tensor) for leaf in tree_leaves(node.meta.get("val"))):
            raise ModelError(
                f"The network uses {name}, which slimkit does not know, at {source_line(node) or node.name}.",
                "Leave out torch.autocast, torch.cond and the like.",
            )

    def _read_operation(self, node: fx.Node, packet: str) -> Result:
        call = Call(self, node, self._bind(node))
        base = _base(packet)
        spelling = SPELLINGS.get(packet) or SPELLINGS.get(base)
        if spelling is not None:
            return spelling(call)
        if base not in OPERATIONS:
            raise ModelError(
                f"The network calls {base}, which slimkit does not know, at {source_line(node) or node.name}.",
                "Rewrite it with the operations that docs/how-slimkit-works.md lists.",
            )
        return call.emit(base)

    def _bind(self, node: fx.Node) -> dict[str, object]:
        """The arguments by their names in the schema, defaults included."""
        bound: dict[str, object] = {}
        for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            if argument.name in _IGNORED:
                continue
            if index < len(node.args):
                bound[argument.name] = node.args[index]
            else:
                bound[argument.name] = node.kwargs.get(argument.name, argument.default_value)
        return bound

    def add(self, node: fx.Node, operation: str, arguments: Mapping[str, object]) -> Name:
        """Append a node; its name."""
        inputs: list[str] = []
        encoded = {name: self._encode(value, inputs) for name, value in arguments.items()}
        name = Name(self._free_name(_IN_PLACE.sub(lambda found: found[1] or "", node.name)))
        self._names.add(name)
        made = Node(name, operation, tuple(inputs), encoded, module_path(node), source_line(node))
        self.nodes.append(made)
        return name

    def _free_name(self, name: str) -> str:
        numbered = (f"{name}_{number}" for number in itertools.count(1))
        return name if name not in self._names else next(other for other in numbered if other not in self._names)

    def result(self, value: object) -> Result:
        """What a call before gave."""
        assert isinstance(value, fx.Node)
        return self._results[value]

    def _encode(self, value: object, inputs: list[str]) -> Argument:
        if isinstance(value, fx.Node) and value not in self._results:
            return read_size(value.meta["val"], self._symbols)
        if isinstance(value, fx.Node):
            value = self._results[value]
        if isinstance(value, Parts):
            return tuple(self._encode(value.take(index), inputs) for index in range(len(value)))
        if isinstance(value, Name):
            if value not in inputs:
                inputs.append(value)
            return Input(inputs.index(value))
        if isinstance(value, torch.SymInt):
            return read_size(value, self._symbols)
        if isinstance(value, list | tuple):
            return tuple(self._encode(part, inputs) for part in value)
        if isinstance(value, torch.dtype):
            return _dtype_name(value)
        if isinstance(value, torch.memory_format):
            return str(value).removeprefix("torch.")
        if value is None or isinstance(value, Weight | Size | bool | int | float | str):
            return value
        raise ModelError(f"The network computes with {value!r}, which slimkit can't write down.", "Rewrite that line.")


def _free_symbols(shape: Sequence[int | torch.SymInt]) -> dict[str, int]:
    """The dimension that each symbol of the images' shape stands for; one that turned out to be fixed has none."""
    sizes = [(dim, size.node.expr) for dim, size in enumerate(shape) if isinstance(size, torch.SymInt)]
    return {str(expression): dim for dim, expression in sizes if expression.is_Symbol}


def _traced_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape for the images that the network was exported with."""
    return tuple(size.node.hint if isinstance(size, torch.SymInt) else size for size in tensor.shape)


def _dtype_name(dtype: torch.dtype) -> str:
    if dtype not in _DTYPE_NAMES:
        raise ModelError(f"The network computes in {dtype}, which slimkit does not know.", "Compute in float32.")
    return _DTYPE_NAMES[dtype]


def _named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer once, by its first name."""
    return [*module.named_parameters(), *module.named_buffers()]


def _reached(nodes: Sequence[Node], logits: str) -> tuple[Node, ...]:
    """The nodes that the logits depend on; those are the last one's."""
    wanted = {logits}
    kept: list[Node] = []
    for node in reversed(nodes):
        if node.name in wanted:
            kept.append(node)
            wanted.update(node.inputs)
    return tuple(reversed(kept))


def _parts(node: Node) -> list[str]:
    return node.module.split(".") if node.module else []


def _named_by_module(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes, each with its module's path for a name where it is the only one of that module and of its parts."""
    paths = Counter(".".join(parts[:depth]) for parts in map(_parts, nodes) for depth in range(1, len(parts) + 1))
    names = {node.name: node.name for node in nodes}
    for node in nodes:
        if node.module and paths[node.module] == 1 and node.module not in names.values():
            names[node.name] = node.module
    return tuple(dataclasses.replace(node.replaced(names), name=names[node.name]) for node in nodes)
