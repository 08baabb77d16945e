"""Score a model folder that somebody handed in, and print what the total is made of."""

import sys
from pathlib import Path

from slimkit.core import ScoreOptions, inspect_folder, run_score


def main(folder: Path, data: str) -> None:
    """Verify `folder`, then score it on the test images of `data` against the contest's baseline."""
    found = inspect_folder(folder)
    print(f"{folder} is whole: {', '.join(found.checked)}")
    options = ScoreOptions(
        model=str(folder),
        data=data,
        baseline_size=50.0,
        baseline_latency=10.0,
        baseline_accuracy=80.0,
        output=folder.parent / "results.json",
        force=True,
    )
    results = run_score(options).to_dict()
    for key in ("size_score", "latency_score", "accuracy_score", "total_score"):
        print(f"{key:15} {results[key]:8.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "digits100")
