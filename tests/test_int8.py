"""int8 networks, against arithmetic on integers written out by hand, and against the float networks they come from."""

import copy
import dataclasses
import functools
import io
from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest
import torch
from conftest import small_classifier
from torch import Tensor, nn
from torch.nn import functional

from slimkit.core.architecture import Architecture
from slimkit.core.errors import ModelError, UsageError
from slimkit.core.export import to_onnx
from slimkit.core.folder import Classifier, serialize_weights
from slimkit.core.quantization import QuantizeResult, quantize
from slimkit.core.quantization.ranges.calibrate import scale_and_zero_point
from slimkit.core.quantization.weights.per_channel import fold_batch_norm, quantize_weight
from slimkit.standalone import model as standalone
from slimkit.standalone.model import Int8Network, build_model

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]


def images(count: int, size: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def quantized(scheme: Any, classifier: Classifier | None = None, **options: Any) -> Classifier:
    calibration = [images(16, seed=2), images(16, seed=3)]
    return quantize(classifier or small_classifier(), scheme=scheme, calibration=calibration, **options).classifier


@functools.cache
def _cached(scheme: str) -> Classifier:
    return quantized(scheme)


def network_in(scheme: str) -> Any:
    """A small int8 network of the test's own."""
    return copy.deepcopy(_cached(scheme).module)


ARITHMETICS = [
    standalone.FloatArithmetic(),
    *(
        kind(saturates=split)
        for kind in (standalone.Int8Kernels, standalone.QuantizedTensorKernels)
        for split in (0, 1)
    ),
]


def name_of(arithmetic: Any) -> str:
    return type(arithmetic).__name__ + "-split" * arithmetic.saturates


def use(arithmetic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not isinstance(standalone.cpu_arithmetic(), type(arithmetic)):
        pytest.skip("this machine has no such kernels")
    if isinstance(arithmetic, standalone.Int8Kernels) and standalone.cpu_arithmetic().saturates > arithmetic.saturates:
        pytest.skip("16-bit sums saturate on this CPU unless weights are split")
    monkeypatch.setattr(standalone, "cpu_arithmetic", lambda: arithmetic)


def network_of(*layers: dict[str, Any]) -> Any:
    return Int8Network(list(layers)).eval()


def convolution(inputs: list[str], relu: bool, **changes: Any) -> dict[str, Any]:
    entry = {"name": "conv", "type": "QuantizedConv2d", "inputs": inputs, "in_channels": 16, "out_channels": 16}
    entry |= {"kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    entry |= {"activation": "relu" if relu else None, "quantization": CODES}
    return entry | changes


CODES = {"scheme": "static", "output": "uint8 per tensor"}
QUANTIZE = {"name": "quantize", "type": "Quantize", "inputs": ["input"], "quantization": CODES}
FLATTEN = {"name": "flatten", "type": "Flatten", "inputs": ["conv"]}
FLATTEN |= {"options": {"function": "Tensor.flatten", "arguments": [{"input": 0}, 1]}}
LINEAR = {"name": "fc", "type": "QuantizedLinear", "inputs": ["flatten"], "out_channels": 5, "activation": None}


def set_scale(layer: Any, scale: float, zero_point: int) -> None:
    layer.output_scale.fill_(scale)
    layer.output_zero_point.fill_(zero_point)


def randomize(layer: Any) -> None:
    layer.weight.copy_(torch.randint(-127, 128, layer.weight.shape))
    layer.weight_scale.copy_(torch.rand(len(layer.bias)) * 1e-3 + 1e-4)
    layer.bias.data.normal_(0, 0.5)


def codes_of(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return ((x.double() / scale).round() + zero_point).clamp(0, 255)


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=name_of)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("stride", "groups"), [([1, 1], 1), ([1, 1], 16), ([2, 2], 2)])
def test_a_static_convolution_is_the_sum_of_integer_products(
    arithmetic: Any, relu: bool, stride: list[int], groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64, where all sums of integers are exact; the codes may differ by one where a sum is a tie."""
    use(arithmetic, monkeypatch)
    torch.manual_seed(0)
    size = 16 * (64 if stride == [1, 1] else 16)
    last = LINEAR | {"in_channels": size, "out_channels": size, "quantization": {"scheme": "static"}}
    network = network_of(QUANTIZE, convolution(["quantize"], relu, stride=stride, groups=groups), FLATTEN, last)
    set_scale(network.quantize, 0.03, 120)
    set_scale(network.conv, 0.011, 0 if relu else 131)
    randomize(network.conv)
    # a classifier that hands the codes through, times 127
    network.fc.weight.copy_(127 * torch.eye(size))
    x = torch.randn(3, 16, 8, 8)
    signal = codes_of(x, 0.03, 120) - 120
    weight, scale = network.conv.weight.double(), network.conv.weight_scale.double()
    sums = functional.conv2d(signal, weight, None, stride, 1, 1, groups)
    real = sums * (0.03 * scale).view(-1, 1, 1) + network.conv.bias.double().view(-1, 1, 1)
    zero_point = 0 if relu else 131
    expected = codes_of(real.relu() if relu else real, 0.011, zero_point) - zero_point
    shown = network(x) / 127 / 0.011
    difference = (shown - expected.flatten(1)).abs()
    assert difference.max() < 1.01
    assert (difference > 0.01).float().mean() < 0.001


def test_a_static_convolution_takes_no_residual() -> None:
    with pytest.raises(ValueError, match=r"'conv'.*one input"):
        network_of(QUANTIZE, QUANTIZE | {"name": "other"}, convolution(["quantize", "other"], True))


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_the_trace_gives_the_answers_of_the_single_layers(scheme: str) -> None:
    network, arithmetic = network_in(scheme), standalone.cpu_arithmetic()
    if not isinstance(arithmetic, standalone.Int8Kernels):
        pytest.skip("this machine has no int8 kernels")
    for batch in (images(5), torch.nn.functional.interpolate(images(2), scale_factor=2.0)):
        alone = torch.cat([network._run(arithmetic, image) for image in batch.split(1)])
        assert torch.equal(network(batch), alone)
        assert isinstance(network._ready[batch.shape[1:]].traced, torch.jit.ScriptModule)  # or it is compared to itself


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_many_images_are_answered_alike_before_and_after_they_are_traced(scheme: str) -> None:
    network, batch = network_in(scheme), images(standalone.FEW_IMAGES + 1)
    if not isinstance(standalone.cpu_arithmetic(), standalone.Int8Kernels):
        pytest.skip("this machine has no int8 kernels")
    answers, traced = [], []
    for _ in range(standalone.MANY_CALLS):
        answers.append(network(batch))
        network(torch.nn.functional.interpolate(images(1), scale_factor=2.0))  # which packs the weights for itself
        traced.append(network._ready[batch.shape[1:]].traced is not None)
    assert traced == [False] * (standalone.MANY_CALLS - 1) + [True]
    assert all(torch.equal(each, answers[0]) for each in answers)


def test_images_of_many_sizes_come_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standalone, "MOST_SIZES", 2)
    network = network_in("dynamic")
    sizes = [24 + 4 * step for step in range(standalone.MOST_SIZES + 2)]
    batches = [torch.nn.functional.interpolate(images(1), size=(size, size)) for size in sizes]
    first = [network(batch) for batch in batches]
    assert all(torch.equal(network(batch), logits) for batch, logits in zip(batches, first, strict=True))
    fresh = network_in("dynamic")
    assert torch.equal(fresh(batches[-1]), first[-1])


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=name_of)
def test_the_largest_products_do_not_saturate(arithmetic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """255 x 127 twice is beyond int16, in which CPUs without VNNI add pairs."""
    use(arithmetic, monkeypatch)
    entry = convolution(["input"], False, kernel_size=[1, 1], padding=[0, 0], quantization={"scheme": "dynamic"})
    network = network_of(entry)
    network.conv.weight.fill_(127)
    assert torch.equal(network(torch.full((1, 16, 4, 4), 255.0)), torch.full((1, 16, 4, 4), 16.0 * 127 * 255))


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=name_of)
@pytest.mark.parametrize("channels", [8, 16, 24])
def test_a_strided_pointwise_convolution_is_right_on_two_threads(
    arithmetic: Any, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN's is not, for some numbers of channels; which images are wrong differs from run to run."""
    use(arithmetic, monkeypatch)
    torch.set_num_threads(2)
    changes = {"in_channels": channels, "kernel_size": [1, 1], "stride": [2, 2], "padding": [0, 0]}
    network = network_of(QUANTIZE, convolution(["quantize"], False, **changes), FLATTEN)
    set_scale(network.quantize, 0.03, 120)
    set_scale(network.conv, 0.011, 131)
    randomize(network.conv)
    x = torch.randn(50, channels, 8, 8)
    signal = codes_of(x, 0.03, 120)[:, :, ::2, ::2] - 120
    sums = torch.einsum("nihw,oi->nohw", signal, network.conv.weight.double()[:, :, 0, 0])
    real = sums * (0.03 * network.conv.weight_scale.double()).view(-1, 1, 1) + network.conv.bias.double().view(-1, 1, 1)
    got = network._run(arithmetic, x)
    values = (got if isinstance(got, standalone.Codes) else standalone._codes_of(got)).values
    assert (values.double() - codes_of(real, 0.011, 131).flatten(1)).abs().max() <= 1


Fault = Callable[[Any, Tensor], Tensor]


def pad_with_the_least_code(layer: Any, values: Tensor) -> Tensor:
    (high, wide), least = layer.geometry[1], 0 if values.dtype == torch.uint8 else float(values.min())
    layer.geometry = (layer.geometry[0], [0, 0], *layer.geometry[2:])
    return functional.pad(values, (wide, wide, high, high), value=least)


def start_a_pixel_late(layer: Any, values: Tensor) -> Tensor:
    return values.roll(1, -1) if layer.geometry[0] == [2, 2] and layer.weight_shape[2:] == (1, 1) else values


def turn_channels_of_groups(layer: Any, values: Tensor) -> Tensor:
    return values.flip(1) if layer.geometry[3] > 1 else values


def forget_an_odd_channel(layer: Any, values: Tensor) -> Tensor:
    return torch.cat([values[:, :-1], values[:, :1]], 1) if values.shape[1] % 2 else values


class FaultyKernels(standalone.FloatArithmetic):
    """Kernels that are wrong for some convolutions."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def convolve(self, layer: Any, x: Any, residual: Any) -> Any:
        layer = copy.copy(layer)
        faulty = self.fault(layer, x if layer.is_dynamic else x.values)
        return super().convolve(layer, faulty if layer.is_dynamic else x._replace(values=faulty), residual)


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
@pytest.mark.parametrize(
    "fault", [pad_with_the_least_code, start_a_pixel_late, turn_channels_of_groups, forget_an_odd_channel]
)
def test_kernels_that_are_wrong_for_some_convolutions_are_not_called_exact(fault: Fault, scheme: str) -> None:
    assert standalone._is_exact(standalone.FloatArithmetic(), scheme)
    assert not standalone._is_exact(FaultyKernels(fault), scheme)


def test_folding_batch_norm_changes_nothing() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6).eval()
    for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        tensor.uniform_(0.5, 2)
    weight, bias = fold_batch_norm(conv, norm)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(functional.conv2d(x, weight.float(), bias.float()), norm(conv(x)), rtol=1e-4, atol=1e-5)


def test_weights_are_rounded_per_channel() -> None:
    codes, scale = quantize_weight(torch.tensor([[1.27, -0.5, 0.014], [0.0, 0.0, 0.0], [-254.0, 127.0, 3.0]]).double())
    assert codes.dtype == torch.int8
    assert codes.tolist() == [[127, -50, 1], [0, 0, 0], [-127, 64, 2]]
    torch.testing.assert_close(scale, torch.tensor([0.01, 1.0, 2.0]))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 5.0), (-2.0, 0.0), (0.0, 0.0)])
def test_zero_has_a_code_of_its_own(low: float, high: float) -> None:
    scale, zero_point = scale_and_zero_point(low, high)
    assert 0 <= zero_point <= 255
    assert scale * (0 - zero_point) == pytest.approx(low, abs=scale)
    assert scale * (255 - zero_point) == pytest.approx(high, abs=scale) or high == low


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_logits_stay_close_to_the_float_networks(scheme: str) -> None:
    classifier = small_classifier()
    with torch.no_grad():
        expected, got = classifier.module(images(32)), quantized(scheme, classifier).module(images(32))
    assert (got - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_every_convolution_and_linear_is_int8(scheme: str) -> None:
    classifier = small_classifier()
    result = quantized(scheme, classifier)
    weighted = [name for name, layer in classifier.module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    entries = {layer.name: layer for layer in result.architecture.layers}
    state = result.module.state_dict()
    for name in weighted:
        assert entries[name].type in ("QuantizedConv2d", "QuantizedLinear")
        assert state[f"{name}.weight"].dtype == torch.int8
    assert not {"Conv2d", "Linear"} & {layer.type for layer in result.architecture.layers}
    assert result.architecture.macs == classifier.architecture.macs
    assert result.architecture.compression_steps[-1] == f"quantize ({scheme} int8)"


def test_a_static_network_stays_in_uint8_up_to_the_classifier() -> None:
    network: Any = network_in("static")
    seen = []

    class Spy(standalone.FloatArithmetic):
        def linear(self, layer: Any, x: Any) -> Tensor:
            seen.append(x)
            return super().linear(layer, x)

    kinds = []
    for step in network._steps:
        step.layer.register_forward_hook(lambda _, __, value: kinds.append(type(value)))
    network._run(Spy(), images(2))
    assert kinds[:-1] == [standalone.Codes] * (len(kinds) - 1)
    assert kinds[-1] is Tensor
    assert seen[0].values.dtype == torch.uint8


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_no_answer_depends_on_its_batch(scheme: str) -> None:
    network = network_in(scheme)
    batch = images(9) * torch.logspace(-1, 1, 9).view(-1, 1, 1, 1)  # of very different ranges
    together = network(batch)
    alone = torch.cat([network(image[None]) for image in batch])
    assert torch.equal(together, alone)
    assert torch.equal(network(batch[:4]), together[:4])


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_memory_format_and_dtype_of_the_input_do_not_matter(scheme: str) -> None:
    network = network_in(scheme)
    batch = images(3)
    expected = network(batch)
    assert torch.equal(network(batch.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(network(batch.double()), expected)
    assert not expected.requires_grad


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_float_arithmetic_gives_the_same_answers(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_in(scheme)
    expected = network(images(16))
    monkeypatch.setattr(standalone, "cpu_arithmetic", standalone.FloatArithmetic)
    got = network(images(16))
    assert (got - expected).norm() < 0.02 * expected.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(images(16)), got)


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_what_panels_do_to_a_model_leaves_its_answers(scheme: str) -> None:
    network = network_in(scheme)
    batch = images(4)
    expected = network(batch)
    assert next(network.parameters()).dtype == torch.float32
    assert torch.equal(copy.deepcopy(network)(batch), expected)
    network.half().to("cpu").to(memory_format=torch.channels_last).eval()
    assert torch.equal(network(batch.to(next(network.parameters()).dtype)), expected)
    engine = torch.backends.quantized.engine
    network(batch)
    assert torch.backends.quantized.engine == engine


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_loading_other_weights_replaces_the_packed_ones(scheme: str) -> None:
    first, second = quantized(scheme), quantized(scheme, small_classifier(width=8))
    state = {key: tensor.clone() for key, tensor in second.module.state_dict().items()}
    state["fc.bias"] += 1
    state["conv1.weight"] //= 2
    first.module(images(2))
    first.module.load_state_dict(state)
    fresh = build_model(first.architecture.to_dict())
    fresh.load_state_dict(state)
    assert torch.equal(first.module(images(2)), fresh(images(2)))


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_it_is_rebuilt_from_json_and_plain_tensors(scheme: str) -> None:
    result = quantized(scheme)
    rebuilt = build_model(Architecture.from_json(result.architecture.to_json(), "test").to_dict())
    state = torch.load(io.BytesIO(serialize_weights(result.module)), weights_only=True)
    assert {tensor.dtype for tensor in state.values()} <= {torch.int8, torch.uint8, torch.float32}
    rebuilt.load_state_dict(state)
    assert torch.equal(rebuilt(images(3)), result.module(images(3)))
    sizes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert sum(layer.bytes for layer in result.architecture.layers) == sizes


def test_the_file_is_a_quarter_and_its_container_small() -> None:
    classifier = small_classifier(width=32)
    result = quantized("static", classifier)
    size = len(serialize_weights(result.module))
    tensors = sum(tensor.numel() * tensor.element_size() for tensor in result.module.state_dict().values())
    assert size <= 1.05 * tensors
    assert size <= len(serialize_weights(classifier.module)) / 3.7  # of a small network: scales and names weigh more


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_each_calibration_method_gives_a_usable_network(method: Any) -> None:
    classifier = small_classifier()
    expected, got = classifier.module(images(16)), quantized("static", classifier, method=method).module(images(16))
    assert (got - expected).norm() < 0.15 * expected.norm()


class Reused(nn.Module):
    """A residual that is read again after its sum, a sum without a ReLU, and a classifier of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.a(x) + x)
        y = torch.relu(self.b(y) + x)
        return self.fc(self.pool(y + x))


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_a_residual_that_is_read_again_is_not_overwritten(scheme: str) -> None:
    torch.manual_seed(0)
    module = Reused().eval()
    classifier = dataclasses.replace(small_classifier(), module=module)
    with torch.no_grad():
        expected = module(images(8))
    result = quantized(scheme, classifier)
    assert (result.module(images(8)) - expected).norm() < 0.05 * expected.norm()


def quantized_module(module: nn.Module, scheme: Any = "static", **options: Any) -> QuantizeResult:
    classifier = dataclasses.replace(small_classifier(), module=module.eval())
    return quantize(classifier, scheme=scheme, calibration=[images(16, seed=2)], **options)


def test_a_layer_without_an_int8_form_stays_in_float_and_is_named() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 4)
    nn.init.uniform_(norm.weight)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    result = quantized_module(module)
    assert [note for note in result.notes if "group_norm" in note]
    types = [layer.type for layer in result.classifier.architecture.layers]
    assert types.count("QuantizedConv2d") == 2
    with torch.no_grad():
        expected = module(images(4))
    assert (result.classifier.module(images(4)) - expected).norm() < 0.05 * expected.norm()


ACTIVATIONS = [nn.ReLU6(), nn.Hardswish(), nn.SiLU(), nn.Sigmoid(), nn.Hardsigmoid(), nn.GELU(), nn.LeakyReLU(0.1)]


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda module: type(module).__name__)
def test_elementwise_functions_stay_in_codes(activation: nn.Module, scheme: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), activation, nn.Conv2d(8, 8, 3, groups=8), activation, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    result = quantized_module(module, scheme)
    with torch.no_grad():
        expected = module(images(8))
    assert not result.notes
    assert (result.classifier.module(images(8)) - expected).norm() < 0.05 * expected.norm()
    if scheme == "static":
        others = result.classifier.architecture.layers[:-1]
        assert all((layer.quantization or {}).get("output") == "uint8 per tensor" for layer in others[:-1])


