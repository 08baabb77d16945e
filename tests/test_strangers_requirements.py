"""A stranger's requirements.txt: wheels are installed for its process alone, and whatever would run code is refused."""

import importlib.util
import zipfile
from pathlib import Path

import pytest
import torch
from test_strangers import needs_walls, submission

from slimkit.core.checks import check_options
from slimkit.core.errors import FolderError, ModelError, UsageError
from slimkit.core.options import ScoreOptions
from slimkit.core.strangers.convention import read_submission
from slimkit.core.strangers.host import start
from slimkit.core.strangers.requirements import installed, read_requirements

needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is not installed")
LOADER = """
import greeting, torch
from torch import nn
class Net(nn.Module):
    def forward(self, x):
        return torch.full((len(x), 3), greeting.VALUE)
def load_model(path):
    return Net()
"""


def wheel(folder: Path, traces: Path) -> Path:
    """One with a module, a dependency that is built by its own code, and lines that Python would run when it starts."""
    file = folder / "greeting-1.0-py3-none-any.whl"
    info = "greeting-1.0.dist-info"
    files = {
        "greeting.py": "VALUE = 7.0",
        "evil.pth": f"import pathlib; pathlib.Path({str(traces / 'pth')!r}).touch()",
        "sitecustomize.py": f"import pathlib; pathlib.Path({str(traces / 'sitecustomize')!r}).touch()",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\nRequires-Dist: e @ file://{traces}/e\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(name, content)
    return file


@needs_walls
@needs_pip
def test_a_wheel_in_the_folder_is_there_for_its_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder, traces = submission(tmp_path / "theirs", LOADER), tmp_path / "traces"
    (traces / "e").mkdir(parents=True)
    (traces / "e" / "setup.py").write_text(f"open({str(traces / 'setup')!r}, 'w')")
    wheel(folder, traces)
    (folder / "requirements.txt").write_text(
        "# ours\ntorch\nnumpy>=1 # here already\n./greeting-1.0-py3-none-any.whl\n"
    )
    theirs = read_submission(folder)
    with installed(theirs) as packages, start(theirs, threads=1, packages=packages) as stranger:
        assert stranger.ask(torch.ones(2, 3, 8, 8))[0].tolist() == [[7, 7, 7]] * 2
    assert [file.name for file in traces.iterdir()] == ["e"]
    assert not any(path.exists() for path in packages)
    assert importlib.util.find_spec("greeting") is None
    with pytest.raises(ModelError, match="greeting"), start(theirs, threads=1):
        pass


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://example.com",
        "-r ../other.txt",
        "-e .",
        "--find-links=/tmp",
        "x @ https://example.com/x-1.0-py3-none-any.whl",
        "https://example.com/x-1.0-py3-none-any.whl",
        "git+https://example.com/x.git",
        "file:///tmp/x-1.0-py3-none-any.whl",
        "../x-1.0-py3-none-any.whl",
        "/tmp/x-1.0-py3-none-any.whl",
        "./x-1.0.tar.gz",
        ".",
        "x --config-settings=a=b",
        "x \\",
    ],
)
def test_lines_that_lead_elsewhere_or_would_run_code_are_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "x-1.0-py3-none-any.whl").touch()
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "requirements.txt").write_text(f"torch\n{line}\n")
    with pytest.raises(FolderError, match=r"requirements.txt asks for"):
        read_requirements(folder)


@needs_pip
def test_what_no_index_has_is_that_folders_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = submission(tmp_path / "theirs")
    (folder / "requirements.txt").write_text("slimkit-has-no-such-package>=3")
    said = "theirs failed: its requirements can't be installed .*No matching distribution"
    with pytest.raises(ModelError, match=said) as error, installed(read_submission(folder)):
        pass
    assert "index" in error.value.hint


def test_installing_is_refused_where_no_code_is_run() -> None:
    with pytest.raises(UsageError, match="--install-requirements"):
        check_options(ScoreOptions(install_requirements=True))
