"""Whether `slimkit benchmark` sees a difference where there is none.

    python benchmarks/same_model.py submission [--comparisons 100] [--min-seconds 10] [--backend torch] [--burn]

Compares a model with itself, over and over: each time two processes of the same files, as the command starts them. It
says in how many comparisons the 95 % interval of the ratio covers 1 (wanted: 93 of 100), and half the width of the
median interval (wanted: 1 % on a quiet machine). --burn does it beside a program that keeps one core busy.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from busy_core import BURNERS, burning

from slimkit.core import BenchmarkOptions, run_benchmark
from slimkit.core.benchmark.statistics import Estimate

WANTED_COVER, WANTED_HALF_WIDTH = 0.93, 1.0  # of the comparisons; %


def compare_with_itself(arguments: argparse.Namespace) -> Estimate:
    """The ratio of the model's time to its own."""
    with tempfile.TemporaryDirectory() as folder:
        options = BenchmarkOptions(
            model=str(arguments.folder),
            baseline=str(arguments.folder),
            backend=(arguments.backend,),
            restarts=arguments.restarts,
            min_seconds=arguments.min_seconds,
            threads=arguments.threads,
            output=Path(folder) / "benchmark.json",
        )
        ratio = run_benchmark(options).candidates[0].ratio
    assert ratio is not None  # the other candidate is what it is compared with
    return ratio


def show(ratios: list[Estimate]) -> None:
    """Print what came of all comparisons so far."""
    count, covered = len(ratios), sum(ratio.covers(1) for ratio in ratios)
    half_width = 50 * statistics.median(ratio.width for ratio in ratios)
    furthest = max(ratios, key=lambda ratio: abs(ratio.value - 1)).value
    print(
        f"{covered} of {count} intervals cover 1 (wanted: {WANTED_COVER:.0%}); median half-width {half_width:.2f} % "
        f"(wanted: {WANTED_HALF_WIDTH:g} % when quiet); the ratio furthest from 1 is {furthest:.4f}"
    )


def main() -> None:
    """Print each ratio, and what came of all."""
    parser = argparse.ArgumentParser(description="A model compared with itself.")
    parser.add_argument("folder", type=Path, help="a model folder")
    parser.add_argument("--comparisons", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--min-seconds", type=float, default=10.0, help="as `slimkit benchmark` has it (default: 10)")
    parser.add_argument("--restarts", type=int, default=3, help="as `slimkit benchmark` has it (default: 3)")
    parser.add_argument("--backend", default="torch", help="what it runs in (default: torch)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    parser.add_argument("--burn", action="store_true", help="beside a program that keeps one core busy")
    arguments = parser.parse_args()
    ratios = []
    with burning(BURNERS["beside a busy core"] if arguments.burn else ""):
        for _ in range(arguments.comparisons):
            ratios.append(compare_with_itself(arguments))
            print(f"{ratios[-1].value:.4f} ({ratios[-1].low:.4f} to {ratios[-1].high:.4f})", flush=True)
    show(ratios)


if __name__ == "__main__":
    main()
