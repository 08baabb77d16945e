"""What a measurement ran on: versions, CPU, instruction sets, threads. For reports, and to paste into a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

import slimkit
from slimkit.core.load import allowed_processors
from slimkit.standalone.model import cpu_arithmetic

PACKAGES = ("torchvision", "onnx", "onnxruntime")
# as the Linux kernel spells them, and as we do; the ones that decide how fast int8 and bfloat16 are
INSTRUCTION_SETS = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx_vnni": "avx_vnni",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
}
CPUINFO = Path("/proc/cpuinfo")
PROCESSORS = Path("/sys/devices/system/cpu")


def describe_environment() -> dict[str, Any]:
    """Versions, operating system, CPU and accelerators, as plain JSON values; None where it can't be found out."""
    processors = parse_cpuinfo(CPUINFO.read_text(encoding="utf-8", errors="replace")) if CPUINFO.exists() else []
    return {
        # torch's own word for its version names the build too: 2.13.0+cpu
        "versions": {"slimkit": slimkit.__version__, "python": platform.python_version(), "torch": torch.__version__}
        | {name: _version(name) for name in PACKAGES},
        "os": platform.platform(),
        "cpu": describe_cpu(processors),
        "torch_threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "int8_kernels": int8_kernels(),
        "int8_sums_saturate": cpu_arithmetic().saturates,
        "cuda_devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def describe_cpu(processors: list[dict[str, str]]) -> dict[str, Any]:
    """Name, cores and instruction sets of this machine's CPU, from the entries of /proc/cpuinfo where there are any."""
    first = processors[0] if processors else {}
    return {
        "model": first.get("model name") or platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "physical_cores": physical_cores(processors),
        "logical_cores": os.cpu_count(),
        "usable_cores": len(allowed_processors()),
        "governor": governor(),
        "instruction_sets": instruction_sets(processors),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }


def parse_cpuinfo(text: str) -> list[dict[str, str]]:
    """The entries of /proc/cpuinfo, one per logical processor."""
    blocks = (block.splitlines() for block in text.split("\n\n"))
    entries = [dict(_field(line) for line in lines if ":" in line) for lines in blocks]
    return [entry for entry in entries if "processor" in entry]


def physical_cores(processors: list[dict[str, str]]) -> int | None:
    """How many cores there are behind the logical processors; None where the kernel doesn't say (ARM)."""
    places = {(entry.get("physical id"), entry["core id"]) for entry in processors if "core id" in entry}
    return len(places) or None


def instruction_sets(processors: list[dict[str, str]]) -> list[str] | None:
    """Which of INSTRUCTION_SETS the CPU has; None without /proc/cpuinfo."""
    if not processors:
        return None
    flags = (processors[0].get("flags") or processors[0].get("Features") or "").split()
    return [ours for kernels, ours in INSTRUCTION_SETS.items() if kernels in flags]


def governor() -> str | None:
    """What sets the clock of the processors that we may use: performance, powersave, …; None where that is hidden."""
    files = [PROCESSORS / f"cpu{number}" / "cpufreq" / "scaling_governor" for number in sorted(allowed_processors())]
    return ", ".join(dict.fromkeys(file.read_text().strip() for file in files if file.exists())) or None


def int8_kernels() -> list[str]:
    """The int8 convolutions that this build of torch has for the CPU."""
    engines = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
    plain = ["onednn.qconv2d_pointwise"] if hasattr(torch.ops.onednn, "qconv2d_pointwise") else []
    return [f"quantized ({engine})" for engine in engines] + plain


def _field(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
