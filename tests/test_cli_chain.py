"""Every command on a small data set, one after the other in an empty folder, in every form of output."""

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from PIL import Image

from slimkit.cli.app import main

STAGES = {"train": "runs/train", "prune": "runs/prune", "distill": "runs/distill", "quantize": "submission"}
MEASURES = {"benchmark": "benchmark.json", "score": "results.json", "export": "model.onnx"}
SMALL = ("--batch-size", "8")
EXTRA = {
    # so long that BatchNorm's statistics are those of the data; int8 would amplify wrong ones
    "train": ["slimresnet18", "--width", "8", "--epochs", "12", *SMALL, "--data", "images", "--image-size", "32"],
    "distill": ["--epochs", "4", *SMALL],
    "benchmark": ["--restarts", "0", "--min-seconds", "0.02", "--backend", "torch"],
    "score": ["--runs", "3"],
}


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def slimkit(*arguments: str, cwd: Path) -> Result:
    """Run slimkit in this process, which has imported torch already."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return Result(code, out.getvalue(), err.getvalue())


Chain = tuple[Path, dict[str, Result]]


def write_images(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 120, (36, 36, 3), dtype=torch.uint8, generator=generator)
                pixels[..., label] += 120
                Image.fromarray(pixels.numpy()).save(folder / split / name / f"{index}.png")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """The folder that the whole chain was run in, and what each command gave; some in JSON, some quiet."""
    folder = tmp_path_factory.mktemp("chain")
    write_images(folder / "images")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # enough for this little, and other tests have the rest
    forms = {"prune": ["--json"], "distill": ["--quiet"], "benchmark": ["--json"], "export": ["-q"]}
    results = {
        name: slimkit(name, *EXTRA.get(name, []), *forms.get(name, []), cwd=folder) for name in (*STAGES, *MEASURES)
    }
    yield folder, results
    torch.set_num_threads(threads)


def test_commands_follow_one_another_with_no_argument(chain: Chain) -> None:
    folder, results = chain
    for name, result in results.items():
        assert result.returncode == 0, (name, result.stderr)
    for written in (*STAGES.values(), *MEASURES.values()):
        assert (folder / written).exists()


@pytest.mark.parametrize(("name", "written"), (STAGES | MEASURES).items())
def test_resolved_configuration_lies_beside_the_result(chain: Chain, name: str, written: str) -> None:
    values = yaml.safe_load((chain[0] / f"{written}.yaml").read_text())
    assert values["output"] == written
    if name == "train":
        assert (values["model"], values["width"], values["epochs"]) == ("slimresnet18", 8, 12)


@pytest.mark.parametrize("name", ["train", "quantize", "score"])
def test_human_form_is_plain_text_without_a_terminal(chain: Chain, name: str) -> None:
    result = chain[1][name]
    assert (STAGES | MEASURES)[name] in result.stdout.splitlines()[-1]
    for stream in (result.stdout, result.stderr):
        assert "\x1b" not in stream
        assert "\r" not in stream
        assert "…" not in stream


def test_json_form_is_one_object(chain: Chain) -> None:
    prune, benchmark = (json.loads(chain[1][name].stdout) for name in ("prune", "benchmark"))
    assert prune["output"] == "runs/prune"
    assert prune["figures"]["parameters"] > 0
    assert benchmark == json.loads((chain[0] / "benchmark.json").read_text())


def test_quiet_form_is_the_path(chain: Chain) -> None:
    assert (chain[1]["distill"].stdout, chain[1]["distill"].stderr) == ("runs/distill\n", "")
    assert chain[1]["export"].stdout == "model.onnx\n"


def test_nothing_is_overwritten_without_force(chain: Chain) -> None:
    weights = chain[0] / "runs/prune/compressed_resnet18.pth"
    before = weights.stat()
    refused = slimkit("prune", "--rate", "0.5", cwd=chain[0])
    assert refused.returncode == 1
    assert "runs/prune exists" in refused.stderr
    assert "--force" in refused.stderr
    assert weights.stat() == before


def columns_of(table: str) -> dict[str, dict[str, int]]:
    """For each layer, and the total, in a printed table: MACs and bytes."""
    lines = re.findall(r"^(\S+) .*? ([\d,]+) +([\d,]+)(?: +[a-z]+\d+)?\s*$", table, re.MULTILINE)
    return {
        name: dict(zip(("macs", "bytes"), (int(n.replace(",", "")) for n in numbers), strict=True))
        for name, *numbers in lines
    }


@pytest.mark.parametrize("folder", ["runs/prune", "submission"])
def test_inspected_columns_add_up_to_the_totals(chain: Chain, folder: str) -> None:
    shown = columns_of(slimkit("inspect", folder, cwd=chain[0]).stdout)
    total = shown.pop("total")
    architecture = json.loads(slimkit("inspect", folder, "--json", cwd=chain[0]).stdout)
    assert len(shown) == len(architecture["layers"])
    for layer in architecture["layers"]:
        assert (shown[layer["name"]]["macs"], shown[layer["name"]]["bytes"]) == (layer["macs"], layer["bytes"])
    assert total == {key: sum(row[key] for row in shown.values()) for key in total}


def test_inspected_json_is_the_architecture_and_what_was_verified(chain: Chain) -> None:
    shown = json.loads(slimkit("inspect", "--json", cwd=chain[0]).stdout)
    architecture = json.loads((chain[0] / "submission/trained_pruned_architecture.json").read_text())
    assert shown.pop("verified")
    assert shown.pop("figures") == json.loads((chain[0] / "submission/model_metadata.json").read_text())["figures"]
    assert shown == architecture


def in_terminal(*arguments: str, cwd: Path, columns: int) -> str:
    """What a command shows in a window of so many columns."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    environment |= {"TERM": "xterm", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "slimkit", *arguments]
    process = subprocess.Popen(command, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
    os.close(ours)
    assert process.wait() == 0
    return shown.decode()


def test_no_number_is_cut_in_a_narrow_terminal(chain: Chain) -> None:
    shown = in_terminal("inspect", "runs/prune", cwd=chain[0], columns=80)
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    layers = json.loads((chain[0] / "runs/prune/trained_pruned_architecture.json").read_text())["layers"]
    assert "…" not in plain
    for key in ("macs", "bytes"):
        assert f"{sum(layer[key] for layer in layers):,}" in plain


def test_a_terminal_sees_a_bar_with_the_time_left(chain: Chain) -> None:
    shown = in_terminal("prune", "-o", "runs/again", cwd=chain[0], columns=100)
    assert re.search(r"\d+/\d+.* [\d-]:[\d-]{2}:[\d-]{2}", re.sub(r"\x1b\[[\d;]*m", "", shown))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_leaves_the_last_whole_result(chain: Chain, number: signal.Signals, code: int) -> None:
    folder = chain[0]

    def results() -> dict[Path, int]:
        """When each file was written, but those of the training that is going on."""
        files = (path for path in folder.rglob("*") if path.is_file())
        files = (path for path in files if not re.search(r"distill\.(checkpoint|metrics)", str(path)))
        return {path: path.stat().st_mtime_ns for path in files}

    before = results()
    command = [sys.executable, "-m", "slimkit", "distill", "-f", "--epochs", "100000", "--json"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    assert process.stderr is not None
    while "epoch 2" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.splitlines()[-1].startswith("hint: ")
    assert set(json.loads(out)) == {"error", "hint"}
    assert results() == before
    assert list((folder / "runs/distill.checkpoint").iterdir())


def test_compress_goes_on_after_the_last_finished_stage(chain: Chain) -> None:
    folder = chain[0]
    flags = ["compress", "runs/train", "--data", "images", "--rate", "0.4", "--distill-epochs", "1", "-o", "small"]
    (folder / "recipe.yaml").write_text("score:\n  runs: 3\nprune:\n  rate: 0.2\n  round_to: none\n")
    first = slimkit(*flags, "-c", "recipe.yaml", "--json", cwd=folder)
    assert first.returncode == 0, first.stderr
    assert yaml.safe_load((folder / "small/runs/recipe.yaml").read_text())["prune"]["rate"] == 0.4
    again = slimkit(*flags, "-c", "recipe.yaml", cwd=folder)
    assert again.returncode == 0, again.stderr
    for stage in (*STAGES, "score"):
        assert f"{stage} is finished" in again.stderr
    for figure in ("parameters", "MACs", "size (MB)", "latency, median (ms)", "latency, p90 (ms)", "total score"):
        assert figure in again.stdout
        assert figure in json.loads(first.stdout)["figures"]
    assert "small/submission" in again.stdout.splitlines()[-1]
