"""Weights in the files that trainers write: found, unwrapped and named; or refused with the reason."""

import argparse
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from slimkit.core.errors import FolderError, ModelError
from slimkit.core.models.checkpoint import read_checkpoint
from slimkit.core.models.fill import fill

State = dict[str, Tensor]


def _network() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(4, 2))


STATE: State = _network().state_dict()
OTHER: State = {key: torch.zeros_like(value) for key, value in STATE.items()}


def _with(prefix: str, state: State = STATE) -> State:
    return {prefix + key: value for key, value in state.items()}


def _after_a_step() -> dict[str, Any]:
    """An optimizer's state, which holds tensors, too."""
    network = _network()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 3, 1, 1)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def _read(content: object, folder: Path) -> State:
    torch.save(content, folder / "weights.pth")
    return read_checkpoint(folder / "weights.pth", STATE.keys())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (STATE, ()),
        (_with("module."), ("'module.'",)),
        (_with("_orig_mod."), ("'_orig_mod.'",)),
        (_with("model."), ("'model.'",)),
        (_with("module._orig_mod.model."), ("'module._orig_mod.model.'",)),
        (_with("net.backbone."), ("'net.backbone.'",)),
        ({"state_dict": STATE, "epoch": 3}, ("'state_dict'",)),
        ({"model": STATE, "optimizer": _after_a_step(), "args": argparse.Namespace(lr=0.1)}, ("'model'",)),
        ({"model_state_dict": STATE, "best": np.float64(71.5), "last": np.float32(70)}, ("'model_state_dict'",)),
        ({"net": STATE, "acc": 71.5}, ("'net'",)),
        ({"ema": _with("module.")}, ("'ema'", "'module.'")),
        ({"checkpoint": {"model": STATE}}, ("'checkpoint.model'",)),
        ({"state_dict": OTHER, "state_dict_ema": STATE}, ("'state_dict_ema'", "left out 'state_dict'")),
        ({"state_dict": _with("model.") | {"loss.weight": torch.ones(2)}}, ("'model.'", "loss.weight")),
        (_with("module.") | {"n_averaged": torch.tensor(5)}, ("'module.'", "n_averaged")),
        (STATE | {"epoch": 3}, ()),
        ({"ema": {key: OTHER[key] for key in list(OTHER)[:3]}, "model": STATE}, ("'model'", "left out 'ema'")),
    ],
)
def test_the_weights_are_found_and_what_was_taken_is_said(
    content: object, said: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "slimkit"):
        found = _read(content, tmp_path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)
    for words in said:
        assert words in caplog.text
    assert bool(caplog.text) == bool(said)


def test_wrappers_around_a_part_are_taken_off(tmp_path: Path) -> None:
    state = {key.replace("0.", "0.module.", 1) if key.startswith("0.") else key: STATE[key] for key in STATE}
    assert _read(state, tmp_path).keys() == STATE.keys()


def test_two_networks_in_one_file_are_told_apart_by_the_user(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds the network twice, as 'student\.' and 'teacher\.'"):
        _read(_with("student.") | _with("teacher.", OTHER), tmp_path)


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": _with("module.", state)}])
def test_numbers_that_are_none_name_the_tensor(
    value: float, kind: str, wrap: Callable[[State], object], tmp_path: Path
) -> None:
    broken = STATE | {"2.bias": torch.tensor([1.0, value])}
    with pytest.raises(ModelError, match=rf"2\.bias holds {kind} \(1 of 2 values\)"):
        _read(wrap(broken), tmp_path)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {0: torch.ones(3)}, {"epoch": 3}, "text"])
def test_files_without_weights_say_so(content: object, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"weights\.pth holds no state dict"):
        _read(content, tmp_path)


@pytest.mark.parametrize("content", [b"", b"http://example.org/weights.pth", b"\0\1\2", pickle.dumps({"a": print})])
def test_files_of_another_kind_say_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(FolderError, match=r"weights\.pth can't be read as plain weights"):
        read_checkpoint(tmp_path / "weights.pth", STATE.keys())


