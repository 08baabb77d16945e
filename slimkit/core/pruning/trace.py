"""Following every channel through a network: which layers make it, which read it, what it is tied to.

The network is traced by torch.fx and run on tensors of channel atoms (`atoms.py`) in place of numbers. Layers read
atoms and make new ones; sums and products tie atoms together; concatenation, shuffles, flattening and the like simply
move them, as they would move numbers. So no architecture has to be known by name.
"""

import contextlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from slimkit.core.errors import ModelError, first_line
from slimkit.core.measure.modes import evaluating, on_cpu
from slimkit.core.pruning.atoms import Atoms, broadcast, distinct, is_spread_over_channels, varies
from slimkit.core.pruning.network import computes_weight, small_shape, trace_graph
from slimkit.core.pruning.probe import Trials, random_values

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MOVES = frozenset(
    {"cat", "concat", "concatenate", "stack", "permute", "transpose", "swapaxes", "movedim", "flatten", "squeeze"}
    | {"unsqueeze", "contiguous", "clone", "detach", "expand", "expand_as", "repeat", "repeat_interleave"}
    | {"getattr", "size", "dim", "numel", "len"}
)
RESHAPES = frozenset({"view", "reshape"})
SPLITS = frozenset({"chunk", "split", "tensor_split"})
REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "var", "std"})


@dataclass(frozen=True)
class LayerChannels:
    """The atoms that a layer reads and makes: int64 [in] and [out]. A layer that only scales channels has one list."""

    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Trace:
    """Every layer that inference reaches, in execution order, and what is known of its channels' atoms."""

    layers: dict[str, LayerChannels]
    atoms: Atoms


def trace_channels(module: nn.Module, input_shape: Sequence[int]) -> Trace:
    """Follow the channels of a network in eval mode; `input_shape` is (channels, ...) of one image.

    A smaller image is tried first: where the network takes one, its channels are the same, and found sooner.
    Raises ModelError where torch.fx can't trace the network or it does not take such an input.
    """
    module = on_cpu(module)
    with evaluating(module):
        traced = trace_graph(module)
        with contextlib.suppress(ModelError):
            return _follow(traced, small_shape(input_shape))
        return _follow(traced, input_shape)


def _follow(traced: GraphModule, input_shape: Sequence[int]) -> Trace:
    tracer = _ChannelTracer(traced)
    image = tracer.atoms.fresh(input_shape[0]).view(1, -1, *[1] * (len(input_shape) - 1)).expand(1, *input_shape)
    tracer.atoms.freeze(image, "the image comes in through it")
    try:
        with torch.no_grad():
            outputs = tracer.run(image)
    except Exception as error:  # the network's own code runs here, and may raise anything
        raise ModelError(
            f"The network can't be followed at {tracer.operation}: {first_line(error)}",
            f"Check that it takes an image of shape {tuple(input_shape)}.",
        ) from error
    for output in _tensors(outputs):
        tracer.atoms.freeze(output, "it gives the network's answer")
    return Trace(tracer.layers, tracer.atoms)


