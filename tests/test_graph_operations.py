"""Every operation of the normal form: captured from the ways in which it is written, and computed as torch does."""

import pytest
import torch
from graph_cases import CASES, CHANNELS, HEIGHT, WIDTH

from slimkit.core.graph import capture
from slimkit.standalone.operations import OPERATIONS, overload


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
    network = graph.network()
    for batch in (1, 3):
        images = torch.randn(batch, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            wanted, got = module(images), network(images)
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)
