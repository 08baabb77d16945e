"""What a stranger's folder may say of a network that is stored as its graph."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_network import Net
from test_hostile_folders import SURPRISES, Json, change_at_random, layer, refusal, rewrite

from slimkit.core.architecture import Preprocessing
from slimkit.core.folder import write_folder
from slimkit.core.models.resolve import as_classifier


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network = Net(num_classes=3, width=8).eval()
    made = as_classifier(network, ("ant", "bee", "cat"), Preprocessing(36, 32))
    return write_folder(made, tmp_path / "model").folder or tmp_path


def call(operation: str, **arguments: Any) -> Callable[[Json], object]:
    """Put another operation in the place of one that is no layer of torch."""
    return lambda a: layer("softmax", a).update(options={"operation": operation, "arguments": arguments})


X = {"input": 0}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (call("eval", self=X), "eval"),
        (call("__class__", self=X), "__class__"),
        (call("add_.Tensor", self=X, other=X), "add_.Tensor"),
        (call("repeat", self=X, repeats=[10**6, 10**6, 1]), "softmax"),
        (call("repeat", self=X, repeats=[1, 1, -1]), "softmax"),
        (call("pad", self=X, pad=[10**9, 10**9]), "softmax"),
        (call("full", size=[10**6, 10**6], fill_value=1.0), "softmax"),
        (call("arange", start=0, end=10**14, step=1), "softmax"),
        (call("softmax", self=X, dim="x"), "softmax"),
        (call("softmax", self=X, dim=99), "softmax"),
        (call("softmax", self={"input": 7}, dim=1), "softmax"),
        (call("softmax", self={"weight": "nowhere"}, dim=1), "nowhere"),
        (call("softmax", self={"code": "x"}, dim=1), "softmax"),
        (call("expand", self=X, size=[{"size": ["image", 9]}], implicit=False), "softmax"),
        (call("expand", self=X, size=[{"size": ["pow", 9, 9]}], implicit=False), "softmax"),
        (lambda a: a["tensors"].update(big={"shape": [2**20, 2**20], "dtype": "float32", "trained": True}), "tensors"),
        (
            lambda a: a["tensors"].update(big={"shape": [2**28], "dtype": "float32", "trained": True}),
            "bytes of weights",
        ),
        (lambda a: a["tensors"].update(more={"shape": [2], "dtype": "float32", "trained": True}), "more"),
        (lambda a: a["tensors"].update(x={"shape": [-1], "dtype": "float32", "trained": True}), "'x'"),
        (lambda a: a["tensors"].update(x={"shape": [1], "dtype": "object", "trained": True}), "'x'"),
        (lambda a: a["tensors"].update(x={"shape": [1], "dtype": "int64", "trained": True}), "'x'"),
        (lambda a: a["tensors"].update({"a..b": {"shape": [1], "dtype": "float32", "trained": False}}), "a..b"),
        (lambda a: a["tensors"].update(forward={"shape": [1], "dtype": "float32", "trained": False}), "forward"),
        (lambda a: a["tensors"].pop("head.weight"), "head"),
        (lambda a: a.update(tensors=5), "tensors"),
        (lambda a: a["layers"][2].update(inputs=[a["layers"][5]["name"]]), "reads what is no earlier layer"),
        (lambda a: a["layers"][2].update(options=None), "no operation"),
        (lambda a: a["layers"].pop(), "logits"),
    ],
)
def test_what_a_graph_can_not_say_is_named(folder: Path, change: Callable[[Json], object], named: str) -> None:
    rewrite(folder, change)
    assert named in refusal(folder)


def test_any_change_of_a_graph_ends_in_a_network_or_a_clear_error(folder: Path) -> None:
    change_at_random(folder, 300, [*SURPRISES, {"weight": "head.weight"}, {"size": ["image", 0]}, {"number": "inf"}])
