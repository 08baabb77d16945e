"""The description of the machine that a measurement ran on."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
import torch

import slimkit
from slimkit.core import environment
from slimkit.core.environment import describe_environment, instruction_sets, parse_cpuinfo, physical_cores

XEON = """\
processor\t: 0
model name\t: Some Xeon
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8

processor\t: 1
model name\t: Some Xeon
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8

processor\t: 2
model name\t: Some Xeon
physical id\t: 1
core id\t\t: 0
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd asimddp i8mm

processor\t: 1
Features\t: fp asimd asimddp i8mm

Hardware\t: a board
"""


def test_this_machine_is_described_in_plain_json() -> None:
    environment = describe_environment()
    assert json.loads(json.dumps(environment)) == environment
    assert environment["versions"]["slimkit"] == slimkit.__version__
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["versions"]["python"] == platform.python_version()
    assert environment["cpu"]["logical_cores"] == os.cpu_count()
    assert 1 <= environment["cpu"]["usable_cores"] <= environment["cpu"]["logical_cores"]
    assert environment["torch_threads"] == torch.get_num_threads()
    assert len(environment["cuda_devices"]) == torch.cuda.device_count()


def test_hyperthreads_share_a_core_and_sockets_do_not() -> None:
    processors = parse_cpuinfo(XEON)
    assert len(processors) == 3
    assert physical_cores(processors) == 2
    assert instruction_sets(processors) == ["avx2", "avx512f", "avx512_vnni", "amx_int8"]


def test_arm_names_its_features_and_not_its_cores() -> None:
    processors = parse_cpuinfo(ARM)
    assert len(processors) == 2
    assert physical_cores(processors) is None
    assert instruction_sets(processors) == ["neon", "dotprod", "i8mm"]


def test_without_cpuinfo_instruction_sets_are_unknown() -> None:
    assert instruction_sets([]) is None
    assert physical_cores([]) is None


def test_the_governor_is_that_of_the_processors_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "PROCESSORS", tmp_path)
    monkeypatch.setattr(environment, "allowed_processors", lambda: {0, 2})
    assert environment.governor() is None
    for number, name in enumerate(("powersave", "ondemand", "powersave")):
        file = tmp_path / f"cpu{number}" / "cpufreq" / "scaling_governor"
        file.parent.mkdir(parents=True)
        file.write_text(f"{name}\n")
    assert environment.governor() == "powersave"