class Branches(nn.Module):
    """What the families have beside convolutions: gates, concatenation, pools, shuffles, lone BatchNorm, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8, 8))
        self.squeeze, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(24)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 2)
        self.pool, self.average = nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2)
        self.head = nn.Sequential(nn.Linear(24 * 16, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        gated = x * torch.sigmoid(self.squeeze(functional.adaptive_avg_pool2d(self.a(x), 1)))
        left, right = self.b(gated).chunk(2, 1)
        both = torch.cat([torch.relu(left), right, self.c(x), gated], 1)
        n, c, h, w = both.shape
        both = both.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        both = self.average(torch.relu(self.norm(both)))
        return self.head(functional.adaptive_avg_pool2d(both, 4).flatten(1))


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=name_of)
def test_gates_branches_and_shuffles(scheme: str, arithmetic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use(arithmetic, monkeypatch)
    torch.manual_seed(0)
    module = Branches()
    result = quantized_module(module, scheme)
    with torch.no_grad():
        expected = module(images(8))
    assert not result.notes
    got = result.classifier.module(images(8))
    assert (got - expected).norm() < 0.05 * expected.norm()
    torch.testing.assert_close(result.classifier.module(images(8)[:1]), got[:1])


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_layers_can_be_kept_in_float(scheme: str) -> None:
    classifier = small_classifier()
    kept = ["conv1", "layer2.0.conv2", "layer3.0.downsample.0", "fc"]
    result = quantize(classifier, scheme=scheme, calibration=[images(16)], keep_float=kept)  # type: ignore[arg-type]
    entries = {layer.name: layer for layer in result.classifier.architecture.layers}
    assert [name for name in kept if entries[name].type in ("Conv2d", "Linear")] == kept
    assert [name for name in kept if any(name in note for note in result.notes)] == kept
    with torch.no_grad():
        expected = classifier.module(images(16))
    assert (result.classifier.module(images(16)) - expected).norm() < 0.1 * expected.norm()


def test_what_is_concatenated_has_one_scale() -> None:
    result = quantized_module(Branches())
    state = result.classifier.module.state_dict()
    entries = {layer.type: layer for layer in result.classifier.architecture.layers}
    assert "cat.output_scale" not in state
    assert state["c.output_scale"] == state["b.output_scale"]
    assert entries["Concatenate"].inputs[2] == "c"


def test_static_without_images_and_a_second_time_are_errors() -> None:
    with pytest.raises(UsageError, match="calibration images"):
        quantize(small_classifier(), scheme="static", calibration=None)
    with pytest.raises(ModelError, match="int8 already"):
        quantized("static", quantized("dynamic"))


def test_weights_that_are_not_finite_are_named() -> None:
    classifier = small_classifier()
    classifier.module.get_submodule("layer2.0.conv1").weight.data[0] = float("nan")
    with pytest.raises(ModelError, match=r"layer2\.0\.conv1"):
        quantized("dynamic", classifier)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Softmax"}, "'conv' has the unknown type 'Softmax'"),
        ({"inputs": ["nowhere"]}, "'conv'"),
        ({"groups": 0}, "'conv' can't be built"),
        ({"kernel_size": None}, "'conv' can't be built"),
        ({"name": "forward"}, "'forward' can't be built"),
    ],
)
def test_an_architecture_that_makes_no_network_names_the_layer(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network_of(QUANTIZE, convolution(["quantize"], True) | change)


class Padded(nn.Module):
    """Zeros around the input by an operation of its own, as networks from TensorFlow have it: even, and uneven."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.uneven, self.head = nn.Conv2d(3, 16, 5), nn.Conv2d(16, 16, 3, 2), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, (2, 2, 2, 2))
        x = nn.functional.pad(self.even(x), (0, 1, 2, 1))
        return self.head(self.uneven(x).relu()).mean((2, 3))


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_zeros_around_an_image_are_the_convolutions_own(scheme: str) -> None:
    torch.manual_seed(0)
    module = Padded()
    made = quantized_module(module, scheme, reduce_range=True).classifier
    layers = {layer.name: layer for layer in made.architecture.layers}
    assert layers["even"].padding == (2, 2)
    assert layers["uneven"].padding == (0, 0)
    assert [name for name, layer in layers.items() if layer.type == "ZeroPad"] == ["pad_1"]
    with torch.no_grad():
        expected = module(images(8))
        ours = made.module(images(8))
    assert (ours - expected).norm() < 0.05 * expected.norm()
    session = onnxruntime.InferenceSession(to_onnx(made), providers=["CPUExecutionProvider"])
    theirs = torch.from_numpy(session.run(None, {"input": images(8).numpy()})[0])
    assert (ours - theirs).norm() < 0.05 * expected.norm()


class SmallToken(nn.Module):
    """A class token a thousandth as large as the patches that it is joined to; the answer hangs on it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(0.002 * torch.randn(1, 1, 16))
        self.mix, self.norm, self.head = nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        token = self.norm(self.token.repeat(x.shape[0], 1, 1) + x.mean(1, keepdim=True))
        x = torch.cat([token, 5000 * self.mix(x)], 1)
        return self.head(x[:, 0])


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_what_is_small_keeps_its_digits_beside_what_is_large(scheme: str) -> None:
    torch.manual_seed(0)
    module = SmallToken()
    made = quantized_module(module, scheme).classifier
    with torch.no_grad():
        expected = module(images(5))
    deviation, ours = expected - expected.mean(0), made.module(images(5))
    assert (ours - expected).norm() < 0.2 * deviation.norm()


class CountsImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)) * x.shape[0])


def test_an_answer_that_hangs_on_the_number_of_images_has_no_int8_form() -> None:
    with pytest.raises(ModelError, match="follows the number of images"):
        quantized_module(CountsImages())
