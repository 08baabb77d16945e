"""The JSON, YAML and CSV that the commands left in a folder, as the page needs them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimkit.core.architecture import Architecture
from slimkit.core.errors import FolderError
from slimkit.core.folder import METADATA, read_architecture, read_metadata

MOST_JSON = 64 * 2**20  # bytes
HINT = "Name the folder that `slimkit compress -o` wrote, or a model folder."


@dataclass(frozen=True)
class Stage:
    """A model folder, as one command left it."""

    folder: Path
    architecture: Architecture
    figures: dict[str, Any]
    size: int  # bytes of the weights file
    sha256: str  # of the weights file


@dataclass(frozen=True)
class Confusion:
    """What was taken for what."""

    class_names: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]  # of the images of each class (row), those answered by each class (column)


@dataclass(frozen=True)
class Found:
    """All that was found; None for what was not."""

    root: Path
    stages: tuple[Stage, ...]  # in the order of the work; the last is the result
    results: dict[str, Any] | None  # of `slimkit score`
    benchmark: dict[str, Any] | None
    sensitivity: dict[str, Any] | None
    recipe: str | None
    per_class: tuple[dict[str, str], ...]
    layer_times: dict[str, Any] | None  # of the result, by `slimkit benchmark --layer-times`
    confusion: Confusion | None

    @property
    def result(self) -> Stage:
        """The model that the page is about."""
        return self.stages[-1]


def collect(root: Path) -> Found:
    """Read what lies in `root`. Raises FolderError where no model folder does."""
    is_model = (root / METADATA).is_file()
    places = [root] if is_model else [file.parent for file in _in_folders_of(root, METADATA)]
    stages = sorted(map(_stage, places), key=lambda stage: len(stage.architecture.compression_steps))
    if not stages:
        raise FolderError(f"{root} holds no model folder.", HINT)
    around = root.parent if is_model else root
    recipe = root / "runs" / "recipe.yaml"
    way = _way_to_the_result(stages)
    return Found(
        root=root,
        stages=way,
        results=_json_of(around, "total_score"),
        benchmark=_json_of(around, "candidates"),
        sensitivity=_json_of(around, "entries"),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else None,
        per_class=tuple(csv.DictReader(_lines_of(around, "per_class.csv"))),
        layer_times=_layer_times(around, way[-1].sha256),
        confusion=_confusion(list(csv.reader(_lines_of(around, "confusion.csv")))),
    )


def _layer_times(folder: Path, sha256: str) -> dict[str, Any] | None:
    """Those of the model with these weights, with the threads and the batch size that they were measured with."""
    found = _json_of(folder, "layer_times") or {"layer_times": []}
    own = next((each for each in found["layer_times"] if each["weights_sha256"] == sha256), None)
    return own and own | {name: found[name] for name in ("threads", "batch_size")}


def _confusion(rows: list[list[str]]) -> Confusion | None:
    """From the rows of confusion.csv."""
    if not rows:
        return None
    counts = [[int(count) for count in row[1:]] for row in rows[1:]]
    shares = tuple(tuple(count / max(1, sum(row)) for count in row) for row in counts)
    return Confusion(tuple(rows[0][1:]), shares)


def _lines_of(root: Path, name: str) -> list[str]:
    """Of the first file of that name; none where there is none."""
    file = next(_in_folders_of(root, name), None)
    return file.read_text(encoding="utf-8").splitlines() if file else []


def _stage(folder: Path) -> Stage:
    metadata = read_metadata(folder)
    weights = folder / Path(str(metadata.get("files", {}).get("weights"))).name
    if not weights.is_file():
        raise FolderError(f"{folder} lacks the file {weights.name}.", HINT)
    sha256 = str(metadata["sha256"].get(weights.name))
    figures = dict(metadata.get("figures", {}))
    return Stage(folder, read_architecture(folder), figures, weights.stat().st_size, sha256)


def _way_to_the_result(stages: list[Stage]) -> tuple[Stage, ...]:
    """Those that the result was made over: of several lines of work in a folder, that of the submission."""
    result = next((stage for stage in stages if stage.folder.name == "submission"), stages[-1])
    start = result.architecture.base.get("weights_sha256")
    way = [s for s in stages if s is not result and start in (s.sha256, s.architecture.base.get("weights_sha256"))]
    return (*way, result) if start else (result,)


def _in_folders_of(root: Path, name: str) -> Iterator[Path]:
    """The files of that name in the folders of `root` and of runs/ in it, hidden ones left out."""
    found = [*sorted((root / "runs").glob(f"*/{name}")), *sorted(root.glob(f"*/{name}"))]
    yield from (file for file in found if not file.parent.name.startswith("."))


def _json_of(folder: Path, key: str) -> dict[str, Any] | None:
    """The newest JSON object that has `key` in a file of `folder` or of runs/ in it."""
    files = [file for place in (folder, folder / "runs") for file in place.glob("*.json")]
    for file in sorted(files, key=lambda file: -file.stat().st_mtime):
        if file.stat().st_size > MOST_JSON:
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(content, dict) and key in content:
            return content
    return None
