"""ONNX files: one file, any batch size, the model's own logits, and nothing written where they disagree."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import small_classifier
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from slimkit.core.errors import FolderError, MissedError
from slimkit.core.export import check_answers, check_logits, export_onnx, run_export, to_onnx
from slimkit.core.folder import Classifier, write_folder
from slimkit.core.options import ExportOptions
from slimkit.core.quantization import quantize
from slimkit.standalone.model import cpu_arithmetic

pytestmark = pytest.mark.numeric


def classifier_of(kind: str) -> Classifier:
    classifier = small_classifier()
    if kind == "float":
        return classifier
    return quantized(classifier, kind)


def quantized(classifier: Classifier, scheme: str) -> Classifier:
    # ONNX Runtime's sums saturate on x86 CPUs without VNNI unless weights are kept to 7 bits
    reduce, images = cpu_arithmetic().saturates, [torch.randn(16, 3, 32, 32)]
    return quantize(classifier, scheme=scheme, calibration=images, reduce_range=reduce).classifier  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["float", "static", "dynamic"])
def test_onnx_runtime_gives_the_models_logits(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = write_folder(classifier_of(kind), tmp_path / "model")
    file = tmp_path / "out" / "model.onnx"
    report = run_export(ExportOptions(model=str(tmp_path / "model"), output=file))
    assert capsys.readouterr().out == ""
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]
    assert [check.batch_size for check in report.checks] == [1, 2, 7]
    onnx.checker.check_model(str(file), full_check=True)

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, 32, 32]
    for count in (1, 5):
        images = torch.randn(count, 3, 32, 32)
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        expected = classifier.module(images).detach().numpy()
        assert logits.shape == (count, 3)
        limit = 1e-4 if kind == "float" else 0.05
        assert np.linalg.norm(logits - expected) <= limit * np.linalg.norm(expected)


def test_static_int8_is_written_with_the_models_own_weights_and_scales() -> None:
    classifier = classifier_of("static")
    model = onnx.load_from_string(to_onnx(classifier))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    state = classifier.module.state_dict()
    for name in ("conv1", "layer2.0.downsample.0", "layer4.1.conv2", "fc"):
        assert constants[f"{name}.weight"].dtype == np.int8
        assert np.array_equal(constants[f"{name}.weight"], state[f"{name}.weight"].numpy())
        assert np.array_equal(constants[f"{name}.scale"], state[f"{name}.weight_scale"].numpy())
    assert constants["conv1.output.scale"] == state["conv1.output_scale"].numpy()
    assert constants["conv1.output.zero_point"].dtype == np.uint8


class Parts(nn.Module):
    """The layers that families are made of beside convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.norm, self.pool, self.average = nn.BatchNorm2d(16), nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * 9, 8), nn.Hardswish(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.silu(self.pool(functional.relu6(self.stem(x))))
        x = x * functional.hardsigmoid(self.gate(functional.adaptive_avg_pool2d(self.a(x), 1)))
        left, right = x.chunk(2, 1)
        n, c, h, w = x.shape
        shuffled = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = self.average(functional.relu(self.norm(torch.cat([right, shuffled, left], 1))))
        return self.head(functional.adaptive_avg_pool2d(x, 3))


class ChannelsLast(nn.Module):
    """A ConvNeXt block: LayerNorm, linear layers and a scale of their own over the last of four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.wide, self.narrow = nn.Linear(8, 24), nn.Linear(24, 8)
        self.scale, self.head = nn.Parameter(torch.rand(8, 1, 1)), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.narrow(functional.gelu(self.wide(self.norm(x.permute(0, 2, 3, 1)))))
        return self.head((x + self.scale * y.permute(0, 3, 1, 2)).mean((2, 3)))


class Tokens(nn.Module):
    """Functions that torch's exporter writes: attention, norms of groups, resizing, padding, a maximum of two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.GroupNorm(4, 8), nn.Linear(8, 3)
        self.qkv, self.token = nn.Linear(8, 24), nn.Parameter(torch.randn(1, 1, 8))
        self.mix = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.mix(functional.pad(self.stem(x), (0, 1, 1, 0))))  # zeros among codes
        x = functional.pad(x, (1, 0, 0, 1), mode="replicate")
        x = torch.maximum(functional.interpolate(x, (5, 7), mode="bilinear"), 0.5 * functional.softsign(x[..., :5, :7]))
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        q, k, v = self.qkv(tokens).reshape(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v) + (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(mixed.transpose(1, 2).flatten(2)[:, 0])


@pytest.mark.parametrize("parts", [Parts, ChannelsLast, Tokens])
@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_parts_of_other_families_have_the_same_answers_in_onnx(scheme: str, parts: type[nn.Module]) -> None:
    torch.manual_seed(0)
    made = dataclasses.replace(small_classifier(), module=parts().eval())
    classifier = quantized(made, scheme)
    session = onnxruntime.InferenceSession(to_onnx(classifier), providers=["CPUExecutionProvider"])
    images = torch.randn(7, 3, 32, 32)
    (logits,) = session.run(None, {"input": images.numpy()})
    expected, in_float = classifier.module(images).numpy(), made.module(images).detach().numpy()
    assert np.linalg.norm(logits - expected) < 0.02 * np.linalg.norm(expected)
    assert np.linalg.norm(expected - in_float) < 0.1 * np.linalg.norm(in_float)


class Averages(nn.Module):
    """Average pools whose last windows reach beyond the rim: each way to count what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 4, 3)
        self.first = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.second = nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)
        self.third = nn.AvgPool2d((2, 3), (3, 2), padding=1, ceil_mode=True, count_include_pad=False)
        self.last = nn.AvgPool2d(3, 3, ceil_mode=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.third(self.second(self.first(functional.relu(self.stem(x))))))
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_averages_at_the_rim_are_the_models(scheme: str) -> None:
    torch.manual_seed(0)
    classifier = quantized(dataclasses.replace(small_classifier(), module=Averages().eval()), scheme)
    session = onnxruntime.InferenceSession(to_onnx(classifier), providers=["CPUExecutionProvider"])
    images = torch.randn(16, 3, 32, 32)
    expected = classifier.module(images)
    logits = torch.from_numpy(session.run(None, {"input": images.numpy()})[0])
    spread = (expected - expected.mean(0)).norm()  # which an error at the rim is as large as
    assert (logits - expected).norm() < 0.1 * spread


def test_dynamic_int8_keeps_its_weights_int8() -> None:
    model = onnx.load_from_string(to_onnx(classifier_of("dynamic")))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert constants["layer3.0.conv1.weight"].dtype == np.int8
    assert not any(node.op_type == "QuantizeLinear" for node in model.graph.node)


@pytest.mark.parametrize("kind", ["float", "static"])
def test_a_file_that_disagrees_is_an_error(kind: str) -> None:
    classifier = classifier_of(kind)
    content = to_onnx(classifier)
    with torch.no_grad():
        classifier.module.get_submodule("fc").bias += torch.tensor([3.0, -1.0, 0.0])
    classifier.module.load_state_dict(classifier.module.state_dict())
    check, message = (check_logits, "differ") if kind == "float" else (check_answers, "random images")
    with pytest.raises(MissedError, match=message):
        check(classifier, content)


def test_the_library_writes_no_file_that_disagrees(tmp_path: Path) -> None:
    classifier, file = classifier_of("static"), tmp_path / "model.onnx"
    report = export_onnx(classifier, file)
    assert report.agreement.agreement >= 99.5
    written = file.read_bytes()
    # answers that ONNX knows nothing of
    classifier.module.register_forward_hook(lambda _, __, logits: logits.roll(1, 1))
    with pytest.raises(MissedError, match="nothing was written"):
        export_onnx(classifier, file)
    assert file.read_bytes() == written


def test_an_existing_file_stays_without_force(tmp_path: Path) -> None:
    write_folder(classifier_of("static"), tmp_path / "model")
    file = tmp_path / "model.onnx"
    file.write_text("mine")
    options: dict[str, Any] = {"model": str(tmp_path / "model"), "output": file}
    with pytest.raises(FolderError, match="exists"):
        run_export(ExportOptions(**options))
    assert file.read_text() == "mine"
    run_export(ExportOptions(**options, force=True))
    onnx.checker.check_model(str(file))