class _ChannelTracer(Interpreter):
    """Runs a traced network on atoms; each value is an int64 tensor of the shape that the activation would have."""

    def __init__(self, traced: GraphModule) -> None:
        super().__init__(traced)
        self.atoms = Atoms()
        self.layers: dict[str, LayerChannels] = {}
        self.operation = ""  # the one being followed, for reasons and errors
        self._node: Node  # the one being run
        self._trials = Trials()

    def run_node(self, n: Node) -> Any:
        self._node = n
        self.operation = str(getattr(n.target, "__name__", n.target))
        return super().run_node(n)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A bare parameter: one atom that stays, so that whatever is combined with it stays too."""
        value = super().get_attr(target, args, kwargs)
        if not isinstance(value, Tensor):
            return value
        if value.numel() == 1 or not value.is_floating_point():
            return value.int() if _is_atoms(value) else value  # a number or an index; int64 is for atoms
        atom = self.atoms.fresh(1)
        self.atoms.freeze(atom, f"it is combined with the bare parameter {target}")
        return atom.expand(value.shape)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.fetch_attr(target)
        if computes_weight(layer):
            return self._opaque(super().call_module, target, args, kwargs)
        if isinstance(layer, CONVOLUTIONS):
            return self._convolution(target, layer, args[0])
        if isinstance(layer, nn.Linear):
            return self._linear(target, layer, args[0])
        if isinstance(layer, nn.PReLU | _NormBase) and any(p.numel() > 1 for p in layer.state_dict().values()):
            return self._scaling(target, args[0])
        if isinstance(layer, nn.Flatten | nn.Identity):
            return layer(args[0])
        return self._by_trial(super().call_module, target, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._operation(super().call_method, target, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._operation(super().call_function, target, args, kwargs)

    def _operation(self, call: Callable[..., Any], target: Any, args: Any, kwargs: Any) -> Any:
        name = self.operation.rstrip("_")
        if name in MOVES or not _tensors((args, kwargs)):
            return call(target, args, kwargs)
        if name in RESHAPES:
            return self._reshape(call(target, (args[0].contiguous(), *args[1:]), kwargs))
        if name in SPLITS:
            dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
            return self._split(args[0], call(target, args, kwargs), dim)
        if name == "getitem":
            return self._index(args[0], call(target, args, kwargs))
        if name in REDUCTIONS:
            return self._reduction(call, target, args, kwargs)
        return self._by_trial(call, target, args, kwargs)

    # Layers

    def _record(self, name: str, inputs: Tensor, count: int | None = None) -> Tensor:
        """Note what a layer reads and return what it makes: `count` new atoms, or None for the ones that it reads.

        A layer that is called again has the same weights for both calls, so their channels go together.
        """
        if name in self.layers:
            self.atoms.unite(self.layers[name].inputs, inputs)
        else:
            self.layers[name] = LayerChannels(inputs, inputs if count is None else self.atoms.fresh(count))
        return self.layers[name].outputs

    def _convolution(self, name: str, layer: Convolution, atoms: Tensor) -> Tensor:
        inputs = self._merged(atoms, dim=1)
        outputs = self._record(name, inputs, layer.out_channels)
        if layer.groups > 1:
            self._tie_groups(inputs.view(layer.groups, -1), outputs.view(layer.groups, -1))
        weights = {key: value.to("meta") for key, value in layer.state_dict().items()}
        image = torch.empty(atoms.shape, device="meta")
        shape = torch.func.functional_call(layer, weights, (image,)).shape
        return outputs.view(1, -1, *[1] * (len(shape) - 2)).expand(shape)

    def _tie_groups(self, inputs: Tensor, outputs: Tensor) -> None:
        """Tie what a convolution's groups [groups, channels of one] need to stay alike.

        Many small groups (depthwise: of one channel) are cut as wholes, few large ones each lose the same offsets.
        """
        groups, size = inputs.shape
        if groups >= size:
            self.atoms.unite(inputs, inputs[:, :1])
            self.atoms.unite(outputs, inputs[:, :1])
        else:
            self.atoms.unite(inputs, inputs[:1])
            self.atoms.unite(outputs, outputs[:1])

    def _linear(self, name: str, layer: nn.Linear, atoms: Tensor) -> Tensor:
        if atoms.shape[-1] != layer.in_features:
            raise ValueError(f"{name} takes {layer.in_features} features, not {atoms.shape[-1]}")
        outputs = self._record(name, self._merged(atoms, dim=atoms.dim() - 1), layer.out_features)
        return outputs.expand(*atoms.shape[:-1], -1)

    def _scaling(self, name: str, atoms: Tensor) -> Tensor:
        self._record(name, self._merged(atoms, dim=1))
        return atoms

    def _merged(self, atoms: Tensor, dim: int) -> Tensor:
        """The atoms along one dimension, int64 [size]; a layer's weight serves all other positions, so tie those."""
        rows = atoms.movedim(dim, -1)
        first = rows[(0,) * (rows.dim() - 1)]
        self.atoms.unite(rows, first)
        return first

    # Operations

    def _reshape(self, result: Tensor) -> Tensor:
        """A dimension that the code gives as a number keeps its size, so whatever lies along it goes together."""
        given = self._node.args[1:]
        sizes = given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given
        for dim, size in enumerate(sizes if len(sizes) == result.dim() else ()):
            if isinstance(size, int) and size > 1:
                self.atoms.unite(result, result.narrow(dim, 0, 1))
        return result

    def _split(self, atoms: Tensor, parts: Sequence[Tensor], dim: int) -> Sequence[Tensor]:
        """Equal parts stay equal where the same offsets of each are cut; parts of a size given as a number stay."""
        if not varies(atoms, dim):
            return parts
        fixed = self.operation == "split" and not isinstance(self._node.args[1], Node)
        if fixed or len({part.shape for part in parts}) > 1:
            self.atoms.freeze(atoms, f"{self.operation} cuts it into parts of a fixed size")
        else:
            for part in parts:
                self.atoms.unite(part, parts[0])
        return parts

    def _index(self, atoms: Any, result: Any) -> Any:
        if isinstance(atoms, Tensor) and len(distinct(result)) < len(distinct(atoms)):
            self.atoms.freeze(atoms, "its channels are picked by their number")
        return result

    def _reduction(self, call: Callable[..., Any], target: Any, args: Any, kwargs: Any) -> Any:
        """A mean over space keeps the channels apart; one over channels would change with their number."""
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        dims = range(args[0].dim()) if dims is None else [dims] if isinstance(dims, int) else dims
        if any(varies(args[0], dim) for dim in dims):
            return self._opaque(call, target, args, kwargs)
        keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        result: Tensor = args[0].amax(tuple(dims), keepdim=keep)
        return result

    def _by_trial(self, call: Callable[..., Any], target: Any, args: Any, kwargs: Any) -> Any:
        values, structure = tree_flatten((args, kwargs))
        places = [i for i, value in enumerate(values) if _is_atoms(value)]

        def operation(tensors: Sequence[Tensor]) -> Any:
            filled = list(values)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            return call(target, *tree_unflatten(filled, structure))

        operands: list[Tensor] = [values[place] for place in places]
        shapes = [operand.shape for operand in operands]
        kind = self._trials.kind(operation, shapes, self._trial_key(target, (args, kwargs)))
        if kind == "elementwise":
            return self._combined(operands)
        if kind == "channelwise":
            result = operation([random_values(shapes[0])])
            channels = self._merged(operands[0], dim=1)
            return channels.view(1, -1, *[1] * (result.dim() - 2)).expand(result.shape)
        return self._opaque(call, target, args, kwargs)

    def _trial_key(self, target: Any, arguments: Any) -> Hashable | None:
        """What tells an operation from others; None where it depends on tensors other than those of atoms."""
        layer = self.fetch_attr(target) if self._node.op == "call_module" else None
        plain = tree_map(lambda value: tuple(value.shape) if _is_atoms(value) else value, arguments)
        if any(isinstance(value, Tensor) for value in tree_flatten(plain)[0]) or (layer and layer.state_dict()):
            return None
        return repr(layer or target), repr(plain)

    def _combined(self, operands: Sequence[Tensor]) -> Tensor:
        """Tie operands position by position, but for one that is spread over the channels of the others: it stays."""
        whole = broadcast(*operands)
        spread = [is_spread_over_channels(operand, whole) for operand in operands]
        result = whole[spread.index(False) if False in spread else 0]
        for operand, over_channels in zip(operands, spread, strict=True):
            if over_channels:
                self.atoms.freeze(operand, f"{self.operation} spreads it over other channels")
            else:
                self.atoms.unite(operand, result)
        return result

    def _opaque(self, call: Callable[..., Any], target: Any, args: Any, kwargs: Any) -> Any:
        """Channels meet in a way that isn't known: what goes in and what comes out stays."""
        reason = f"{self.operation} mixes channels"
        for atoms in _tensors((args, kwargs)):
            self.atoms.freeze(atoms, reason)
        numbers = tree_map(lambda value: random_values(value.shape) if _is_atoms(value) else value, (args, kwargs))
        atom = self.atoms.fresh(1)
        self.atoms.freeze(atom, reason)
        return tree_map(
            lambda value: atom.expand(value.shape) if isinstance(value, Tensor) else value, call(target, *numbers)
        )


def _is_atoms(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64


def _tensors(values: Any) -> list[Tensor]:
    """The tensors of atoms in nested arguments."""
    return [value for value in tree_flatten(values)[0] if _is_atoms(value)]
