"""Folders that slimkit did not write: the good ones are measured, the hostile ones end as their own failure."""

import json
import os
import socket
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from conftest import small_classifier
from test_cli_chain import write_images
from torch import nn

from slimkit.core.errors import FolderError, MissedError, ModelError, UsageError
from slimkit.core.folder import write_folder
from slimkit.core.options import ScoreOptions
from slimkit.core.scoring.board import WRITERS, run_board
from slimkit.core.scoring.foreign import stated_size
from slimkit.core.scoring.run import run_score
from slimkit.core.strangers import host
from slimkit.core.strangers.convention import is_foreign, read_submission
from slimkit.core.strangers.host import start
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
    ("metadata", "said"),
    [
        ('{"model_format": "exe"}', "model_format"),
        ('{"model_format": ["pt"]}', "model_format"),
        ("[1]", "no JSON object"),
        ("{" * 100_000, "not JSON"),
        ('{"model_format": "onnx"}', "no file of weights"),
    ],
)
def test_odd_metadata_are_named(metadata: str, said: str, tmp_path: Path) -> None:
    folder = submission(tmp_path / "odd")
    (folder / "metadata.json").write_text(metadata)
    with pytest.raises(FolderError, match=said):
        read_submission(folder)


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ({"input_shape": [3, 64, 64]}, 64),
        ({"input_size": [1, 3, 48, 64]}, (48, 64)),
        ({"input_shape": []}, None),
        ({"input_shape": [64]}, None),
        ({"input_shape": [3, 10**9, 64]}, None),
        ({"input_shape": ["a", True]}, None),
        ({"input_shape": "64"}, None),
        ({}, None),
    ],
)
def test_the_size_that_metadata_say_is_taken_where_it_can_be(said: dict[str, object], size: object) -> None:
    assert stated_size(said) == size


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = submission(tmp_path / "odd")
    (folder / "model.pth").rename(tmp_path / "elsewhere.pth")
    (folder / "model.pth").symlink_to(tmp_path / "elsewhere.pth")
    with pytest.raises(FolderError, match="leads out"):
        read_submission(folder)


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
    assert report.walls == dict.fromkeys(WALLS, "")
    assert report.figures.size == pytest.approx((folder / "model.pth").stat().st_size / 2**20)
    from slimkit.core.data import open_dataset
    from slimkit.core.measure.accuracy import evaluate

    opened = open_dataset(str(data), image_size=32)
    assert report.accuracy.top1 == evaluate(network(), opened.test, opened.preprocessing).top1
    assert json.loads((tmp_path / "out.json").read_text())["walls"]["seccomp"] == ""


PROBE = """
import ctypes, os, signal, socket, subprocess, threading
import torch
from torch import nn
def holds(attempt):
    try:
        attempt()
    except BaseException:
        return 1.0
    return 0.0
def write(path):
    open(path, "w").write("x")
def thread():
    t = threading.Thread(target=lambda: None); t.start(); t.join()
    raise ValueError  # threads are allowed
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) != -1: return
    raise OSError
attempts = [
    lambda: open(SECRET).read(),
    lambda: os.listdir(os.path.dirname(SECRET)),
    lambda: open(f"/proc/{os.getppid()}/environ", "rb").read(),
    lambda: open(f"/proc/{os.getppid()}/mem", "rb"),
    lambda: write(os.path.join(os.path.dirname(__file__), "model.pth")),
    lambda: write(SECRET),
    lambda: write("/tmp/slimkit-escaped"),
    lambda: os.symlink(SECRET, "link"),
    lambda: socket.socket(),
    lambda: socket.socketpair(),
    lambda: socket.create_connection(("127.0.0.1", PORT), timeout=1),
    lambda: os.fork(),
    lambda: subprocess.run(["/bin/true"], check=True),
    lambda: os.execv("/bin/true", ["true"]),
    lambda: os.kill(os.getppid(), signal.SIGKILL),
    lambda: os.kill(-1, signal.SIGKILL),
    lambda: os.killpg(os.getppid(), signal.SIGKILL),
    lambda: os.pidfd_open(os.getppid()),
    lambda: call(101, 16, os.getppid(), 0, 0),
    lambda: call(321, 0, 0, 0),
    lambda: call(165, 0, 0, 0, 0, 0),
    lambda: call(425, 8, 0),
    lambda: call(272, 0x10000000),
    lambda: call(29, 0, 4096, 0o1600),
    lambda: __import__("resource").setrlimit(7, (10000, 10000)),
    lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19),
    lambda: os.environ["SECRET_TOKEN"],
    lambda: os.fstat(INHERITED),
    thread,
]
class Probe(nn.Module):
    def __init__(self):
        super().__init__(); self.results = [holds(attempt) for attempt in attempts]
    def forward(self, x):
        return torch.tensor([self.results] * len(x))
def load_model(path):
    return Probe()
"""


