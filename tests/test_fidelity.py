"""int8 answers against the float network's: what is measured, stored and refused."""

import json
from pathlib import Path

import pytest
import torch
from conftest import short_classifier, small_classifier
from torch import Tensor, nn

from slimkit.cli.app import main
from slimkit.core.data import CalibrationBatches, open_dataset
from slimkit.core.folder import Classifier, read_folder, read_metadata, write_folder
from slimkit.core.options import QuantizeOptions
from slimkit.core.progress import silent
from slimkit.core.quantization import quantize
from slimkit.core.quantization.fidelity import compare
from slimkit.core.quantization.stage import quantize_for

pytestmark = pytest.mark.numeric


class Shown(nn.Module):
    """Gives the logits that it was made with, whatever the image."""

    def __init__(self, *logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: len(x)]


def test_answers_and_logits_are_compared_image_by_image() -> None:
    """By hand: cosines 1, 0 and 4/5; the second answer differs; squared errors 1, 2 and 1 on 1 + 1 + 16."""
    float_network = Shown([1.0, 0.0], [1.0, 0.0], [4.0, 0.0])
    int8_network = Shown([2.0, 0.0], [0.0, 1.0], [4.0, 3.0])
    (found,) = compare(float_network, [int8_network], [torch.zeros(3, 1)], "test images", silent)
    assert found.agreement == pytest.approx(100 * 2 / 3)
    assert found.cosine == pytest.approx((1 + 0 + 0.8) / 3)
    assert found.error == pytest.approx((1 + 2 + 9) / 18)
    assert (found.images, found.count, found.answers) == ("test images", 3, 1)


def test_logits_that_are_all_zero_are_no_error() -> None:
    (found,) = compare(Shown([0.0, 0.0]), [Shown([0.0, 0.0])], [torch.zeros(1, 1)], "", silent)
    assert (found.agreement, found.cosine, found.error) == (100, 1, 0)


def test_without_images_seeded_random_ones_are_compared() -> None:
    results = [quantize(short_classifier(), scheme="dynamic", calibration=None).fidelity for _ in range(2)]
    assert results[0] == results[1]
    assert (results[0].images, results[0].count) == ("random images", 64)
    assert results[0].cosine > 0.99


def hard_to_round(x: Tensor) -> Classifier:
    """Its answers to the images x hang on differences between weights that are a fraction of one code."""
    classifier = small_classifier()
    fc: nn.Linear = classifier.module.get_submodule("fc")  # type: ignore[assignment]
    features: list[Tensor] = []
    hook = fc.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
    with torch.no_grad():
        classifier.module(x)
        hook.remove()
        fine = torch.randn(fc.weight.shape, generator=torch.Generator().manual_seed(0))
        fc.weight.copy_(300 + fine / (features[0] @ fine.T).std(0)[:, None])
        fc.bias.copy_(-(features[0] @ fc.weight.T).mean(0))
    return classifier


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return write_folder(short_classifier(), tmp_path / "model").folder or tmp_path


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_the_comparison_is_printed_and_stored(
    scheme: str, image_folder: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quantize", str(model_folder), "--data", str(image_folder), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--scheme", scheme, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["figures"]
    stored = read_metadata(tmp_path / "out")["figures"]
    for key in ("agreement", "logit_cosine", "agreement_images", "agreement_split"):
        assert printed[key] == stored[key]
    assert 50 <= stored["agreement"] <= 100
    assert stored["logit_cosine"] > 0.99
    assert (stored["agreement_images"], stored["agreement_split"]) == (33, "calibration images")
    assert "| agreement |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_too_few_equal_answers_are_exit_code_3_and_write_nothing(
    scheme: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_dataset(str(image_folder), image_size=32, resize=36)
    x = next(iter(CalibrationBatches(data.train, data.preprocessing, 64)))
    folder = str(write_folder(hard_to_round(x), tmp_path / "float").folder)
    out = tmp_path / "out"
    arguments = ["quantize", folder, "--data", str(image_folder), "-o", str(out), "--scheme", scheme]
    assert main(arguments) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "--min-agreement asks for 50" in said
    assert "Nothing was written" in said
    assert not out.exists()
    assert main([*arguments, "--min-agreement", "0"]) == 0
    assert read_metadata(out)["figures"]["agreement"] < 50


@pytest.mark.parametrize("wrong", ["101", "-1", "nan"])
def test_an_impossible_share_is_a_usage_error(wrong: str, model_folder: Path, image_folder: Path) -> None:
    arguments = ["quantize", str(model_folder), "--data", str(image_folder), "-o", str(image_folder / "out")]
    assert main([*arguments, "--min-agreement", wrong]) == 2


def test_a_model_that_gives_one_answer_to_everything_is_said_to(model_folder: Path, image_folder: Path) -> None:
    classifier = read_folder(model_folder)
    with torch.no_grad():
        classifier.module.get_submodule("fc").bias[1] += 1000  # type: ignore[operator]
    data = open_dataset(str(image_folder), image_size=32, resize=36)
    options = QuantizeOptions(model=str(model_folder))
    notes = quantize_for(classifier, data, options, silent).notes
    assert any("one answer to all 33 calibration images" in note for note in notes)
