"""How long a small int8 network takes where other programs compute on the same cores.

    python benchmarks/busy_core.py submission [--seconds 10] [--stages]

OpenMP's threads spin while they wait for one another, in vain where one of them has lost its core. Each way of waiting
is timed alone, beside a program that keeps one core busy, and beside a training on two threads: medians and means in ms
at batch 1, each in a process of its own. "slimkit" is what its commands choose: the spin count of `slimkit/waiting.py`,
and as many threads as there are cores free when they start. --stages also times `slimkit prune` so, as a whole.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OWN = {"slimkit": {}}
WAYS: dict[str, dict[str, str]] = {
    "as torch comes (300,000 turns)": {"GOMP_SPINCOUNT": "300000"},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=2000": {"GOMP_SPINCOUNT": "2000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "1 thread": {"OMP_NUM_THREADS": "1"},
    **OWN,
}
BURNERS = {
    "quiet": "",
    "beside a busy core": "while True: pass",
    "beside a 2-thread job": """
import torch
torch.set_num_threads(2)
layers = torch.nn.Sequential(*[torch.nn.Conv2d(64, 64, 3, padding=1) for _ in range(4)])
images = torch.randn(16, 64, 32, 32)
while True:
    layers(images).sum().backward()
""",
}
TIMED = """
import json, sys, time
from slimkit.waiting import limit_spinning
import os
limit_spinning(os.environ)
import torch
from slimkit.core.load import free_threads
from slimkit.standalone.model_loader import load_model
from pathlib import Path
folder, seconds, own = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "slimkit"
if own:
    torch.set_num_threads(free_threads())
model = load_model(folder)
shape = json.loads((folder / "trained_pruned_architecture.json").read_text())["input_shape"]
image, times = torch.randn(1, *shape), []
with torch.inference_mode():
    for _ in range(20):
        model(image)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and len(times) < 5000:
        start = time.perf_counter()
        model(image)
        times.append(1000 * (time.perf_counter() - start))
print(json.dumps(times))
"""


@contextmanager
def burning(code: str) -> Iterator[None]:
    """Run `code` beside the block, on libgomp's own settings."""
    if not code:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", code], env=_environment({}))
    time.sleep(4)  # until it computes
    try:
        yield
    finally:
        process.kill()
        process.wait()


def time_network(folder: Path, way: str, seconds: float) -> list[float]:
    """Milliseconds of single runs."""
    command = [sys.executable, "-c", TIMED, str(folder), str(seconds), way]
    done = subprocess.run(command, env=_environment(WAYS[way]), stdout=subprocess.PIPE, text=True, check=True)
    times: list[float] = json.loads(done.stdout)
    return times


def time_prune() -> float:
    """Seconds of `slimkit prune`, as its command line runs it."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["prune", "slimresnet18", "--rate", "0.3", "--reconstruction-images", "512", "-q"]
        code = f"import sys; from slimkit.cli.app import main; sys.exit(main({arguments!r}))"
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=_environment({}), check=True, capture_output=True)
        return time.perf_counter() - start


def _environment(more: dict[str, str]) -> dict[str, str]:
    decided = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {k: v for k, v in os.environ.items() if k not in decided} | {"PYTHONPATH": path} | more


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Latency and pruning beside other programs.")
    parser.add_argument("folder", type=Path, help="an int8 model folder")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default: 10)")
    parser.add_argument("--stages", action="store_true", help="time `slimkit prune` too")
    arguments = parser.parse_args()
    print(f"| | {' | '.join(BURNERS)} |\n| --- |{' ---: |' * len(BURNERS)}")
    rows: dict[str, list[str]] = {way: [] for way in WAYS}
    pruning = []
    for code in BURNERS.values():
        with burning(code):
            for way, cells in rows.items():
                times = time_network(arguments.folder, way, arguments.seconds)
                cells.append(f"{statistics.median(times):.2f} (mean {statistics.fmean(times):.2f})")
            if arguments.stages:
                pruning.append(f"{time_prune():.0f} s")
    for way, cells in rows.items():
        print(f"| {way} | {' | '.join(cells)} |")
    if pruning:
        print(f"| `slimkit prune` as a whole | {' | '.join(pruning)} |")


if __name__ == "__main__":
    main()
