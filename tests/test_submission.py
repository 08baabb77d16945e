"""A submission on its own: in an environment with what its requirements.txt names, and nothing of slimkit."""

import json
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from slimkit.core.data import open_dataset, write_image_folder
from slimkit.core.folder import read_folder
from slimkit.core.options import QuantizeOptions, ScoreOptions, TrainOptions
from slimkit.core.scoring.run import run_score
from slimkit.core.stages import run_quantize, run_train


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network, trained a little on digits100 and quantized."""
    root = tmp_path_factory.mktemp("submission")
    run_train(TrainOptions(model="slimresnet18", width=8, output=root / "train", epochs=1, image_size=32))
    run_quantize(QuantizeOptions(model=str(root / "train"), output=root / "submission", calibration_images=128))
    return root / "submission"


@pytest.fixture(scope="module")
def python(submission: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment that holds what the submission's requirements.txt asks for, and no more.

    The packages are those of this environment, linked: no index is asked.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    for line in (submission / "requirements.txt").read_text().splitlines():
        link_distribution(Requirement(line), packages)
    return folder / "bin" / "python"


def link_distribution(wanted: Requirement, packages: Path) -> None:
    """Link the installed distribution that meets `wanted`, and those that it needs, into a folder of packages."""
    distribution = metadata.distribution(wanted.name)
    assert wanted.specifier.contains(distribution.version, prereleases=True), wanted
    tops = {path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")}
    if all((packages / top).exists() for top in tops):
        return
    for top in tops:
        if not (packages / top).exists():
            (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    for need in map(Requirement, distribution.requires or ()):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            link_distribution(need, packages)


def test_the_panel_gets_the_accuracy_that_slimkit_gets(submission: Path, python: Path, tmp_path: Path) -> None:
    options = ScoreOptions(model=str(submission), baseline_size=50, baseline_latency=10, baseline_accuracy=80)
    ours = run_score(ScoreOptions(**vars(options) | {"output": tmp_path / "ours.json", "runs": 10})).to_dict()
    data = open_dataset("digits100", image_size=32)
    write_image_folder(data.test, data.class_names, tmp_path / "data" / "test")
    command = [
        *(python, submission / "model_loader.py", "--submission_dir", submission, "--data_dir", tmp_path / "data"),
        *("--baseline_size", "50", "--baseline_latency", "10", "--baseline_accuracy", "80"),
        *("--output_file", tmp_path / "results.json"),
    ]
    subprocess.run(list(map(str, command)), cwd="/", check=True)
    theirs = json.loads((tmp_path / "results.json").read_text())
    assert theirs["accuracy"] == pytest.approx(ours["accuracy"], abs=1e-9)
    assert theirs["images"] == ours["images"] == 2000
    assert theirs["model_size"] == ours["model_size"]
    parts = [theirs[f"{name}_score"] for name in ("size", "latency", "accuracy")]
    assert theirs["total_score"] == pytest.approx(0.3 * parts[0] + 0.3 * parts[1] + 0.4 * parts[2])


def test_the_logits_are_the_same_bit_for_bit(submission: Path, python: Path, tmp_path: Path) -> None:
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.save((images, read_folder(submission).module(images)), tmp_path / "ours.pt")
    code = (
        "import sys, torch\n"
        f"sys.path.insert(0, {str(submission)!r})\n"
        "from model_loader import load_model\n"
        f"images, ours = torch.load({str(tmp_path / 'ours.pt')!r})\n"
        f"model = load_model({str(submission)!r})\n"
        "assert not model.training\n"
        "assert torch.equal(model(images.to(next(model.parameters()).dtype)), ours)\n"
        "assert torch.equal(model(images.contiguous(memory_format=torch.channels_last)), ours)\n"
        "assert torch.equal(torch.cat([model(image[None]) for image in images]), ours)\n"
    )
    subprocess.run([python, "-c", code], cwd="/", check=True)


def test_the_environment_holds_no_slimkit(python: Path) -> None:
    for package in ("slimkit", "torchvision", "numpy", "typer"):
        assert subprocess.run([python, "-c", f"import {package}"], cwd="/", capture_output=True).returncode != 0
    assert python != Path(sys.executable)
