"""Cores that other programs leave free, and how threads wait for one another."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from slimkit.core import load
from slimkit.core.measure.processes import worker_environment
from slimkit.standalone import model_loader
from slimkit.waiting import SPIN_COUNT, limit_spinning


@pytest.mark.parametrize("own", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"])
def test_what_the_user_decided_of_waiting_stays(own: str) -> None:
    environment = {own: "5"}
    limit_spinning(environment)
    assert environment == {own: "5"}


def test_threads_spin_a_little_unless_the_user_decided() -> None:
    environment: dict[str, str] = {}
    limit_spinning(environment)
    assert environment == {"GOMP_SPINCOUNT": str(SPIN_COUNT)}


def test_workers_are_told_how_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    assert worker_environment(2)["GOMP_SPINCOUNT"] == str(SPIN_COUNT)


def test_the_command_line_says_it_before_torch_is_loaded() -> None:
    code = (
        "import os, sys\n"
        "from slimkit.cli.app import main\n"
        "assert 'torch' not in sys.modules\n"
        "main(['--version'])\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ['GOMP_SPINCOUNT'])\n"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(SPIN_COUNT)


def test_our_own_work_is_no_load_from_outside() -> None:
    outside = load.OutsideLoad()
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    cores = outside.cores()
    assert cores is None or cores <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/", {"cpu.max": "50000 100000"}),
        ("0::/slice/service", {"slice/cpu.max": "50000 100000", "slice/service/cpu.max": "max 100000"}),
        ("0::/seen/by/the/host/alone", {"cpu.max": "50000 100000"}),
        ("4:cpu,cpuacct:/box", {"cpu/box/cpu.cfs_quota_us": "50000", "cpu/box/cpu.cfs_period_us": "100000"}),
    ],
)
def test_a_quota_counts(groups: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text(f"3:cpuset:/\n{groups}\n")
    monkeypatch.setattr(load, "GROUP", membership)
    monkeypatch.setattr(load, "GROUPS", tmp_path / "groups")
    allowed = load.usable_cores()
    for name, text in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert load.usable_cores() == 0.5
    for file in (tmp_path / "groups").rglob("cpu.*"):
        file.write_text("-1\n" if "quota" in file.name else "max 100000\n" if file.name == "cpu.max" else "100000\n")
    assert load.usable_cores() == allowed


def test_processors_that_are_not_ours_are_no_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(load, "STAT", stat)
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda _: {1, 2}, raising=False)
    ticks = os.sysconf("SC_CLK_TCK")
    lines = ["cpu  0 0 0 0 0 0 0 0 0 0", *(f"cpu{number} 0 0 0 0 0 0 0 0 0 0" for number in range(4)), "intr 5"]
    stat.write_text("\n".join(lines))
    outside = load.OutsideLoad()
    lines[1] = lines[1].replace(" 0", f" {1000 * ticks}", 1)
    stat.write_text("\n".join(lines))
    assert outside.cores() == 0
    lines[2] = lines[2].replace(" 0", f" {1000 * ticks}", 1)
    stat.write_text("\n".join(lines))
    cores = outside.cores()
    assert cores is not None
    assert cores > 2


def test_stolen_time_is_told_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(load, "STAT", stat)
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda _: {0}, raising=False)
    stat.write_text("cpu0 5 0 0 9 0 0 0 7 0 0\n")
    outside = load.OutsideLoad()
    stat.write_text(f"cpu0 5 0 0 9 0 0 0 {7 + 1000 * os.sysconf('SC_CLK_TCK')} 0 0\n")
    strain = outside.strain()
    assert strain.stolen == pytest.approx(1000 / strain.seconds, rel=0.01)
    stat.unlink()
    assert outside.strain().stolen is None


def test_a_submission_waits_as_the_commands_do() -> None:
    """Its command line sets what ours does, before it loads torch."""
    assert f'os.environ["GOMP_SPINCOUNT"] = "{SPIN_COUNT}"' in Path(model_loader.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize(("usable", "threads"), [(1.5, 1), (0.5, 1), (2.5, 2), (8.0, 4)])
def test_no_thread_computes_on_half_a_core(usable: float, threads: int) -> None:
    assert load.threads_left(4, usable=usable, outside=0.0) == threads


@pytest.mark.parametrize(("outside", "threads"), [(0.0, 4), (0.4, 4), (1.2, 3), (3.0, 1), (9.0, 1)])
def test_threads_follow_the_load(outside: float, threads: int) -> None:
    assert load.threads_left(4, usable=4.0, outside=outside) == threads


def test_what_the_user_says_of_threads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert load.free_threads() == torch.get_num_threads()
