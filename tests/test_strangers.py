"""Folders that slimkit did not write: the good ones are measured, the hostile ones end as their own failure."""

import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import small_classifier
from test_cli_chain import write_images
from torch import nn

from slimkit.core.checks import check_options
from slimkit.core.errors import MissedError, ModelError, UsageError
from slimkit.core.folder import write_folder
from slimkit.core.options import ScoreOptions
from slimkit.core.scoring.board import WRITERS, run_board
from slimkit.core.scoring.outside import FROM_OUTSIDE
from slimkit.core.scoring.run import run_score
from slimkit.core.strangers import bubblewrap
from slimkit.core.strangers.convention import Submission, is_foreign, read_submission
from slimkit.core.strangers.host import start
from slimkit.core.strangers.stated import stated_size
from slimkit.core.strangers.walls import WALLS

needs_walls = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")
NETWORK = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 3)
    def forward(self, x):
        return self.head(self.stem(x).relu().mean((2, 3)))
"""
PLAIN = """
import torch
from net import Net
def load_model(path):
    made = Net()
    made.load_state_dict(torch.load(path))
    return made
"""


def network() -> nn.Module:
    namespace: dict[str, type[nn.Module]] = {}
    exec(NETWORK, namespace)
    torch.manual_seed(0)
    return namespace["Net"]().eval()


def submission(folder: Path, loader: str | None = PLAIN) -> Path:
    """A folder with the network's weights and, where it has one, a loader."""
    folder.mkdir(parents=True)
    torch.save(network().state_dict(), folder / "model.pth")
    (folder / "metadata.json").write_text('{"model_format": "pytorch"}')
    (folder / "net.py").write_text(NETWORK)
    if loader:
        (folder / "model_loader.py").write_text(textwrap.dedent(loader))
    return folder


def answers(folder: Path, **settings: int) -> torch.Tensor:
    with start(read_submission(folder), threads=1, **settings) as stranger:
        return stranger.ask(torch.ones(2, 3, 32, 32))[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path / "images"


def options(model: Path, data: Path, **settings: object) -> ScoreOptions:
    given = {"baseline_size": 1.0, "baseline_latency": 1.0, "baseline_accuracy": 50.0, "min_accuracy": 1.0, "runs": 5}
    given |= {"image_size": 32, "threads": 1, "data": str(data), "output": model.parent / "out.json", "force": True}
    return ScoreOptions(model=str(model), **(given | settings))  # type: ignore[arg-type]


# ---- what a folder holds ----


def test_each_kind_of_the_convention_is_told_without_running_it(tmp_path: Path) -> None:
    module, images = network(), torch.randn(2, 3, 32, 32)
    made = {kind: tmp_path / kind for kind in ("state dict", "torchscript", "pickle", "onnx", "loader")}
    for folder in made.values():
        folder.mkdir()
    torch.save(module.state_dict(), made["state dict"] / "model.pth")
    torch.jit.save(torch.jit.trace(module, images), made["torchscript"] / "model.pt")
    torch.save(nn.Sequential(nn.Linear(2, 2)), made["pickle"] / "model.pth")
    (made["onnx"] / "model.onnx").write_bytes(b"")
    torch.save(module.state_dict(), made["loader"] / "model.pth")
    (made["loader"] / "model_loader.py").write_text("raise SystemExit")
    for kind, folder in made.items():
        found = read_submission(folder)
        assert is_foreign(folder)
        assert found.kind == kind
        assert found.needs_code == (kind in ("torchscript", "pickle", "loader"))


def test_a_folder_of_slimkit_is_none(tmp_path: Path) -> None:
    write_folder(small_classifier(), tmp_path / "model")
    assert not is_foreign(tmp_path / "model")
    assert not is_foreign(tmp_path)


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ({"input_shape": [3, 64, 64]}, 64),
        ({"input_size": [1, 3, 48, 64]}, (48, 64)),
        ({"input_shape": []}, None),
        ({"input_shape": [64]}, None),
        ({"input_shape": [3, 10**9, 64]}, None),
        ({"input_shape": [3, 8192, 8192]}, None),  # a batch of these would fill the memory
        ({"input_shape": ["a", True]}, None),
        ({"input_shape": "64"}, None),
        ({}, None),
    ],
)
def test_the_size_that_metadata_say_is_taken_where_it_can_be(said: dict[str, object], size: object) -> None:
    folder = Path("theirs")
    assert stated_size(Submission(folder, folder / "model.pth", "state dict", said)) == size


