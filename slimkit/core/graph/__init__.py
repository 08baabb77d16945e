"""The one form in which slimkit knows a network: what torch.export captures of it, made normal."""

from slimkit.core.graph.capture import capture
from slimkit.core.graph.node import Argument, Graph, Input, Node, Size, Weight

__all__ = ["Argument", "Graph", "Input", "Node", "Size", "Weight", "capture"]
