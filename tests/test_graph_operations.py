"""Every operation of the normal form: captured from the ways in which it is written, and computed as torch does."""

import json

import pytest
import torch
from graph_cases import CASES, CHANNELS, HEIGHT, WIDTH

from slimkit.core.architecture import Architecture, Preprocessing
from slimkit.core.graph import Graph, capture
from slimkit.core.models.describe import describe_graph
from slimkit.standalone.model import OPERATIONS, GraphNetwork, build_graph, graph_answer, overload


def test_every_operation_has_an_example() -> None:
    assert set(CASES) == set(OPERATIONS)


def test_every_operation_is_one_of_torch() -> None:
    for operation in OPERATIONS:
        assert not overload(operation)._schema.is_mutable, operation


@pytest.mark.parametrize(
    ("operation", "index"), [(operation, index) for operation in CASES for index in range(len(CASES[operation]))]
)
def test_an_operation_is_captured_and_gives_the_same_bits(operation: str, index: int) -> None:
    module = CASES[operation][index]().eval()
    graph = capture(module, (CHANNELS, HEIGHT, WIDTH))
    assert operation in {node.operation for node in graph.nodes}
    network, stored = graph.network(), through_json(graph)
    for batch in (1, 3):
        images = torch.randn(batch, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            wanted, got = module(images), network(images)
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)
        with torch.no_grad():
            assert torch.equal(stored(images), wanted)
    assert graph_answer(stored, (CHANNELS, HEIGHT, WIDTH)).shape == wanted.shape


def through_json(graph: Graph) -> GraphNetwork:
    """The network as a model folder's code makes it of the architecture JSON and the state dict."""
    bare = Architecture("Case", {}, 1, ("a",), graph.input_shape, (1,), Preprocessing(HEIGHT, HEIGHT), layers=())
    stored = json.loads(describe_graph(bare, graph).to_json())
    network = build_graph(stored["layers"], stored["tensors"])
    network.load_state_dict(graph.network().state_dict())
    return network.eval()
