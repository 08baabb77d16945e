"""The whole chain as one recipe: train, prune, distill, quantize, score; resumed where it was left."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slimkit.core.errors import FolderError, UsageError
from slimkit.core.files import write_atomically
from slimkit.core.folder import read_architecture, read_metadata, sha256_of
from slimkit.core.models.resolve import is_folder
from slimkit.core.options import (
    CommonOptions,
    DistillOptions,
    ModelOptions,
    PruneOptions,
    QuantizeOptions,
    ScoreOptions,
    TrainOptions,
)
from slimkit.core.progress import Progress, silent
from slimkit.core.pruning.stage import check_budget
from slimkit.core.scoring import run_score
from slimkit.core.stages import run_distill, run_prune, run_quantize, run_train
from slimkit.core.typed import FieldError, parse_dataclass, reject_unknown

log = logging.getLogger("slimkit")

RECIPE_FILE = Path("runs/recipe.yaml")
STATE_FILE = Path("runs/recipe.state.json")

_RUN: dict[str, Callable[..., Any]] = {
    "train": run_train,
    "prune": run_prune,
    "distill": run_distill,
    "quantize": run_quantize,
    "score": run_score,
}
_SECTIONS: dict[str, type[ModelOptions]] = {
    "train": TrainOptions,
    "prune": PruneOptions,
    "distill": DistillOptions,
    "quantize": QuantizeOptions,
    "score": ScoreOptions,
}
# a quarter of the usual images: the distillation that follows repairs far more than they would
_IN_A_CHAIN: dict[str, dict[str, Any]] = {"prune": {"reconstruction_images": 1024}}
_STARTING = ("model", "weights", "pretrained")  # what the chain starts from
_SHARED = tuple(f.name for f in dataclasses.fields(CommonOptions) if f.name != "force")


@dataclass(frozen=True)
class Recipe:
    """The options of every stage, resolved, in a folder that all of them read from and write to."""

    root: Path
    stages: Mapping[str, ModelOptions]

    def to_yaml(self) -> str:
        """The recipe as YAML that `resolve_recipe` takes again."""
        return yaml.safe_dump({name: _plain(o) for name, o in self.stages.items()}, sort_keys=False)


@dataclass(frozen=True)
class CompressReport:
    """Before and after, and where the submission lies."""

    submission: Path
    rows: tuple[tuple[str, float | None, float | None], ...]  # figure, of the baseline, of the submission
    results: dict[str, Any]  # as in results.json


def resolve_recipe(settings: Mapping[str, Any], root: Path, source: str = "the recipe") -> Recipe:
    """The options of every stage, from settings that hold shared options and a section per stage.

    Paths of models and outputs are under `root`. Raises UsageError that names an unknown or wrong option.
    """
    try:
        reject_unknown(settings, [*_SECTIONS, *_STARTING, *_SHARED], source)
        shared = {key: value for key, value in settings.items() if key in _SHARED}
        starting = {key: value for key, value in settings.items() if key in _STARTING}
        stages = {}
        for name, cls in _SECTIONS.items():
            section = settings.get(name) or {}
            if not isinstance(section, Mapping):
                raise FieldError(f"{source}: {name} should be a mapping of options")
            values = {**_IN_A_CHAIN.get(name, {}), **shared, **(starting if name == "train" else {}), **section}
            stages[name] = _under(root, parse_dataclass(cls, values, f"{source}: {name}"), first=name == "train")
    except FieldError as error:
        raise UsageError(f"{error}.", "Correct it there; `slimkit compress -h` lists the options.") from None
    assert isinstance(stages["prune"], PruneOptions)  # the section called prune
    check_budget(stages["prune"])  # before hours of training, not after them
    if stages["prune"].sensitivity:
        raise UsageError(f"{source}: prune: sensitivity is a report, and prunes nothing.", "Leave it out.")
    return Recipe(root, stages | {"train": _without_needless_training(stages["train"])})


def run_recipe(recipe: Recipe, *, force: bool = False, progress: Progress = silent) -> CompressReport:
    """Run the stages that are not finished yet, and report before and after.

    A stage is finished when it was run with these very options and its result is unchanged. Raises SlimkitError; the
    results of the stages before stay.
    """
    state = {} if force else _read_state(recipe.root / STATE_FILE)
    made_here = set(state)
    write_atomically(recipe.root / RECIPE_FILE, recipe.to_yaml())
    for name, options in recipe.stages.items():
        if _is_finished(options, state.get(name)):
            log.info("%s is finished: %s", name, _output(options))
            continue
        _RUN[name](dataclasses.replace(options, force=force or name in made_here), progress)
        # what was made from an older result of this stage is out of date
        state = {before: state[before] for before in _names_before(name)} | {name: _entry(options)}
        write_atomically(recipe.root / STATE_FILE, json.dumps(state, indent=2) + "\n")
    return _report(recipe)


def _names_before(name: str) -> list[str]:
    names = list(_SECTIONS)
    return names[: names.index(name)]


def _read_state(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise FolderError(f"{file} is not JSON: {error}.", "Delete it, or start over with -f/--force.") from None
    return state if isinstance(state, dict) else {}


def _entry(options: ModelOptions) -> dict[str, Any]:
    return {"options": _plain(options), "sha256": _fingerprint(_output(options))}


def _is_finished(options: ModelOptions, entry: dict[str, Any] | None) -> bool:
    if entry is None or entry.get("options") != _plain(options):
        return False
    try:
        return bool(entry.get("sha256") == _fingerprint(_output(options)))
    except (FolderError, OSError):
        return False


def _fingerprint(result: Path) -> str:
    """The sha256 of a stage's result: of the weights in a model folder, or of the file of scores."""
    return sha256_of(result / read_metadata(result)["files"]["weights"] if result.is_dir() else result)


