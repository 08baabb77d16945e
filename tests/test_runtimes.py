"""`load_model(folder, runtime=…)`: the folder's ONNX file in another runtime, if it gives the model's answers."""

import importlib.util
from pathlib import Path

import pytest
import torch
from conftest import small_classifier

from slimkit.core.errors import FolderError
from slimkit.core.export import run_export
from slimkit.core.folder import Classifier, require_model_output, write_folder
from slimkit.core.options import ExportOptions
from slimkit.core.quantization import quantize
from slimkit.standalone.model import cpu_arithmetic
from slimkit.standalone.model_loader import load_model

pytestmark = pytest.mark.numeric
INSTALLED = [
    pytest.param(
        name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
    )
    for name in ("onnxruntime", "openvino")
]


def int8(width: int = 8) -> Classifier:
    images = [torch.randn(16, 3, 32, 32)]
    reduce = cpu_arithmetic().saturates  # sums of 8 bits saturate in ONNX Runtime there
    return quantize(small_classifier(width=width), scheme="static", calibration=images, reduce_range=reduce).classifier


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An int8 model with its ONNX file beside the weights."""
    write_folder(int8(), tmp_path / "model")
    run_export(ExportOptions(model=str(tmp_path / "model"), output=tmp_path / "model" / "model.onnx"))
    return tmp_path / "model"


@pytest.mark.parametrize("runtime", INSTALLED)
def test_another_runtime_gives_the_models_answers(folder: Path, runtime: str) -> None:
    images = torch.randn(40, 3, 32, 32)
    wanted, model = load_model(folder), load_model(folder, runtime=runtime)
    assert not model.training
    given = model(images)  # as panels call it: without no_grad
    assert given.dtype == torch.float32
    assert (given.argmax(1) == wanted(images).argmax(1)).float().mean() > 0.9
    channels_last = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(channels_last), given)
    torch.testing.assert_close(model(images[:1]), given[:1], rtol=0.05, atol=0.05)
    as_the_panel_casts = images.to(next(model.parameters()).dtype)
    torch.testing.assert_close(model(as_the_panel_casts), given)


def test_what_can_not_be_computed_there_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of torch, onnxruntime, openvino"):
        load_model(folder, runtime="onnx")
    file = folder / "model.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.onnx can't be read by onnxruntime"):
        load_model(folder, runtime="onnxruntime")
    write_folder(int8(width=12), tmp_path / "other")
    run_export(ExportOptions(model=str(tmp_path / "other"), output=tmp_path / "other.onnx"))
    file.write_bytes((tmp_path / "other.onnx").read_bytes())
    with pytest.raises(ValueError, match="other answers than the model"):
        load_model(folder, runtime="onnxruntime")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="slimkit export"):
        load_model(folder, runtime="onnxruntime")


def test_a_folder_with_its_onnx_file_can_be_made_anew(folder: Path) -> None:
    require_model_output(folder, force=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match=r"holds notes\.txt"):
        require_model_output(folder, force=True)
