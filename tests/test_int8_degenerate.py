"""int8 for layers that are dead, nearly dead, all zero or of unusual shape: answers are right, or it is named."""

import dataclasses
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from conftest import short_classifier, small_classifier
from torch import Tensor, nn
from torch.nn import functional

from slimkit.core.data import open_dataset
from slimkit.core.errors import ModelError
from slimkit.core.export import to_onnx
from slimkit.core.folder import Classifier
from slimkit.core.options import QuantizeOptions
from slimkit.core.progress import silent
from slimkit.core.quantization import quantize
from slimkit.core.quantization.simulate import simulate
from slimkit.core.quantization.stage import quantize_for
from slimkit.core.quantization.weights.per_channel import LARGEST_BIAS, fit_biases, quantize_weight

pytestmark = pytest.mark.numeric


def images(count: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def classifier_of(module: nn.Module) -> Classifier:
    return dataclasses.replace(small_classifier(), module=module.eval())


def in_onnx_runtime(classifier: Classifier, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(to_onnx(classifier), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def share(difference: Tensor, of: Tensor) -> float:
    return float(difference.norm() / of.norm())


@pytest.fixture
def quantized(image_folder: Path) -> Any:
    """Quantizes as the command does, weights kept to 7 bits so that no runtime's sums saturate."""
    data = open_dataset(str(image_folder), image_size=32, resize=36)

    def run(classifier: Classifier, **options: Any) -> Classifier:
        wanted = QuantizeOptions(model="", reduce_range=True, min_agreement=0, **options)
        return quantize_for(classifier, data, wanted, silent).classifier

    return run


WAYS: list[dict[str, Any]] = [{}, {"scheme": "dynamic"}, {"weight_bits": 4}, {"qat_epochs": 1}]


@pytest.mark.parametrize("gamma", [1e-9, 1e-30, 0.0])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_nearly_dead_channels_keep_their_biases(way: dict[str, Any], gamma: float, quantized: Any) -> None:
    """Half of all channels give their BatchNorm's shift alone, beside which their weights are next to nothing."""
    classifier = short_classifier()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in classifier.module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight[::2] = gamma
                layer.bias.copy_(torch.randn(len(layer.bias), generator=generator))
        wanted = classifier.module(images())
    made = quantized(classifier, **way)
    got = made.module(images())
    assert share(got - wanted, wanted) < (0.4 if "weight_bits" in way else 0.1)
    assert share(in_onnx_runtime(made, images()) - got, got) < 0.02


def test_a_bias_that_fits_leaves_its_weights_alone_and_one_that_does_not_raises_the_scale() -> None:
    codes = torch.tensor([[100, -127], [100, -127], [0, 0]], dtype=torch.int8)
    scale, bias = torch.tensor([0.01, 1e-12, 1.0]), torch.tensor([1.0, 1.0, 0.37])
    fitted, raised = fit_biases(codes, scale, bias, torch.tensor(0.02))
    assert fitted.tolist() == [[100, -127], [0, 0], [0, 0]]
    assert raised[0] == scale[0]
    limits = bias.double() / (0.02 * raised.double())
    assert limits.abs().max() <= LARGEST_BIAS * 1.001
    assert limits[1:].abs().min() > LARGEST_BIAS * 0.999  # as fine as an int32 allows


def test_weights_too_small_for_a_float32_scale_are_zero() -> None:
    codes, scale = quantize_weight(torch.full((2, 3), 1e-45, dtype=torch.double))
    assert not codes.any()
    assert scale.tolist() == [1, 1]


class TwoBranches(nn.Module):
    """A sum of two branches, the second of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b, self.c = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8, 8))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.fc((self.a(x) + self.c(torch.relu(self.b(x)))).mean((2, 3)))


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("zeroed", ["b", "c", "b c", "stem", "fc", "stem a b c fc"])
def test_layers_that_are_all_zero_are_quantized(zeroed: str, way: dict[str, Any], quantized: Any) -> None:
    module = TwoBranches()
    with torch.no_grad():
        for name in zeroed.split():
            for numbers in module.get_submodule(name).parameters():
                numbers.zero_()
        wanted = module(images())
    made = quantized(classifier_of(module), **way)
    got = made.module(images())
    assert (got - wanted).norm() <= (0.4 if "weight_bits" in way else 0.1) * wanted.norm() + 1e-3
    assert (in_onnx_runtime(made, images()) - got).norm() <= 0.02 * got.norm() + 1e-6


class PointwiseLinear(nn.Module):
    """A linear layer over the last of four dimensions, and one over the last of three."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.four, self.three, self.fc = (
            nn.Conv2d(3, 8, 4, 4),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.four(self.stem(x).permute(0, 2, 3, 1)))
        x = functional.gelu(self.three(x.flatten(1, 2)))
        return self.fc(x.mean(1))


def test_linear_layers_on_more_than_two_dimensions_take_weights_of_four_bits(quantized: Any) -> None:
    module = PointwiseLinear()
    made = quantized(classifier_of(module), weight_bits=4)
    bits = {layer.name: layer.quantization["weight_bits"] for layer in made.architecture.layers if layer.in_channels}
    assert bits == {"stem": 8, "four": 4, "three": 4, "fc": 8}
    with torch.no_grad():
        wanted, got = module(images()), made.module(images())
    assert share(got - wanted, wanted) < 0.2


class NormFirst(nn.Module):
    """A BatchNorm that no convolution before it takes in, as in DenseNet."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.conv, self.fc = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8, **options),
            nn.Conv2d(8, 8, 3),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.stem(x)), 2)
        return self.fc(torch.relu(self.conv(torch.relu(self.norm(x)))).mean((2, 3)))


def test_fine_tuning_trains_the_network_that_is_shipped() -> None:
    """In training mode too, BatchNorm computes by its own statistics, and keeps them."""
    source = classifier_of(NormFirst())
    made = quantize(source, scheme="static", calibration=[images()]).classifier
    network = simulate(source, made).network
    shifted = 3 + 2 * images(seed=2)  # whose own statistics are others
    expected = network.eval()(shifted)
    assert torch.equal(network.train()(shifted), expected)
    assert torch.equal(network.eval()(shifted), expected)


def test_a_batch_norm_without_statistics_is_named() -> None:
    with pytest.raises(ModelError, match=r"'norm'.*no statistics"):
        quantize(classifier_of(NormFirst(track_running_stats=False)), scheme="static", calibration=[images()])


class Sharpened(TwoBranches):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x) / 0.05)


def test_what_is_done_to_logits_is_done_in_float() -> None:
    result = quantize(classifier_of(Sharpened()), scheme="static", calibration=[images()])
    *_, fc, temperature, tanh = result.classifier.architecture.layers
    assert (fc.quantization or {})["output"] == "float32"
    assert temperature.quantization is tanh.quantization is None
    assert result.notes == ()