def _output(options: ModelOptions) -> Path:
    output: Path = options.output  # type: ignore[attr-defined]  # the options of every stage have one
    return output


def _under(root: Path, options: ModelOptions, *, first: bool) -> ModelOptions:
    """`options` with the output, and the model that an earlier stage wrote, in the folder `root`."""
    values: dict[str, Any] = {"output": root / _output(options)}
    if not first:
        values["model"] = str(root / options.model)
    return dataclasses.replace(options, **values)


def _without_needless_training(options: ModelOptions) -> ModelOptions:
    """A model that comes with weights is the baseline as it is, unless epochs are asked for."""
    assert isinstance(options, TrainOptions)  # the section called train
    trained = options.weights is not None or options.pretrained or is_folder(options.model)
    return dataclasses.replace(options, epochs=0) if trained and options.epochs is None else options


def _plain(options: ModelOptions) -> dict[str, Any]:
    """The options as plain YAML and JSON values; whether to replace files is no part of a recipe."""
    values = dataclasses.asdict(options)
    del values["force"]
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def _report(recipe: Recipe) -> CompressReport:
    """The table of before and after, from the two architectures and the scores."""
    submission = _output(recipe.stages["quantize"])
    before, after = read_architecture(_output(recipe.stages["train"])), read_architecture(submission)
    results = json.loads(_output(recipe.stages["score"]).read_text(encoding="utf-8"))
    baseline = results["baseline"]
    rows = (
        ("parameters", before.parameters, after.parameters),
        ("MACs", before.macs, after.macs),
        ("size (MB)", baseline["model_size"], results["model_size"]),
        ("latency, median (ms)", baseline["latency_median"], results["latency_median"]),
        ("latency, p90 (ms)", baseline["latency_p90"], results["latency_p90"]),
        ("accuracy (%)", baseline["accuracy"], results["accuracy"]),
        ("total score", 1.0, results["total_score"]),
    )
    return CompressReport(submission, rows, results)
