"""`run_benchmark` of models that slimkit did not write: from outside, behind walls, like for like."""

from __future__ import annotations

import json
import time
from pathlib import Path

import onnx
import pytest
import torch
from conftest import small_classifier
from test_hostile_strangers import model
from test_strangers import needs_walls, submission

from slimkit.core import run_benchmark
from slimkit.core.errors import ModelError, UsageError
from slimkit.core.folder import write_folder
from slimkit.core.options import BenchmarkOptions
from slimkit.core.scoring.foreign import _remarks_on_cores
from slimkit.core.strangers.convention import Submission, is_foreign, read_submission
from slimkit.core.strangers.host import start
from slimkit.core.strangers.round_trips import start_round_trips
from slimkit.core.strangers.snapshot import snapshot
from slimkit.core.strangers.stated import stated_size
from slimkit.core.strangers.watch import computed_seconds

pytestmark = needs_walls
QUICK = {"restarts": 0, "min_seconds": 0.02, "backend": ("torch",), "threads": 1}


def pooling(file: Path) -> Path:
    """An ONNX file that answers an image of 32x32 by the means of its channels."""
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        onnx.helper.make_node("Flatten", ["pooled"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(*end) for end in (("x", 1, ["n", 3, 32, 32]), ("y", 1, ["n", 3]))]
    graph = onnx.helper.make_graph(nodes, "pooling", ends[:1], ends[1:])
    content = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(content.SerializeToString())
    return file


def test_a_stranger_takes_turns_with_ours(tmp_path: Path) -> None:
    theirs = pooling(tmp_path / "model.onnx")
    own = write_folder(small_classifier(("ant", "bee", "cat")), tmp_path / "own").folder
    output = tmp_path / "benchmark.json"
    report = run_benchmark(BenchmarkOptions(model=str(theirs), baseline=str(own), output=output, **QUICK))
    assert [(each.role, each.backend) for each in report.candidates] == [("model", "onnx"), ("baseline", "torch")]
    assert [each.agreement.agreement for each in report.candidates] == [100.0] * 2
    assert all(each.median.value > 0 and each.peak_memory > 10 and each.load_ms[0] > 0 for each in report.candidates)
    assert report.candidates[0].size == theirs.stat().st_size / 2**20
    assert set(report.walls) == {str(theirs)}
    assert json.loads(output.read_text())["from_outside"]


@pytest.mark.parametrize(
    ("settings", "said"), [({}, "does not run unasked"), ({"run_code": True, "backend": ("compile",)}, "compiler")]
)
def test_what_can_not_be_timed_is_refused(settings: dict[str, object], said: str, tmp_path: Path) -> None:
    theirs, output = submission(tmp_path / "theirs"), tmp_path / "benchmark.json"
    with pytest.raises(UsageError, match=said):
        run_benchmark(BenchmarkOptions(model=str(theirs), image_size=32, output=output, **(QUICK | settings)))
    assert not output.exists()


BY_COUNT = """
seen, net = [0], nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
def answer(x):
    seen[0] += len(x)
    return net(x) if seen[0] <= 64 else torch.eye(3)[[0] * len(x)]
"""


def test_answers_that_change_once_it_is_timed_are_found_out(tmp_path: Path) -> None:
    folder = submission(tmp_path / "theirs", model("return answer(x)", head=BY_COUNT))
    images = torch.randn(64, 3, 8, 8)
    with start_round_trips(start(read_submission(folder), threads=1), images, 1, images.mean((2, 3)).argmax(1)) as each:
        each.answer()
        each.ask("time_runs", warmup=0, runs=64)
        with pytest.raises(ModelError, match="otherwise when it is timed"):
            each.ask("time_runs", warmup=0, runs=64)


SPINS = """
def spin():
    while True: pass
threading.Thread(target=spin, daemon=True).start()
"""


def test_it_computes_nothing_while_others_have_their_turn(tmp_path: Path) -> None:
    folder = submission(tmp_path / "theirs", model("return x.mean((2, 3))", head=SPINS))
    with start(read_submission(folder), threads=1) as stranger:
        stranger.rest()
        time.sleep(0.1)  # it is stopped where its cores next look
        before = computed_seconds(stranger.process.pid)
        time.sleep(0.5)
        assert computed_seconds(stranger.process.pid) == before > 0
        stranger.wake()
        assert stranger.ask(torch.ones(2, 3, 8, 8))[0].shape == (2, 3)


def test_an_onnx_file_alone_is_a_model_whatever_lies_beside_it(tmp_path: Path) -> None:
    file = pooling(tmp_path / "model.onnx")
    (tmp_path / "secret.bin").write_bytes(bytes(2**20))
    assert is_foreign(file)
    submission = read_submission(file)
    assert (submission.kind, submission.needs_code) == ("onnx", False)
    assert stated_size(submission) == 32
    with snapshot(submission) as copy:
        assert [each.name for each in copy.folder.iterdir()] == ["model.onnx"]
        assert copy.size == file.stat().st_size
        assert copy.weights.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("content", [b"", b"no protobuf", bytes(9)])
def test_no_size_is_read_of_what_is_no_onnx(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert stated_size(Submission(tmp_path, tmp_path / "model.onnx", "onnx", {})) is None


def test_more_cores_than_threads_are_told() -> None:
    assert _remarks_on_cores(1.1, 1) == ()
    assert "1.9 cores busy while it was timed; it was given 1 thread." in _remarks_on_cores(1.9, 1)[0]