# ---- what is run, and behind what ----


def test_code_is_not_run_unasked(tmp_path: Path, data: Path) -> None:
    folder = submission(tmp_path / "theirs", f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UsageError, match="does not run unasked"):
        run_score(options(folder, data))
    assert not (tmp_path / "ran").exists()


@needs_walls
def test_a_submission_is_scored_as_its_network_answers(tmp_path: Path, data: Path) -> None:
    folder = submission(tmp_path / "theirs")
    report = run_score(options(folder, data, run_code=True))
    assert {name: report.walls[name] for name in WALLS} == dict.fromkeys(WALLS, "")
    assert report.figures.size == pytest.approx((folder / "model.pth").stat().st_size / 2**20)
    from slimkit.core.data import open_dataset
    from slimkit.core.measure.accuracy import evaluate

    opened = open_dataset(str(data), image_size=32)
    assert report.accuracy.top1 == evaluate(network(), opened.test, opened.preprocessing).top1
    assert json.loads((tmp_path / "out.json").read_text())["walls"]["seccomp"] == ""


@needs_walls
def test_a_missing_wall_keeps_the_code_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "theirs" / "ran"
    folder = submission(tmp_path / "theirs", f"open({str(ran)!r}, 'w')")
    monkeypatch.setattr(bubblewrap, "why_absent", lambda: "it would hide the stub")
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "landlockpy.py").write_text("raise ImportError('no such package')")
    monkeypatch.syspath_prepend(str(stub))
    with pytest.raises(MissedError, match=r"landlock \(no such package\)"):
        answers(folder)
    assert not ran.exists()


@needs_walls
def test_a_board_ranks_the_good_and_lists_the_failures(tmp_path: Path, data: Path) -> None:
    write_folder(small_classifier(), tmp_path / "own")
    submission(tmp_path / "theirs")
    submission(tmp_path / "broken", "raise ValueError('gone')")
    names = [str(tmp_path / name) for name in ("own", "theirs", "broken", "nothing")]
    wanted = options(tmp_path / "own", data, run_code=True, output=tmp_path / "board.json", others=tuple(names[1:]))
    board = run_board(wanted)
    assert {report.model for report in board.ranked} == set(names[:2])
    assert all(FROM_OUTSIDE in report.remarks for report in board.ranked)  # like for like
    totals = [report.score.total for report in board.ranked]
    assert totals == sorted(totals, reverse=True)
    assert set(board.failures) == set(names[2:])
    assert "gone" in board.failures[names[2]]
    written = {suffix: write(board) for suffix, write in WRITERS.items()}
    assert json.loads(written[".json"])["failures"] == board.failures
    assert all(name in text for text in written.values() for name in names)
    alone = run_score(options(tmp_path / "theirs", data, run_code=True))
    (again,) = (report for report in board.ranked if report.model == names[1])
    assert alone.figures.accuracy == again.figures.accuracy
    assert alone.figures.size == again.figures.size


def test_a_board_on_which_every_model_failed_is_written_and_is_an_error(tmp_path: Path, data: Path) -> None:
    broken = submission(tmp_path / "broken", "raise ValueError('gone')")
    wanted = options(broken, data, output=tmp_path / "board.csv", others=(str(tmp_path / "nothing"),))
    with pytest.raises(ModelError, match="None of the 2 models"):
        run_board(wanted)
    assert "run by code of its own" in (tmp_path / "board.csv").read_text()


@pytest.mark.parametrize("option", ["details", "verify"])
def test_what_is_of_one_model_is_refused_with_several(option: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UsageError, match=f"--{option}"):
        check_options(ScoreOptions(others=("b",), **{option: tmp_path / "x.json"}))  # type: ignore[arg-type]
