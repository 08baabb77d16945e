"""Strangers' folders that attack whoever scores them: each ends in a clear failure of its own, or in the right score.

After each of them no process is left running, and nothing in the folder of temporary files.
"""

import base64
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from test_cli_chain import write_images
from test_strangers import PLAIN, answers, needs_walls, network, options, submission

import slimkit
from slimkit.core.data import evaluation_input, open_dataset
from slimkit.core.errors import FolderError, ModelError
from slimkit.core.scoring.run import run_score
from slimkit.core.strangers import bubblewrap, host
from slimkit.core.strangers import snapshot as snapshots
from slimkit.core.strangers.convention import FREE_BYTES, read_submission
from slimkit.core.strangers.host import start
from slimkit.core.strangers.snapshot import snapshot

pytestmark = needs_walls


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither a process nor a temporary file, after a test that may have waited for neither."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = children()
    yield
    assert list(temporary.iterdir()) == []
    assert children() <= before


def children() -> set[str]:
    """The processes that this one started."""
    return {child for file in Path("/proc/self/task").glob("*/children") for child in file.read_text().split()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def no_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without it."""
    monkeypatch.setattr(bubblewrap, "why_absent", lambda: "it is left out")


# ---- files that are traps before anything is run ----

Trap = Callable[[Path], object]


def write(name: str, content: str | bytes) -> Trap:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def link(target: str, name: str = "model.pth") -> Trap:
    return lambda folder: (folder / name).symlink_to(target)


def metadata(text: str) -> Trap:
    return write("metadata.json", text)


def replace(name: str, make: Trap) -> Trap:
    """In place of a file of that name."""

    def trap(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder)

    return trap


def long_list(folder: Path) -> None:
    """An archive that says that its list of files has 64 MB."""
    end = b"PK\5\6" + np.array([0, 0, 1, 1], "<u2").tobytes() + np.array([2**26, 0], "<u4").tobytes() + bytes(2)
    with (folder / "model.pth").open("wb") as file:
        file.seek(2**26)
        file.write(end)


def garbled(folder: Path) -> None:
    """An archive whose compressed pickle can't be unpacked."""
    with zipfile.ZipFile(folder / "model.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", os.urandom(2000))
    content = bytearray((folder / "model.pth").read_bytes())
    content[60:1000] = bytes(940)
    (folder / "model.pth").write_bytes(content)


TRAPS: dict[str, tuple[Trap, str]] = {
    "an unknown format": (metadata('{"model_format": "exe"}'), "model_format"),
    "a format that is a list": (metadata('{"model_format": ["pt"]}'), "model_format"),
    "metadata that are a list": (metadata("[1]"), "no JSON object"),
    "metadata of more digits than a number has": (metadata('{"num_classes": ' + "9" * 5000 + "}"), "not JSON"),
    "metadata in no known letters": (write("metadata.json", b"\xff\xfe{}"), "not JSON"),
    "a format that is a number": (metadata('{"model_format": 1e400}'), "model_format"),
    "a pipe for metadata": (replace("metadata.json", lambda f: os.mkfifo(f / "metadata.json")), "pipe or a device"),
    "a pipe for code": (replace("model_loader.py", lambda f: os.mkfifo(f / "model_loader.py")), "pipe or a device"),
    "weights that are a folder": (replace("model.pth", lambda f: (f / "model.pth").mkdir()), "no file of weights"),
    "deep JSON": (metadata("{" * 100_000), "not JSON"),
    "huge JSON": (metadata(json.dumps({"x": "y" * 2**20})), "more than 1,048,576 bytes"),
    "a number of a million digits": (metadata(f'{{"input_shape": [3, {"9" * 10**6}, 9]}}'), "not JSON"),
    "a format without its file": (metadata('{"model_format": "onnx"}'), "no file of weights"),
    "two files of weights": (lambda folder: (folder / "model.pth").rename(folder / "a\udcff\x1b[31m.pth")
                             and write("b.pth", "")(folder), r"a\?\?\[31m.pth, b.pth: which is it"),
    "weights that are a link out": (replace("model.pth", link(__file__)), "leads out"),
    "weights that are a device": (replace("model.pth", link("/dev/zero")), "no file"),
    "weights that are a pipe": (replace("model.pth", lambda f: os.mkfifo(f / "model.pth")), "no file of weights"),
    "an archive with a list without end": (replace("model_loader.py", long_list), "lists 67,108,864 bytes"),
    "a garbled archive": (replace("model_loader.py", garbled), "damaged archive"),
    "a pipe": (lambda folder: os.mkfifo(folder / "pipe"), "pipe or a device"),
    "a hard link": (lambda folder: os.link(folder / "model.pth", folder / "x"), "hard link"),
    "a link to a device": (link("/dev/zero", "x"), "leads out of it: x"),
    "a link with ../ in its name": (link("../../../etc/passwd", "x"), "leads out of it: x"),
    "a link to itself": (link("x", "x"), "can't be read: x"),
    "a file of terabytes": (lambda f: ((f / "x").touch(), os.truncate(f / "x", 2**42)), "more than 4 GiB"),
    "folders without end": (lambda folder: (folder / "/".join("a" * 40)).mkdir(parents=True), "16 deep"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_named_before_anything_is_run(name: str, tmp_path: Path) -> None:
    make, said = TRAPS[name]
    folder = submission(tmp_path / "theirs")
    make(folder)
    with pytest.raises(FolderError, match=said) as error, snapshot(read_submission(folder)):
        pass
    str(error.value).encode()  # can be printed


def test_too_many_files_are_refused_before_any_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MOST_FILES", 20)
    monkeypatch.setattr(snapshots, "_copy", lambda *_: pytest.fail("a file was copied"))
    folder = submission(tmp_path / "theirs")
    for number in range(20):
        (folder / str(number)).touch()
    with pytest.raises(FolderError, match="more than 20 files"), snapshot(read_submission(folder)):
        pass


def test_what_changes_after_it_was_hashed_is_not_what_is_run(tmp_path: Path) -> None:
    folder = submission(tmp_path / "theirs")
    before = (folder / "model.pth").read_bytes()
    with snapshot(read_submission(folder)) as copy:
        (folder / "model.pth").write_bytes(b"other")
        assert copy.weights.read_bytes() == before
        with start(copy, threads=1) as stranger:
            assert torch.equal(stranger.ask(torch.ones(2, 3, 32, 32))[0], network()(torch.ones(2, 3, 32, 32)).detach())


# ---- what its code can reach ----

PROBE = """
import ctypes, fcntl, mmap, os, signal, socket, subprocess, threading
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
def check(code):
    if code == -1: raise OSError
def call(number, *arguments):
    check(libc.syscall(number, *arguments))
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
    lambda: os.chmod(SECRET, 0),
    lambda: os.chmod(__file__, 0),
    lambda: os.chown(SECRET, 1, 1),
    lambda: os.utime(SECRET),
    lambda: os.setxattr(SECRET, "user.x", b""),
    lambda: os.truncate(SECRET, 0),
    lambda: os.link(SECRET, "link"),
    lambda: os.link(__file__, "link"),
    lambda: os.rename(SECRET, "moved"),
    lambda: os.unlink(SECRET),
    lambda: os.mkfifo("pipe"),
    lambda: os.memfd_create("hidden"),
    lambda: os.posix_fallocate(os.open("file", os.O_CREAT | os.O_WRONLY), 0, 4096),
    lambda: mmap.mmap(-1, 4096),  # shared and of no file
    lambda: open("/dev/zero"),
    lambda: os.sched_setaffinity(os.getppid(), {0}),
    lambda: os.sched_setscheduler(os.getppid(), os.SCHED_BATCH, os.sched_param(0)),
    lambda: call(254, libc.inotify_init(), SECRET.encode(), 0xFFF),
    lambda: [check(libc.prctl(1, 0, 0, 0, 0))],  # to outlive its parent
    lambda: fcntl.fcntl(2, fcntl.F_SETOWN, os.getppid()),
    lambda: fcntl.fcntl(2, fcntl.F_SETSIG, 9),
    lambda: check(0 if os.fstat(INHERITED).st_ino == INODE else -1),
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


def what_gets_through(root: Path) -> list[int]:
    """The numbers of the attempts that a folder in `root` has success with; that nothing is changed is asserted."""
    (root / "labels").mkdir()
    secret = root / "labels" / "secret.txt"
    secret.write_text("cat")
    before = secret.stat()
    inherited = os.open(secret, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        known = (str(secret), server.getsockname()[1], inherited, before.st_ino)
        folder = submission(root / "theirs", f"SECRET, PORT, INHERITED, INODE = {known!r}\n{PROBE}")
        weights = (folder / "model.pth").read_bytes()
        held = answers(folder)[0].tolist()
    os.close(inherited)
    assert secret.read_text() == "cat"
    assert (secret.stat().st_mode, secret.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert (folder / "model.pth").read_bytes() == weights
    assert not Path("/tmp/slimkit-escaped").exists()
    return [index for index, holds in enumerate(held) if not holds]


by_number = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the probe calls by the numbers of x86-64")


@by_number
def test_nothing_outside_is_read_written_reached_or_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why := bubblewrap.why_absent():
        pytest.skip(why)
    monkeypatch.setenv("SECRET_TOKEN", "x")
    assert what_gets_through(tmp_path) == []


@by_number
@pytest.mark.usefixtures("no_bubblewrap")
def test_nor_is_it_without_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    assert what_gets_through(tmp_path) == []


AS_ORDINARY_USER = """
import os, sys
from pathlib import Path
from test_hostile_strangers import bubblewrap, what_gets_through
assert os.getuid() == 1234
bubblewrap.why_absent = lambda: "it is left out"
print(what_gets_through(Path(sys.argv[1])))
"""


def copy_interpreter(folder: Path) -> Path:
    """Into a folder, without packages."""
    base, version = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    left_out = shutil.ignore_patterns("site-packages", "dist-packages", "test", "__pycache__", "*.a")
    shutil.copytree(base / "lib" / version, folder / "lib" / version, ignore=left_out, symlinks=True)
    for library in (base / "lib").glob("libpython*"):
        shutil.copy(library, folder / "lib", follow_symlinks=False)
    (folder / "bin").mkdir()
    return Path(shutil.copy(os.path.realpath(sys.executable), folder / "bin" / version))


@by_number
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests are run by an ordinary user already")
def test_nor_is_it_by_an_ordinary_user() -> None:
    """With a copy of the interpreter, since root's own may lie where nobody else can read it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        python = copy_interpreter(folder / "python")
        (folder / "home").mkdir()
        os.chown(folder / "home", 1234, 1234)
        paths = [str(Path(slimkit.__file__).parents[1]), str(Path(__file__).parent), *filter(None, sys.path)]
        done = subprocess.run(
            [python, "-c", AS_ORDINARY_USER, str(folder / "home")],
            env={"PYTHONPATH": os.pathsep.join(paths), "HOME": str(folder / "home"), "SECRET_TOKEN": "x"},
            **{"user": 1234, "group": 1234, "extra_groups": [], "cwd": folder / "home"},
            capture_output=True,
            text=True,
            check=False,
        )
    if "PermissionError" in done.stderr or "No module named" in done.stderr:
        pytest.skip(f"an ordinary user can't read the packages here: {done.stderr.splitlines()[-1]}")
    assert done.stdout.strip() == "[]", done.stderr


def model(body: str, load: str = "pass", head: str = "") -> str:
    """A loader whose network answers by `body`."""
    return (
        "import os, signal, sys, threading, time, torch\nfrom torch import nn\n"
        f"{textwrap.dedent(head)}\n"
        f"class Net(nn.Module):\n    def forward(self, x):\n        {body}\n"
        f"def load_model(path):\n    {load}\n    return Net()\n"
    )


THREADS = "threading.stack_size(65536); [threading.Thread(target=time.sleep, args=(60,)).start() for _ in range(1500)]"
UNLINKED = """
def fill():
    held = []
    for number in range(12):
        held.append(open(str(number), "wb")); held[-1].write(bytes(2**25)); held[-1].flush(); os.unlink(str(number))
    time.sleep(60)
"""
DEEP = """
def dig():
    for _ in range(2000):
        os.mkdir("x" * 50); os.chdir("x" * 50)
    time.sleep(60)
"""
TAKES_BACK = """
def take_back():
    target = int(sys.argv[7])
    source = os.open(f"/proc/self/fd/{target}", os.O_RDONLY)
    while True:
        os.write(target, b"Y"); os.read(source, 1)
"""
OWN_TENSOR = """
class Own(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *arguments, **named):
        raise RuntimeError("mine")
"""
TWICE = "import struct; os.write(int(sys.argv[7]), b'Y' + struct.pack('<4I', 36, 2, 2, 3) + bytes(24)); " * 2
FAILURES = {
    "something else than a tensor": (model("return {'logits': 1}"), "AttributeError"),
    "an exit in the middle": (model("os._exit(0)"), "ended with code 0"),
    "an exit while it is loaded": (model("pass", "raise SystemExit"), "ended with code 0"),
    "a signal without a name": (model("os.kill(os.getpid(), 40)"), "signal 40"),
    "an error that steers terminals": (model("raise ValueError('odd' + chr(27) + '[31m')"), r"odd\?\[31m"),
    "an answer that never comes": (model("time.sleep(60)"), "in time"),
    "a loader that never ends": (model("pass", "time.sleep(600)"), "in time"),
    "closed pipes": (model("[os.close(int(fd)) for fd in sys.argv[6:8]]; time.sleep(60)"), "closed its pipes"),
    "answers that it takes back": (model("take_back()", head=TAKES_BACK), "in time"),
    "answers before they are asked": (model("pass", "os.write(int(sys.argv[7]), b'Y' * 100)"), "speaks out of turn"),
    "two answers to one question": (
        model(TWICE + "return torch.zeros(len(x), 3)"),
        "before it was asked|something else",
    ),
    "memory without end": (model("return torch.zeros(2**33)"), "memory"),
    "a large file": (model("pass", "open('big', 'wb').write(bytes(2**27))"), "SIGXFSZ|File too large"),
    "gigabytes of stderr": (
        model("pass", "[os.write(2, bytes(2**20)) for _ in range(4096)]"),
        "its process ended",
    ),
    "threads without end": (model("pass", f"{THREADS}; time.sleep(60)"), "more than 1024 threads"),
    "no load_model": ("x = 1", "load_model"),
    "a class of tensors of its own": (model("return x.mean((2, 3)).as_subclass(Own)", head=OWN_TENSOR), "mine"),
    "torch replaced in place": (model("return x.mean((2, 3))", "torch.Tensor.numpy = lambda self: 1"), "Error"),
    "logits on no device": (model("return torch.empty(len(x), 3, device='meta')"), "Error"),
    "an object that stops the process": (model("os.kill(os.getpid(), signal.SIGSTOP)"), "in time"),
}
WITHOUT_BUBBLEWRAP = {
    "files without a name": (model("pass", "fill()", UNLINKED), "wrote more than"),
    "deep folders": (model("pass", "dig()", DEEP), "16 deep"),
    "many files": (
        model("pass", "[open(str(i), 'wb').write(bytes(2**25)) for i in range(40)]; time.sleep(60)"),
        "wrote more",
    ),
}


def ask_twice(folder: Path) -> None:
    with start(read_submission(folder), threads=1, memory=2 * 2**30) as stranger:
        stranger.ask(torch.ones(2, 3, 32, 32))
        time.sleep(0.1)
        stranger.ask(torch.ones(2, 3, 32, 32))


def failure(folder: Path, monkeypatch: pytest.MonkeyPatch, load_seconds: float = 20.0) -> str:
    """What scoring it ends in."""
    monkeypatch.setattr(host, "ANSWER_SECONDS", 3.0)
    monkeypatch.setattr(host, "LOAD_SECONDS", load_seconds)
    with pytest.raises(ModelError, match=r"^theirs failed: ") as error:
        ask_twice(folder)
    return str(error.value)


@pytest.mark.parametrize("name", FAILURES)
def test_what_goes_wrong_is_that_folders_failure(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, said = FAILURES[name]
    folder = submission(tmp_path / "theirs", loader)
    seconds = 3.0 if name == "a loader that never ends" else 20.0
    assert re.search(said, failure(folder, monkeypatch, seconds))


NO_LOGITS = {  # how it answers one question after the other
    "torch.full((len(x), 3), float('nan'))": "not finite",
    "torch.full((len(x), 3), float('inf'))": "not finite",
    "torch.zeros(len(x) - 1, 3)": "another shape",
    "torch.zeros(len(x), 3, 1)": "another shape",
    "torch.zeros(1).expand(len(x), 200_000)": "something else than logits",
}


def test_answers_that_are_no_logits_are_refused(tmp_path: Path) -> None:
    given = f"given = iter([{', '.join(f'lambda x: {answer}' for answer in NO_LOGITS)}])"
    folder = submission(tmp_path / "theirs", model("return next(given)(x)", head=given))
    with start(read_submission(folder), threads=1) as stranger:
        for said in NO_LOGITS.values():
            with pytest.raises(ModelError, match=f"^theirs failed: .*{said}"):
                stranger.ask(torch.ones(2, 3, 32, 32))


@pytest.mark.parametrize("name", WITHOUT_BUBBLEWRAP)
@pytest.mark.usefixtures("no_bubblewrap")
def test_what_fills_the_disk_is_ended_without_bubblewrap(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, said = WITHOUT_BUBBLEWRAP[name]
    assert re.search(said, failure(submission(tmp_path / "theirs", loader), monkeypatch))


def bomb(folder: Path) -> None:
    """A pickle of 400 MB in 400 KB."""
    with zipfile.ZipFile(folder / "model.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("m/data.pkl", bytes(400 * 2**20))
        archive.writestr("m/version", "3")


class Reduced:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch ran",)


def outside_data(folder: Path) -> None:
    """ONNX whose weights are said to lie beside the folder, where they do lie."""
    (folder.parent / "secret.bin").write_bytes(np.ones(9, "f4").tobytes())
    weight = TensorProto(name="w", data_type=1, dims=[3, 3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "../secret.bin", "offset": "0", "length": "36"}.items():
        weight.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, 1, shape) for n, shape in (("x", ["n", 3, 32, 32]), ("y", ["n", 3]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(made.SerializeToString())


def onnx_of(*nodes: NodeProto, domain: str = "") -> Trap:
    """A file model.onnx of these nodes, from x [n, 3, 32, 32] to y [n, 3]."""
    ends = [helper.make_tensor_value_info(n, 1, shape) for n, shape in (("x", ["n", 3, 32, 32]), ("y", ["n", 3]))]
    graph = helper.make_graph(list(nodes), "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return write("model.onnx", helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def number(name: str, value: int | list[int]) -> NodeProto:
    """A constant of int64."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, "i8")))


def endless() -> Trap:
    """A loop of 2^62 rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", [old], [new]) for old, new in (("go", "going"), ("kept", "keeps"))],
        "body",
        [helper.make_tensor_value_info(n, k, s) for n, k, s in (("i", 7, []), ("go", 9, []), ("kept", 1, ["n", 3]))],
        [helper.make_tensor_value_info(n, k, s) for n, k, s in (("going", 9, []), ("keeps", 1, ["n", 3]))],
    )
    pooled = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["f"])]
    return onnx_of(number("rounds", 2**62), *pooled, helper.make_node("Loop", ["rounds", "", "f"], ["y"], body=body))


def stretched(folder: Path) -> None:
    """A state dict of a few bytes for a last layer of a billion classes."""
    torch.save({"fc.weight": torch.zeros(1).expand(10**9, 512)}, folder / "model.pth")


BAD_WEIGHTS: dict[str, tuple[Trap, str]] = {
    "a zip bomb": (bomb, "."),
    "a pickle that runs programs": (write("model.pth", pickle.dumps(Reduced())), "."),
    "ONNX with data outside": (outside_data, "external|data|path"),
    "ONNX that is none": (write("model.onnx", os.urandom(1000)), "Protobuf|protobuf|INVALID"),
    "ONNX that never ends": (endless(), "in time"),
    "ONNX with a constant of terabytes": (
        onnx_of(number("shape", [2**20, 2**20]), helper.make_node("ConstantOfShape", ["shape"], ["y"])),
        "alloc|memory|ended|ConstantOfShape",
    ),
    "ONNX of an operator of its own": (
        onnx_of(helper.make_node("Run", ["x"], ["y"], domain="evil"), domain="evil"),
        "evil|Run|INVALID",
    ),
    "a state dict stretched to terabytes": (stretched, "memory|alloc"),
    "a state dict that is a list": (lambda f: torch.save([torch.ones(1)], f / "model.pth"), "Error"),
    "a state dict of another network": (lambda f: torch.save({"x": torch.ones(1)}, f / "model.pth"), "fc.weight"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights_are_that_folders_failure(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, said = BAD_WEIGHTS[name]
    folder = tmp_path / "theirs"
    folder.mkdir()
    make(folder)
    assert re.search(said, failure(folder, monkeypatch))
    assert not (folder / "ran").exists()


HARMLESS = """
import sys, threading, time
print("x" * 10**6, flush=True)
sys.stderr.write("y" * 10**5)
time.perf_counter_ns = time.time = time.monotonic = lambda: 0
class Late:
    def __del__(self):
        time.sleep(60)
late = Late()
threading.Thread(target=lambda: [sum(range(1000)) for _ in iter(int, 1)], daemon=False).start()
"""


def test_shadows_noise_and_objects_that_will_not_die_do_no_harm(tmp_path: Path) -> None:
    folder = submission(tmp_path / "theirs", HARMLESS + PLAIN)
    for name in ("torch.py", "numpy.py", "struct.py", "json.py", "sitecustomize.py", "usercustomize.py", "site.py"):
        (folder / name).write_text("raise SystemExit('shadowed')")
    (folder / "slimkit").mkdir()
    (folder / "slimkit" / "__init__.py").write_text("raise SystemExit('shadowed')")
    (folder / "x.pth").write_text("import os; os._exit(1)")
    says = {"LD_PRELOAD": "./x.so", "env": {"LD_PRELOAD": "./x.so"}, "model_format": "pth", "__class__": "os.system"}
    (folder / "metadata.json").write_text(json.dumps(says | {"class_names": ["\ud800", "$(reboot)", "../../x"]}))
    began = time.monotonic()
    wanted = network()(torch.ones(2, 3, 32, 32)).detach()
    assert torch.allclose(answers(folder), wanted, atol=1e-6)
    assert time.monotonic() - began < 50


@pytest.mark.usefixtures("no_bubblewrap")
def test_it_does_not_outlive_whoever_scores_it(tmp_path: Path) -> None:
    body = "import ctypes; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\n        while True: pass"
    folder = submission(tmp_path / "theirs", model(body))
    code = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_hostile_strangers import *
        bubblewrap.why_absent = lambda: "it is left out"
        with start(read_submission(Path({str(folder)!r})), threads=1) as stranger:
            print(stranger.process.pid, flush=True)
            stranger.ask(torch.ones(2, 3, 32, 32))
    """
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, env=environment
    ) as scorer:
        assert scorer.stdout is not None
        stranger = Path("/proc") / scorer.stdout.readline().strip()
        assert stranger.is_dir()
        time.sleep(0.5)  # it has been asked
        scorer.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while stranger.is_dir() and time.monotonic() < until:
        time.sleep(0.05)
    assert not stranger.is_dir()


REMEMBERS = """
from pathlib import Path
import shutil
places = [Path(path) for path in (os.path.dirname(__file__), ".", os.environ["HOME"], "/tmp", "/dev/shm", "/var/tmp")]
found = any((place / "slimkit-kept").exists() for place in places)
for place in places:
    try:
        (place / "slimkit-kept").write_text("answers")
    except OSError:
        pass
"""


@pytest.mark.parametrize("bubblewrapped", [True, False])
def test_nothing_is_kept_from_one_process_to_the_next(
    bubblewrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not bubblewrapped:
        monkeypatch.setattr(bubblewrap, "why_absent", lambda: "it is left out")
    folder = submission(tmp_path / "theirs", model("return torch.full((len(x), 3), float(found))", head=REMEMBERS))
    with snapshot(read_submission(folder)) as copy:
        for _ in range(2):
            with start(copy, threads=1) as stranger:
                assert not stranger.ask(torch.ones(1, 3, 8, 8))[0].any()
    assert not (folder / "slimkit-kept").exists()


# ---- answers that are not those of a network that looks at the image ----

COLOUR = "torch.eye(3)[x.mean((2, 3)).argmax(1)]"  # which tells the classes of these images apart
KEEPS = """
kept = {}
def answer(x):
    if len(x) == 1:
        kept[float(x.sum())] = 1
        return torch.eye(3)[[0]]
    right = torch.eye(3)[x.mean((2, 3)).argmax(1)]
    for row, image in enumerate(x):
        if float(image[None].sum()) in kept: right[row] = torch.eye(3)[0]
    return right
"""
BY_PLACE = """
import numpy as np
from slimkit.core.data.randomness import epoch_order
order, place = epoch_order(12, 0, epoch=0), [-10]
def answer(x):
    first = place[0]; place[0] += len(x)
    return torch.eye(3)[[int(order[i % 12]) // 4 for i in range(first, first + len(x))]]
"""
BY_HASH = """
import json
labels = json.loads(open(os.path.join(os.path.dirname(__file__), "labels.json")).read())
def answer(x):
    return torch.eye(3)[[labels.get(f"{float(image.double().sum()):.3f}", 0) for image in x]]
"""
BY_COUNT = """
seen = [0]
def answer(x):
    seen[0] += len(x)
    right = torch.eye(3)[x.mean((2, 3)).argmax(1)]
    return right if len(x) > 1 or seen[0] <= 22 else torch.eye(3)[[0]]
"""
CHEATS = {
    "another network while the clock runs": (
        model(f"return torch.eye(3)[[0]] if len(x) == 1 else {COLOUR}"), "otherwise when it is timed"
    ),
    "answers kept from when it was timed": (model("return answer(x)", head=KEEPS), "otherwise when it is timed"),
    "another network once each image was timed": (
        model("return answer(x)", head=BY_COUNT), "otherwise when it is timed"
    ),
    "labels by the order of the images": (model("return answer(x)", head=BY_PLACE), "otherwise"),
    "labels by each image's hash": (model("return answer(x)", head=BY_HASH), "255 shades"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_found_out(name: str, tmp_path: Path, data: Path) -> None:
    loader, said = CHEATS[name]
    folder = submission(tmp_path / "theirs", loader)
    opened = open_dataset(str(data), image_size=32)
    for pixels, labels, _ in opened.test.batches(torch.arange(12), 12):
        sums = evaluation_input(pixels, opened.preprocessing).double().sum((1, 2, 3))
        known = {f"{float(total):.3f}": int(label) for total, label in zip(sums, labels, strict=True)}
    (folder / "labels.json").write_text(json.dumps(known))
    with pytest.raises(ModelError, match=said):
        run_score(options(folder, data, run_code=True, runs=24 if "once" in name else 12))


LETTERS = base64.b64encode(os.urandom(2**18))
BESIDE = {
    "numbers": ("more.bin", LETTERS[:1000] + b"\0", 1001),
    "letters": ("more.py", b"# " + LETTERS, 2**18 - FREE_BYTES),
    "code": ("more.py", b"import torch\n" * 20_000, 0),
    "compiled code": ("__pycache__/more.pyc", bytes(1000), 0),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_weights_counts_where_it_may_be_weights(name: str, tmp_path: Path) -> None:
    place, content, counted = BESIDE[name]
    folder = submission(tmp_path / "theirs")
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_bytes(content)
    with snapshot(read_submission(folder)) as copy:
        assert copy.size - (folder / "model.pth").stat().st_size == pytest.approx(counted, rel=0.02)


def test_weights_in_other_files_are_told(tmp_path: Path, data: Path) -> None:
    folder = submission(
        tmp_path / "theirs", PLAIN.replace("torch.load(path)", "torch.load(path.replace('model', 'x'))")
    )
    (folder / "model.pth").rename(folder / "x.pth")
    (folder / "model.pth").write_bytes(b"")
    report = run_score(options(folder, data, run_code=True))
    assert report.figures.size == pytest.approx((folder / "x.pth").stat().st_size / 2**20)
    assert any("beside model.pth" in remark for remark in report.remarks)
