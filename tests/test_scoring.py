"""The contest's score: the formula, the baseline's figures, and a whole scoring of a model folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_classifier
from PIL import Image
from test_cli_chain import write_images

from slimkit.core.architecture import IMAGENET_MEAN, IMAGENET_STD
from slimkit.core.data import open_dataset
from slimkit.core.errors import DataError, FolderError, UsageError
from slimkit.core.folder import Classifier, write_folder
from slimkit.core.models.lineage import record_baseline, remember
from slimkit.core.options import ScoreOptions
from slimkit.core.scoring.formula import CONTEST_BASELINE, Figures, score
from slimkit.core.scoring.report import ScoreReport
from slimkit.core.scoring.run import baseline_figures, given_figures, run_score
from slimkit.core.scoring.verify import checks_of, run_verify

BOARD_BASELINE = Figures(size=44.7, latency=30.0, accuracy=40.0)


class TestFormula:
    def test_smallest_of_the_board(self) -> None:
        result = score(Figures(size=0.31, latency=4.7, accuracy=0.82), BOARD_BASELINE)
        assert result.size == pytest.approx(144.19, abs=0.01)  # 44.7 / 0.31
        assert result.latency == pytest.approx(6.383, abs=0.001)  # 30 / 4.7
        assert result.accuracy == pytest.approx(0.0205)  # 0.82 / 40
        assert 45.1 < result.total < 45.4  # the board says 45.31, from figures that it rounds

    @pytest.mark.parametrize(
        ("figures", "total"),
        [((1.58, 7.0, 18.4), 9.94), ((21.0, 20.8, 23.6), 1.31), ((44.7, 30.0, 40.0), 1.00)],
    )
    def test_the_rest_of_the_board(self, figures: tuple[float, float, float], total: float) -> None:
        assert score(Figures(*figures), BOARD_BASELINE).total == pytest.approx(total, rel=0.01)

    def test_no_right_answer_scores_zero_for_accuracy(self) -> None:
        assert score(Figures(50.0, 10.0, 0.0), CONTEST_BASELINE).total == pytest.approx(0.6)


class TestBaselineFigures:
    def test_given_beats_measured_beats_contest(self) -> None:
        figures, sources = baseline_figures({"size": 44.7}, {"size": 1.0, "latency": 30.0}, "measured: runs/train")
        assert figures == Figures(size=44.7, latency=30.0, accuracy=80.0)
        assert sources == {"size": "given", "latency": "measured: runs/train", "accuracy": "the contest's"}

    def test_without_anything_it_is_the_contests(self) -> None:
        assert baseline_figures({}, {}, None)[0] == Figures(size=50.0, latency=10.0, accuracy=80.0)

    def test_measured_accuracy_of_zero_is_an_error(self) -> None:
        with pytest.raises(UsageError, match="accuracy of 0 %"):
            baseline_figures({}, {"accuracy": 0.0}, "measured: runs/train")

    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
    def test_given_figures_must_be_above_zero(self, value: float) -> None:
        with pytest.raises(UsageError, match="--baseline-latency is"):
            given_figures(ScoreOptions(baseline_latency=value))


# the classes of the data in an order of their own
NAMES = ("cat", "ant", "bee")


def accuracy_by_hand(classifier: Classifier, images: Path) -> float:
    """Accuracy in %, on files that are cut by hand and not by the project's code; nothing needs resizing there."""
    right = []
    for file in sorted((images / "val").rglob("*.png")):
        corner = [(size - 32) // 2 for size in Image.open(file).size]
        cut = Image.open(file).crop((*corner, corner[0] + 32, corner[1] + 32))
        pixels = torch.tensor(list(cut.tobytes()), dtype=torch.float32).reshape(32, 32, 3) / 255
        normalized = (pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
        with torch.no_grad():
            answer = classifier.module(normalized.permute(2, 0, 1)[None]).argmax().item()
        right.append(classifier.architecture.class_names[answer] == file.parent.name)
    return 100 * sum(right) / len(right)


@pytest.fixture
def square_images(image_folder: Path) -> Path:
    """The images of `image_folder`, brought to the 36 pixels that the models resize to."""
    for file in image_folder.rglob("*.png"):
        Image.open(file).crop((0, 0, 36, 36)).save(file)
    return image_folder


@pytest.mark.usefixtures("one_thread")
class TestRunScore:
    def test_without_a_baseline_it_is_the_contests(
        self, square_images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        classifier = write_folder(small_classifier(NAMES), tmp_path / "model")
        expected = accuracy_by_hand(classifier, square_images)
        options = ScoreOptions(
            model=str(classifier.folder), data=str(square_images), runs=2, output=tmp_path / "results.json"
        )
        with caplog.at_level(logging.WARNING, "slimkit"):
            report = run_score(options)
        results = json.loads((tmp_path / "results.json").read_text())
        assert results["accuracy"] == pytest.approx(expected)
        assert results["images"] == 12
        assert results["model_size"] == (tmp_path / "model" / "compressed_resnet18.pth").stat().st_size / 2**20
        assert set(results["baseline"]["sources"].values()) == {"the contest's"}
        assert results["size_score"] == pytest.approx(50 / results["model_size"])
        assert results["latency_score"] == pytest.approx(10 / results["latency"])
        assert results["accuracy_score"] == pytest.approx(expected / 80)
        total = 0.3 * results["size_score"] + 0.3 * results["latency_score"] + 0.4 * results["accuracy_score"]
        assert results["total_score"] == pytest.approx(total)
        assert results["min_accuracy"] == pytest.approx(76)  # 95 % of 80 %
        assert results["degenerate"] is True
        assert "degenerate" in caplog.text
        assert report.to_dict() == results

    def test_baseline_is_measured_from_what_the_model_came_from(self, square_images: Path, tmp_path: Path) -> None:
        baseline = write_folder(small_classifier(NAMES, width=16), tmp_path / "baseline")
        small = small_classifier(NAMES)
        architecture = record_baseline(small.architecture, baseline)
        write_folder(Classifier(small.module, architecture), tmp_path / "small")
        remember(tmp_path / "baseline", data=None)
        options = ScoreOptions(
            model=str(tmp_path / "small"),
            data=str(square_images),
            runs=2,
            baseline_accuracy=12.5,
            min_accuracy=0.0,
            output=tmp_path / "results.json",
        )
        results = run_score(options).to_dict()
        measured = f"measured: {tmp_path / 'baseline'}"
        expected = (tmp_path / "baseline" / "compressed_resnet18.pth").stat().st_size / 2**20
        assert results["baseline"]["sources"] == {"size": measured, "latency": measured, "accuracy": "given"}
        assert results["baseline"]["model_size"] == expected
        assert results["baseline"]["accuracy"] == 12.5
        assert results["baseline"]["latency_median"] > 0
        assert results["latency_score"] == pytest.approx(results["baseline"]["latency"] / results["latency"])
        assert results["degenerate"] is False

    def test_a_named_baseline_without_weights_is_refused(self, model_folder: Path, tmp_path: Path) -> None:
        options = ScoreOptions(model=str(model_folder), baseline="resnet18", output=tmp_path / "results.json")
        with pytest.raises(UsageError, match="random weights") as error:
            run_score(options)
        assert "--baseline-weights" in error.value.hint

    def test_nothing_is_overwritten(self, model_folder: Path, tmp_path: Path) -> None:
        output = tmp_path / "results.json"
        output.write_text("mine")
        with pytest.raises(FolderError, match="exists already"):
            run_score(ScoreOptions(model=str(model_folder), output=output))
        assert output.read_text() == "mine"

    def test_named_model_with_weights_is_scored(self, square_images: Path, tmp_path: Path) -> None:
        torch.manual_seed(0)
        weights = tmp_path / "weights.pth"
        torch.save(small_classifier(("ant", "bee", "cat"), width=32).module.state_dict(), weights)
        options = ScoreOptions(
            model="slimresnet18",
            weights=weights,
            data=str(square_images),
            image_size=32,
            resize=36,
            runs=1,
            output=tmp_path / "results.json",
        )
        results = run_score(options).to_dict()
        assert results["accuracy"] == pytest.approx(
            accuracy_by_hand(small_classifier(("ant", "bee", "cat"), width=32), square_images)
        )
        assert results["model_size"] == pytest.approx(weights.stat().st_size / 2**20, rel=0.01)
        assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == ["images"]  # no folder stays behind


class TestVerify:
    @pytest.fixture(scope="class")
    def scored(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ScoreReport]:
        """Class folders, a model in them, and its results.json."""
        root = tmp_path_factory.mktemp("verify")
        write_images(root / "images")
        write_folder(small_classifier(), root / "model")
        given: dict[str, Any] = {"baseline_size": 1.0, "baseline_latency": 1.0, "baseline_accuracy": 50.0, "runs": 5}
        options = ScoreOptions(
            model=str(root / "model"), data=str(root / "images"), output=root / "results.json", threads=1, **given
        )
        return root, run_score(options)

    def test_what_can_not_change_holds_when_it_is_measured_again(self, scored: tuple[Path, ScoreReport]) -> None:
        root, _ = scored
        found = run_verify(ScoreOptions(verify=root / "results.json"))
        assert set(found.broken) <= {"latency (ms)"}  # a machine may be busier than before
        assert len(found.checks) == 8

    @pytest.mark.parametrize(
        ("change", "broken"),
        [
            ({"total_score": 99.0}, "total score, of the recorded figures"),
            ({"accuracy": 99.0, "total_score": 0.3 + 0.3 + 0.4 * 99 / 50}, "accuracy (%)"),
            ({"correct": 12, "images": 12, "accuracy": 100.0}, "accuracy (%)"),
            ({"model_size": 0.0001}, "size (MB)"),
            ({"latency": 1e-6}, "latency (ms)"),
            ({"sha256": {}}, "sha256 of the weights"),
        ],
    )
    def test_what_was_changed_is_found(
        self, change: dict[str, Any], broken: str, scored: tuple[Path, ScoreReport]
    ) -> None:
        root, report = scored
        recorded = json.loads((root / "results.json").read_text()) | change
        assert broken in [check.figure for check in checks_of(recorded, report) if not check.holds]

    def test_other_images_are_found(self, scored: tuple[Path, ScoreReport]) -> None:
        root, report = scored
        data = open_dataset(str(root / "images"), image_size=32)
        assert data.test.digest() == report.sha256["images"]
        assert data.test.subset(torch.arange(5)).digest() != report.sha256["images"]

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"options": {"runs": "x"}}', '{"options": {"odd": 1}}'])
    def test_what_is_no_results_json_is_named(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises((UsageError, DataError), match=r"odd\.json"):
            run_verify(ScoreOptions(verify=tmp_path / "odd.json"))
