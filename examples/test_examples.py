"""The examples run as a user runs them, on digits100, and give what they promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent


def _run(script: str, *arguments: str, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("chain")
    return root, _run("whole_chain.py", str(root), cwd=root)


def _figures(output: str, name: str) -> tuple[float, float]:
    found = re.search(rf"^{re.escape(name)}\s+([\d.,]+)\s+([\d.,]+)$", output, re.MULTILINE)
    assert found, output
    return float(found[1].replace(",", "")), float(found[2].replace(",", ""))


def test_the_whole_chain_makes_the_network_small(chain: tuple[Path, str]) -> None:
    root, output = chain
    before, after = _figures(output, "size (MB)")
    assert before / after > 7
    before, after = _figures(output, "parameters")
    assert after / before == pytest.approx(0.7**2, abs=0.02)  # a layer loses 30 % of what it reads and of what it makes
    before, after = _figures(output, "accuracy (%)")
    assert after >= before - 1.5
    assert (root / "submission" / "compressed_resnet18.pth").is_file()


def test_a_folder_is_scored_by_the_formula(chain: tuple[Path, str]) -> None:
    root, _ = chain
    output = _run("score_folder.py", str(root / "submission"), cwd=root)
    score = {name: float(value) for name, value in re.findall(r"^(\w+_score)\s+([\d.]+)$", output, re.MULTILINE)}
    parts = 0.3 * score["size_score"] + 0.3 * score["latency_score"] + 0.4 * score["accuracy_score"]
    assert score["total_score"] == pytest.approx(parts, abs=0.002)
    size = (root / "submission" / "compressed_resnet18.pth").stat().st_size / 2**20
    assert score["size_score"] == pytest.approx(50 / size, abs=0.001)


def test_a_network_of_ones_own_is_cut_and_tuned(tmp_path: Path) -> None:
    output = _run("own_loop.py", cwd=tmp_path)
    before, after = map(int, re.search(r"parameters (\d+) -> (\d+)", output).groups())  # type: ignore[union-attr]
    assert 0.4 < after / before < 0.8
    whole, _, tuned = map(float, re.search(r": ([\d.]+) %.*, ([\d.]+) %.*, ([\d.]+) %", output).groups())  # type: ignore[union-attr]
    assert tuned >= whole - 5.0
    in_int8 = float(re.search(r"in int8: ([\d.]+) %", output)[1])  # type: ignore[index]  # the script printed it
    assert in_int8 >= tuned - 3.0
    assert "answers 64 of 64 images" in output or "answers 63 of 64 images" in output
    assert (tmp_path / "int8" / "compressed_net.pth").is_file()
