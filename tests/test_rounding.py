"""Rounding by least squares, its simulation, accuracy control and saturation, against what they must come to."""

import dataclasses
import itertools
import json
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from conftest import short_classifier, small_classifier
from torch import Tensor, nn
from torch.nn import functional

from slimkit.cli.app import main
from slimkit.core.data import CalibrationBatches, open_dataset
from slimkit.core.errors import MissedError, UsageError
from slimkit.core.folder import Classifier, read_folder, write_folder
from slimkit.core.options import QuantizeOptions, TrainOptions
from slimkit.core.progress import silent
from slimkit.core.quantization import qat, quantize
from slimkit.core.quantization.control import fewest_in_float, layer_costs
from slimkit.core.quantization.fidelity import nearest
from slimkit.core.quantization.lowering.lower import lower
from slimkit.core.quantization.simulate import Simulation, simulate
from slimkit.core.quantization.weights.biases import correct_biases
from slimkit.core.quantization.weights.layerwise import round_layers
from slimkit.core.quantization.weights.per_channel import quantize_weight
from slimkit.core.quantization.weights.rounded import RoundedLayer, read_rounded, replace_rounded
from slimkit.core.quantization.weights.rounding import best_scale, round_by_least_squares
from slimkit.core.quantization.weights.saturation import reduced_weight
from slimkit.core.stages import run_quantize, run_train
from slimkit.standalone.model import can_saturate, cpu_arithmetic

pytestmark = pytest.mark.numeric


@pytest.fixture(autouse=True)
def seeded(one_thread: None) -> None:
    torch.manual_seed(0)


def correlated(count: int, size: int) -> Tensor:
    """Samples [count, size] whose features depend on each other."""
    return torch.randn(count, size) @ torch.randn(size, size) / size**0.5 + 0.3 * torch.randn(count, 1)


def output_error(weight: Tensor, codes: Tensor, scale: Tensor, x: Tensor) -> float:
    return float((x @ (weight - codes * scale[..., None])[0].T).square().sum())


def test_the_best_of_all_roundings_is_found_for_a_small_layer() -> None:
    """Against all 5^4 codes of one output; the scale that the search settled on is kept."""
    x = correlated(500, 4)
    weight = torch.randn(1, 1, 4)
    codes, scale = round_by_least_squares(weight, (x.T @ x / 500)[None], -2, 2)
    everything = torch.tensor(list(itertools.product(range(-2, 3), repeat=4)), dtype=torch.float32)
    least = min(output_error(weight, row.view(1, 1, 4), scale, x) for row in everything)
    assert output_error(weight, codes, scale, x) <= 1.2 * least + 1e-6


@pytest.mark.parametrize("size", [20, 300])  # less and more than a block
def test_outputs_come_closer_than_with_the_nearest_codes(size: int) -> None:
    x = correlated(2000, size)
    weight = torch.randn(1, 16, size)
    covariance = (x.T @ x / 2000)[None]
    codes, scale = round_by_least_squares(weight, covariance, -7, 7)
    assert codes.abs().max() <= 7
    assert torch.equal(codes, codes.round())
    plain = best_scale(weight, torch.ones(1, size), -7, 7)
    nearest = (weight / plain[..., None]).round().clamp(-7, 7)
    assert output_error(weight, codes, scale, x) < 0.6 * output_error(weight, nearest, plain, x)


def test_groups_are_rounded_each_by_its_own_inputs() -> None:
    first, second = correlated(500, 9), 3 * correlated(500, 9)
    covariance = torch.stack([x.T @ x / 500 for x in (first, second)])
    weight = torch.randn(2, 4, 9)
    codes, scale = round_by_least_squares(weight, covariance, -7, 7)
    for i in range(2):
        alone = round_by_least_squares(weight[i, None], covariance[i, None], -7, 7)
        assert torch.equal(codes[i], alone[0][0])
        torch.testing.assert_close(scale[i], alone[1][0])