def test_a_whole_module_is_refused_by_its_class(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"it holds an object of torch\.nn\.modules\.container\.Sequential"):
        _read(_network(), tmp_path)


def test_a_byte_that_changed_on_the_way_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(STATE, file)
    content = bytearray(file.read_bytes())
    content[content.find(STATE["0.0.weight"].numpy().tobytes()) + 3] ^= (
        1  # in the sign and exponent of the first number
    )
    file.write_bytes(content)
    with pytest.raises(FolderError, match=r"weights\.pth is damaged: the checksum"):
        read_checkpoint(file, STATE.keys())


def test_a_folder_is_not_called_missing(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="is a folder"):
        read_checkpoint(tmp_path, STATE.keys())


def test_other_names_for_what_is_missing_are_said() -> None:
    state = {key.replace("2.", "head."): value for key, value in STATE.items()}
    with pytest.raises(ModelError, match=r"lacks the tensors 2\.weight, 2\.bias .* it has .*head\.weight, head\.bias"):
        fill(_network(), state, Path("weights.pth"), 2)


def test_a_key_chooses_among_several_state_dicts(tmp_path: Path) -> None:
    other = {key: tensor + 1 for key, tensor in STATE.items()}
    torch.save({"ema": STATE, "last": {"state_dict": other}}, tmp_path / "weights.pth")
    chosen = read_checkpoint(tmp_path / "weights.pth", STATE.keys(), "last.state_dict")
    assert all(torch.equal(chosen[key], other[key]) for key in other)
    with pytest.raises(FolderError) as error:
        read_checkpoint(tmp_path / "weights.pth", STATE.keys(), "model")
    assert error.value.hint == "It has weights in: ema, last.state_dict."


def test_safetensors_are_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({f"model.{key}": tensor.half().contiguous() for key, tensor in STATE.items()}, file)
    read = read_checkpoint(file, STATE.keys())
    assert all(torch.equal(read[key], STATE[key].half()) for key in STATE)
    file.write_bytes(b"\xff" * 100)
    with pytest.raises(FolderError, match=r"weights\.safetensors can't be read as safetensors"):
        read_checkpoint(file, STATE.keys())


def _classifier(classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 4), nn.Linear(4, classes))


def test_a_head_for_other_classes_is_replaced_only_when_asked() -> None:
    state, network = _classifier(7).state_dict(), _classifier(3)
    before = network[2].weight.clone()
    with pytest.raises(ModelError, match=r"is for 7 classes .*; the data have 3") as error:
        fill(network, state, Path("w.pth"), 3)
    assert "--new-head" in error.value.hint
    fill(network, state, Path("w.pth"), 3, new_head=True)
    assert torch.equal(network[0].weight, state["0.weight"])
    assert torch.equal(network[2].weight, before)


def test_tensors_that_are_missing_or_too_many_are_listed_and_counted() -> None:
    deep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    state = deep.state_dict()
    with pytest.raises(ModelError, match=r"lacks the tensors 0\.weight, .*, 2\.weight and 3 more of the network"):
        fill(deep, {key: state[key] for key in ("4.weight", "4.bias")}, Path("w.pth"), 2)
    with pytest.raises(ModelError, match=r"has the tensor extra, which the network has not"):
        fill(deep, state | {"extra": torch.ones(1)}, Path("w.pth"), 2)
    with pytest.raises(ModelError, match=r"0\.weight has shape \(3, 3\), the network wants \(2, 2\); 1 others"):
        fill(deep, state | {"0.weight": torch.ones(3, 3), "1.weight": torch.ones(3, 3)}, Path("w.pth"), 2)


def test_half_precision_becomes_the_networks_own() -> None:
    network = _classifier(3)
    state = {key: tensor.bfloat16() for key, tensor in _classifier(3).state_dict().items()}
    fill(network, state, Path("w.pth"), 3)
    assert network[0].weight.dtype == torch.float32
    assert torch.equal(network[0].weight, state["0.weight"].float())