@needs_walls
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the probe calls by the numbers of x86-64")
def test_nothing_outside_is_read_written_reached_or_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    (tmp_path / "labels").mkdir()
    secret = tmp_path / "labels" / "secret.txt"
    secret.write_text("cat")
    inherited = os.open(secret, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = f"SECRET, PORT, INHERITED = {str(secret)!r}, {server.getsockname()[1]}, {inherited}\n"
        folder = submission(tmp_path / "theirs", head + PROBE)
        before = (folder / "model.pth").read_bytes()
        held = answers(folder)[0].tolist()
    os.close(inherited)
    assert [index for index, holds in enumerate(held) if not holds] == []
    assert secret.read_text() == "cat"
    assert (folder / "model.pth").read_bytes() == before
    assert not Path("/tmp/slimkit-escaped").exists()


def model(body: str, load: str = "pass") -> str:
    """A loader whose network answers by `body`."""
    return (
        "import os, sys, time, torch\nfrom torch import nn\n"
        f"class Net(nn.Module):\n    def forward(self, x):\n        {body}\n"
        f"def load_model(path):\n    {load}\n    return Net()\n"
    )


@needs_walls
@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (model("return torch.full((len(x), 3), float('nan'))"), "not finite"),
        (model("return torch.zeros(len(x) - 1, 3)"), "another shape"),
        (model("os._exit(0)"), "ended with code 0"),
        (model("raise ValueError('odd' + chr(27) + '[31m')"), r"odd\?\[31m"),
        (model("time.sleep(60)"), "in time"),
        (model("return torch.zeros(2**33)"), "memory"),
        (model("pass", "open('big', 'wb').write(bytes(2**27))"), "SIGXFSZ|File too large"),
        (model("pass", "[open(str(i), 'wb').write(bytes(2**25)) for i in range(40)]; time.sleep(60)"), "wrote more"),
        (model("pass", "os.write(int(sys.argv[7]), b'Y' * 100)"), "speaks out of turn"),
        ("x = 1", "load_model"),
    ],
)
def test_a_bad_answer_is_that_folders_failure(
    loader: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "ANSWER_SECONDS", 3.0)
    monkeypatch.setattr(host, "LOAD_SECONDS", 20.0)
    with pytest.raises(ModelError, match=f"theirs failed: .*({said})"):
        answers(submission(tmp_path / "theirs", loader), memory=2 * 2**30)


@needs_walls
def test_noise_on_stdout_and_objects_that_will_not_die_do_no_harm(tmp_path: Path) -> None:
    body = "print('x' * 10**6, flush=True); sys.stderr.write('y' * 10**5); return torch.ones(len(x), 3)"
    loader = model(body) + "class Late:\n    def __del__(self):\n        time.sleep(60)\nlate = Late()\n"
    start_time = time.monotonic()
    assert answers(submission(tmp_path / "theirs", loader)).tolist() == [[1, 1, 1]] * 2
    assert time.monotonic() - start_time < 50


@needs_walls
def test_another_answer_while_the_clock_runs_is_found_out(tmp_path: Path, data: Path) -> None:
    body = "return torch.eye(3)[[0]] if len(x) == 1 else torch.eye(3)[x.mean((2, 3)).argmax(1)]"
    folder = submission(tmp_path / "theirs", model(body))
    with pytest.raises(ModelError, match="otherwise when it is timed"):
        run_score(options(folder, data, run_code=True, runs=12))


@needs_walls
def test_a_missing_wall_keeps_the_code_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "theirs" / "ran"
    folder = submission(tmp_path / "theirs", f"open({str(ran)!r}, 'w')")
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