def images(count: int = 48, seed: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def simulated(scheme: str = "static", **options: object) -> tuple[Classifier, Classifier, Simulation]:
    source = small_classifier()
    made = quantize(source, scheme=scheme, calibration=[images()], **options).classifier  # type: ignore[arg-type]
    return source, made, simulate(source, made)


def use_rounded(simulation: Simulation, made: Classifier) -> None:
    with torch.no_grad():
        for name, layer in read_rounded(made).items():
            simulation.layers[name].weight.copy_(layer.weight)
            simulation.layers[name].bias.copy_(layer.bias)


def test_the_simulation_answers_as_the_int8_network_does() -> None:
    _, made, simulation = simulated()
    use_rounded(simulation, made)
    with torch.no_grad():
        wanted, got = made.module(images()), simulation.network(images())
    assert (got - wanted).norm() < 0.02 * wanted.norm()


def test_the_simulation_leaves_layers_in_float_that_the_int8_network_does() -> None:
    _, made, simulation = simulated(keep_float=("layer1.0.conv1", "fc"))
    assert not {"layer1.0.conv1", "fc"} & simulation.layers.keys()
    use_rounded(simulation, made)
    with torch.no_grad():
        wanted, got = made.module(images()), simulation.network(images())
    assert (got - wanted).norm() < 0.02 * wanted.norm()


def test_layers_rounded_one_by_one_lose_a_fraction_of_what_the_nearest_codes_lose() -> None:
    source, made, simulation = simulated()
    names = list(simulation.layers)
    largest = dict.fromkeys(names, 7) | {names[0]: 127, names[-1]: 127}
    rounded = round_layers(simulation, [images(32), images(16)], largest, silent)
    nearest = simulate(source, made)
    with torch.no_grad():
        for name in names[1:-1]:
            codes, scale = quantize_weight(nearest.layers[name].weight.double(), 4)
            nearest.layers[name].weight.copy_(RoundedLayer(codes, scale, scale).weight)
        wanted = source.module(images())
        assert all(layer.codes.abs().max() <= largest[name] for name, layer in rounded.items())
        assert (simulation.network(images()) - wanted).norm() < 0.5 * (nearest.network(images()) - wanted).norm()
        written = replace_rounded(made, rounded).module(images())
        assert (written - wanted).norm() < 0.5 * (nearest.network(images()) - wanted).norm()


def test_with_little_memory_layers_are_rounded_on_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [images(16, seed) for seed in range(4)]
    errors = []
    for limit in (2**30, 2**19):
        monkeypatch.setattr("slimkit.core.graph.lockstep.MEMORY_LIMIT", limit)
        source, _, simulation = simulated()
        rounded = round_layers(simulation, batches, dict.fromkeys(simulation.layers, 7), silent)
        assert rounded.keys() == simulation.layers.keys()
        with torch.no_grad():
            errors.append(float((simulation.network(images()) - source.module(images())).norm()))
    assert errors[0] != errors[1] < 1.5 * errors[0]


def test_numbers_of_layers_are_read_as_they_were_put_in() -> None:
    _, made, _ = simulated(weight_bits={"layer2.0.conv1": 4})
    layers = read_rounded(made)
    odd = layers["layer2.0.conv1"]
    changed = RoundedLayer(-odd.codes, 2 * odd.scale, 3 * odd.bias)
    got = read_rounded(replace_rounded(made, {"layer2.0.conv1": changed}))
    assert torch.equal(got["layer2.0.conv1"].weight, -2 * odd.weight)
    torch.testing.assert_close(got["layer2.0.conv1"].bias, 3 * odd.bias, rtol=0, atol=float(odd.scale.max()))
    assert torch.equal(got["fc"].weight, layers["fc"].weight)
    assert torch.equal(read_rounded(made)["layer2.0.conv1"].weight, odd.weight)


def test_the_layer_that_int8_ruins_costs_most() -> None:
    """One huge weight in each channel leaves no codes to the others."""
    source = small_classifier()
    with torch.no_grad():
        source.module.layer3[0].conv1.weight[:, 0, 0, 0] *= 300  # type: ignore[index, union-attr]
    made = quantize(source, scheme="static", calibration=[images()]).classifier
    costs = layer_costs(simulate(source, made), read_rounded(made), [images()], silent)
    assert next(iter(costs)) == "layer3.0.conv1"
    assert list(costs.values()) == sorted(costs.values(), reverse=True)


def test_control_keeps_the_fewest_layers_in_float() -> None:
    """b and d cost a point each; of the head a, b, c, d that the search ends with, a and c go back to int8."""
    points = {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0, "e": 0.1, "f": 0.0}

    def drop(kept: Collection[str]) -> float:
        return sum(cost for name, cost in points.items() if name not in kept)

    assert set(fewest_in_float("abcdef", drop, 0.5)) == {"b", "d"}
    assert fewest_in_float("abcdef", drop, 2.5) == []
    with pytest.raises(MissedError, match=r"3\.00 points of accuracy are lost"):
        fewest_in_float("abcdef", lambda kept: 3.0, 0.5)


def saturates_in_16_bits(codes: Tensor) -> bool:
    """By every pair of weights with every pair of extreme activations."""
    for row in codes.flatten(1).long():
        for i, j in itertools.combinations(range(len(row)), 2):
            for a, b in itertools.product((0, 255), repeat=2):
                if not -32768 <= int(a * row[i] + b * row[j]) <= 32767:
                    return True
    return False


@pytest.mark.parametrize(
    ("row", "expected"),
    [([64, 64, -64], False), ([65, 64, 0], True), ([127, 1, -127, 0], False), ([127, 2], True), ([-65, -64], True)],
)
def test_saturation_is_found_by_the_two_largest_weights_of_one_sign(row: list[int], expected: bool) -> None:
    codes = torch.tensor([[0] * len(row), row], dtype=torch.int8)
    assert can_saturate(codes) == saturates_in_16_bits(codes) == expected


def test_reduced_weights_can_not_saturate_and_lose_a_bit_at_most() -> None:
    weight = torch.randn(8, 4, 3, 3, dtype=torch.double)
    codes, scale = reduced_weight(weight)
    plain, plain_scale = quantize_weight(weight)
    assert saturates_in_16_bits(plain)
    assert not saturates_in_16_bits(codes)
    error = (RoundedLayer(codes, scale, scale).weight - weight).norm()
    assert error < 2.2 * (RoundedLayer(plain, plain_scale, scale).weight - weight).norm()


@pytest.fixture
def trained(image_folder: Path, tmp_path: Path) -> Path:
    """A model folder that knows its data."""
    return write_folder(short_classifier(), tmp_path / "float").folder or tmp_path


def options(trained: Path, image_folder: Path, output: Path, **changes: object) -> QuantizeOptions:
    return QuantizeOptions(model=str(trained), data=str(image_folder), output=output, **changes)  # type: ignore[arg-type]


def test_four_bit_weights_take_half_a_byte_each(trained: Path, image_folder: Path, tmp_path: Path) -> None:
    eight = run_quantize(options(trained, image_folder, tmp_path / "eight", compress_weights=False))
    four = run_quantize(options(trained, image_folder, tmp_path / "four", weight_bits=4, compress_weights=False))
    layers = {layer.name: layer for layer in four.architecture.layers if layer.quantization and layer.macs}
    bits = {name: layer.quantization["weight_bits"] for name, layer in layers.items() if layer.quantization}
    assert bits.pop("stem") == bits.pop("fc") == 8
    assert set(bits.values()) == {4}
    saved = sum(layer.parameters - (layer.out_channels or 0) for name, layer in layers.items() if name in bits) // 2
    assert eight.figures["weights_bytes"] - four.figures["weights_bytes"] == saved
    assert four.figures["scales_bytes"] == eight.figures["scales_bytes"]
    size = (tmp_path / "four" / "compressed_shortresnet.pth").stat().st_size
    assert size == sum(four.figures[f"{part}_bytes"] for part in ("weights", "scales", "container"))


def test_corrected_biases_keep_the_means_of_a_linear_layer() -> None:
    """Weights of 4 bits: what their rounding takes from the mean of each output is in the bias, by float64."""
    classifier = small_classifier()
    batches = [torch.rand(16, *classifier.architecture.input_shape) + 1]
    traced, operations = lower(classifier.module.eval(), classifier.architecture.input_shape)
    operations = [dataclasses.replace(o, is_float=o.name != "fc") for o in operations]
    fc: nn.Linear = classifier.module.get_submodule("fc")  # type: ignore[assignment]
    codes, scale = quantize_weight(fc.weight.detach().double(), 4)
    state = {"fc.weight": codes, "fc.weight_scale": scale, "fc.bias": fc.bias.detach()}
    corrected = correct_biases(traced, operations, state, batches, silent)["fc.bias"]
    features = []
    fc.register_forward_hook(lambda _, inputs, output: features.append((inputs[0], output)))
    with torch.no_grad():
        classifier.module(batches[0])
    inputs, outputs = features[0]
    got = (inputs.double() @ (codes * scale.double()[:, None]).T).mean(0) + corrected.double()
    torch.testing.assert_close(got, outputs.double().mean(0), rtol=1e-4, atol=1e-5)


def test_the_nearest_network_is_taken() -> None:
    float_network, far, near = (nn.Linear(3, 2) for _ in range(3))
    near.load_state_dict({key: value + 0.01 for key, value in float_network.state_dict().items()})
    far.load_state_dict({key: value - 0.1 for key, value in float_network.state_dict().items()})
    chosen, fidelity = nearest(float_network, [far, near], [torch.rand(4, 3)], "random", silent)
    assert chosen is near
    assert 0 < fidelity.error < 0.1


def test_fine_tuning_mends_answers_that_are_far_off(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias of the classifier is wrong by twice what logits vary by: far more than where a training happens to end."""
    monkeypatch.setattr(qat, "LEARNING_RATE", 1e-3)  # there are 40 steps to take
    learned = {"model": "slimresnet18", "width": 8, "image_size": 32, "epochs": 8, "batch_size": 8}
    trained = run_train(TrainOptions(data=str(image_folder), output=tmp_path / "float", **learned)).folder  # type: ignore[arg-type]
    source = read_folder(trained)
    data = open_dataset(str(image_folder), image_size=32, resize=36)
    batches = CalibrationBatches(data.train, data.preprocessing, 64)
    plain = quantize(source, scheme="static", calibration=batches).classifier
    fc = read_rounded(plain)["fc"]
    off = replace_rounded(plain, {"fc": dataclasses.replace(fc, bias=fc.bias + torch.tensor([3.0, 0, 0]))})
    tuned = qat.fine_tune(source, off, data, options(trained, image_folder, tmp_path, qat_epochs=40), silent)
    x = next(iter(batches))
    wanted = functional.softmax(source.module(x).detach() / 4, 1)

    def distance(classifier: Classifier) -> float:
        """The divergence that the training is to lessen."""
        return float(functional.kl_div(functional.log_softmax(classifier.module(x) / 4, 1), wanted, reduction="sum"))

    assert distance(tuned) < 0.5 * distance(off)
    before, after = off.module.state_dict(), tuned.module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if "output" in key)  # the ranges stay
    assert tuned.architecture.training_details[-1]["epochs"] == 40


@pytest.mark.parametrize("extra", [{}, {"weight_bits": 4}, {"qat_epochs": 1}])
def test_reduced_models_can_not_saturate(
    trained: Path, image_folder: Path, tmp_path: Path, extra: dict[str, int]
) -> None:
    result = run_quantize(options(trained, image_folder, tmp_path / "out", reduce_range=True, **extra))
    assert not any(can_saturate(layer.codes) for layer in read_rounded(read_folder(result.folder)).values())
    assert any("no 16-bit sum of this model can saturate" in note for note in result.notes)


def test_the_notes_tell_of_saturation(trained: Path, image_folder: Path, tmp_path: Path) -> None:
    notes = run_quantize(options(trained, image_folder, tmp_path / "out", reduce_range=False)).notes
    assert any("can saturate in 5 of 5 layers" in note and "--reduce-range" in note for note in notes)


def test_weights_are_kept_to_seven_bits_just_where_this_cpu_gains_by_it(
    trained: Path, image_folder: Path, tmp_path: Path
) -> None:
    result = run_quantize(options(trained, image_folder, tmp_path / "out"))
    largest = max(int(layer.codes.abs().max()) for layer in read_rounded(read_folder(result.folder)).values())
    assert largest == (64 if cpu_arithmetic().saturates else 127)
    assert any("--no-reduce-range" in note for note in result.notes) == cpu_arithmetic().saturates


@pytest.mark.parametrize(
    "wrong", [{"weight_bits": 7}, {"qat_epochs": -1}, {"qat_epochs": 1, "scheme": "dynamic"}, {"max_drop": -1.0}]
)
def test_impossible_options_are_named(
    wrong: dict[str, object], trained: Path, image_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
        run_quantize(options(trained, image_folder, tmp_path / "out", **wrong))
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_is_lost(
    trained: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A drop of up to 100 points is always kept to, without any layer in float."""
    arguments = ["quantize", str(trained), "--data", str(image_folder), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--max-drop", "100", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("points of accuracy are lost" in note and "with all layers in int8" in note for note in notes)
