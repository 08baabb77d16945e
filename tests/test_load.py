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
from slimkit.waiting import limit_spinning


@pytest.mark.parametrize("own", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"])
def test_what_the_user_decided_of_waiting_stays(own: str) -> None:
    environment = {own: "5"}
    limit_spinning(environment)
    assert environment == {own: "5"}


def test_threads_spin_a_little_unless_the_user_decided() -> None:
    environment: dict[str, str] = {}
    limit_spinning(environment)
    assert environment == {"GOMP_SPINCOUNT": "10000"}


def test_workers_are_told_how_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    assert worker_environment(2)["GOMP_SPINCOUNT"] == "10000"


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
    assert done.stdout.splitlines()[-1] == "10000"


def test_our_own_work_is_no_load_from_outside() -> None:
    outside = load.OutsideLoad()
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    cores = outside.cores()
    assert cores is None or cores <= (os.cpu_count() or 1)


def test_a_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(load, "QUOTA", quota)
    allowed = load.usable_cores()
    quota.write_text("50000 100000\n")
    assert load.usable_cores() == 0.5
    quota.write_text("max 100000\n")
    assert load.usable_cores() == allowed


@pytest.mark.parametrize(("outside", "threads"), [(0.0, 4), (0.4, 4), (1.2, 3), (3.0, 1), (9.0, 1)])
def test_threads_follow_the_load(outside: float, threads: int) -> None:
    assert load.threads_left(4, usable=4.0, outside=outside) == threads


def test_what_the_user_says_of_threads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert load.free_threads() == torch.get_num_threads()
