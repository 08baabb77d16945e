"""The whole chain in ten lines: train, prune, distill, quantize, score."""

import sys
from pathlib import Path

from slimkit.core import resolve_recipe, run_recipe

# small images and few epochs, to see it work in a minute or two; leave these out for the usual numbers
settings = {
    "data": "digits100",
    "image_size": 32,
    "train": {"epochs": 2},
    "prune": {"rate": 0.3},
    "distill": {"epochs": 1},
}


def main(root: Path) -> None:
    """Run the chain in the folder `root` and print before and after."""
    report = run_recipe(resolve_recipe(settings, root))
    for name, before, after in report.rows:
        print(f"{name:22} {before:>14,.2f} {after:>14,.2f}")
    print(f"the submission lies in {report.submission}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "whole_chain"))
