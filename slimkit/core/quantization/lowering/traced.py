"""A graph as a module of torch.fx, in which each convolution, linear layer and norm is called as a layer of its own."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from slimkit.core.graph import Argument, Graph, Input, Node, Size, Weight
from slimkit.core.graph.node import IMAGE
from slimkit.core.graph.shapes import value_shapes
from slimkit.standalone.model import call, evaluate_size, layer_path, make_layer, set_tensor

OPERATION = "operation"  # under which each node of torch.fx has the node of the graph, in its `meta`
LAYERS = ("conv2d", "linear", "batch_norm")


def run_operation(operation: str, **arguments: Any) -> Any:
    """The value of an operation of the normal form."""
    return call(operation, arguments)


def traced_network(graph: Graph) -> fx.GraphModule:
    """The network around the very tensors of the graph. A layer that is called again is another layer of these."""
    builder = _Builder(graph)
    for node in graph.nodes:
        builder.add(node)
    return builder.done()


class _Builder:
    def __init__(self, graph: Graph) -> None:
        self._tensors = graph.tensors
        self._shapes = value_shapes(graph, (1, *graph.input_shape))
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._values = {IMAGE: self._graph.placeholder("images")}
        self._shape: fx.Node | None = None  # of the images, where a size follows it
        self._paths: set[str] = set()
        self._last = IMAGE
        for name, tensor in graph.tensors.items():
            set_tensor(self._root, name, tensor)

    def add(self, node: Node) -> None:
        """Append a call."""
        layer = self._layer(node) if node.operation in LAYERS else None
        if layer is None:
            arguments = {name: self._argument(value, node) for name, value in node.arguments.items()}
            self._multiply_out(node, arguments)
            made = self._graph.call_function(run_operation, (node.operation,), arguments)
        else:
            made = self._graph.call_module(layer, (self._values[node.inputs[0]],))
        made.meta[OPERATION] = node
        self._values[node.name], self._last = made, node.name

    def _multiply_out(self, node: Node, arguments: dict[str, Any]) -> None:
        """A term that is multiplied in the very sum becomes a product of its own."""
        factor, term = arguments.get("alpha", 1), arguments.get("other")
        if factor == 1 or not isinstance(term, fx.Node):
            return
        product = self._graph.call_function(run_operation, ("mul",), {"self": term, "other": factor})
        source = node.inputs[-1]
        product.meta[OPERATION] = Node(f"{node.name}_scaled", "mul", (source,), {"self": Input(0), "other": factor})
        arguments |= {"other": product, "alpha": 1}

    def done(self) -> fx.GraphModule:
        """The network in eval mode."""
        self._graph.output(self._values[self._last])
        return fx.GraphModule(self._root, self._graph).eval()

    def _layer(self, node: Node) -> str | None:
        """The path of the layer of torch that the node is."""
        first = next(iter(node.arguments.values()))
        if len(node.inputs) != 1 or not isinstance(first, Input):
            return None
        if node.operation == "batch_norm" and len(self._shapes[node.name]) != 4:
            return None
        layer = make_layer(node.to_json(), self._tensors)
        if layer is None or not node.weights:
            return None
        path = layer_path(node.to_json()) or node.name.replace(".", "_")
        while path in self._paths:
            path += "_again"
        self._paths.add(path)
        for name in ("weight", "bias", "running_mean", "running_var"):
            given = node.weight(name)
            if given is not None:
                set_tensor(layer, name, self._tensors[given])
        _replace(self._root, path, layer)
        return path

    def _argument(self, value: Argument, node: Node) -> Any:
        if isinstance(value, Input):
            return self._values[node.inputs[value.index]]
        if isinstance(value, Weight):
            return self._graph.get_attr(value.name)
        if isinstance(value, Size):
            return self._graph.call_function(evaluate_size, (value.to_json(), self._image_shape()))
        return [self._argument(part, node) for part in value] if isinstance(value, tuple) else value

    def _image_shape(self) -> fx.Node:
        if self._shape is None:
            image = self._values[IMAGE]
            with self._graph.inserting_after(image):
                self._shape = self._graph.call_function(getattr, (image, "shape"))
        return self._shape


def _replace(root: nn.Module, path: str, layer: nn.Module) -> None:
    """Put a layer in the place of the plain module that has its tensors; what else that holds stays."""
    above, _, name = path.rpartition(".")
    parent = root.get_submodule(above)
    before = parent._modules.get(name)
    for child, part in before.named_children() if before is not None else ():
        layer.add_module(child, part)
    for key, tensor in before.state_dict(keep_vars=True).items() if before is not None else ():
        if "." not in key and not hasattr(layer, key):
            set_tensor(layer, key, tensor)
    parent.add_module(name, layer)
