"""The whole chain as one recipe: train, prune, distill, quantize, score; resumed where it was left."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import slimkit
from slimkit.core.checks import check_options
from slimkit.core.errors import FolderError, UsageError
from slimkit.core.files import WRITTEN_HERE, write_atomically
from slimkit.core.folder import LEFT_BY_OTHERS, METADATA, read_architecture, sha256_of
from slimkit.core.htmlreport.page import write_report
from slimkit.core.options import (
    OF_NAMED_MODELS,
    OF_ONE_RUN,
    CommonOptions,
    DistillOptions,
    PruneOptions,
    QuantizeOptions,
    ScoreOptions,
    TrainOptions,
    plain_options,
)
from slimkit.core.progress import Progress, silent
from slimkit.core.run import check_inputs, check_outputs
from slimkit.core.scoring.run import run_score
from slimkit.core.stages import run_distill, run_prune, run_quantize, run_train
from slimkit.core.training.checkpoint import checkpoint_folder, has_checkpoint, remove_checkpoints
from slimkit.core.typed import FieldError, parse_options, reject_unknown

log = logging.getLogger("slimkit")

RECIPE_FILE = Path("runs/recipe.yaml")
PAGE = "report.html"
STATE_FILE = Path("runs/recipe.state.json")
HEADER = f"{WRITTEN_HERE}{slimkit.__version__}. Again: slimkit compress -c, with this file\n"

Stage = TrainOptions | PruneOptions | DistillOptions | QuantizeOptions | ScoreOptions  # the options of one

_RUN: dict[str, Callable[..., Any]] = {
    "train": run_train,
    "prune": run_prune,
    "distill": run_distill,
    "quantize": run_quantize,
    "score": run_score,
}
SECTIONS: dict[str, type[Stage]] = {  # in the order in which they run
    "train": TrainOptions,
    "prune": PruneOptions,
    "distill": DistillOptions,
    "quantize": QuantizeOptions,
    "score": ScoreOptions,
}
# a quarter of the usual images: the distillation that follows repairs far more than they would
_IN_A_CHAIN: dict[str, dict[str, Any]] = {"prune": {"reconstruction_images": 1024}}
_STARTING = ("model", *OF_NAMED_MODELS)  # what the chain starts from
_SHARED = (*(f.name for f in dataclasses.fields(CommonOptions) if f.name != "force"), "device")


@dataclass(frozen=True)
class Recipe:
    """The options of every stage, resolved: paths are as seen from the working folder."""

    root: Path  # where outputs are written that the recipe does not place itself
    stages: Mapping[str, Stage]

    def to_yaml(self) -> str:
        """The recipe as YAML that `resolve_recipe` takes again."""
        stages: dict[str, Any] = {"output": str(self.root)}
        before = None
        for name, options in self.stages.items():
            usual = _places(name, self.root, before)
            stages[name] = {key: value for key, value in plain_options(options).items() if usual.get(key) != value}
            before = options
        return HEADER + yaml.safe_dump(stages, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class CompressReport:
    """Before and after, and where the submission lies."""

    submission: Path
    rows: tuple[tuple[str, float | None, float | None], ...]  # figure, of the baseline, of the submission
    results: dict[str, Any]  # as in results.json
    page: Path | None = None  # the HTML report


def resolve_recipe(settings: Mapping[str, Any], root: Path | None = None, source: str = "the recipe") -> Recipe:
    """The options of every stage, from settings that hold shared options and a section per stage.

    Each stage reads what the one before it writes, and writes into `root` (None: the `output` of the settings, else the
    working folder), unless its section says otherwise. All paths are as seen from the working folder.
    Raises UsageError that names an unknown or wrong option.
    """
    try:
        reject_unknown(settings, [*SECTIONS, *_STARTING, *_SHARED, "output"], source)
        root = parse_options(_Root, {"output": settings.get("output", "")}, source).output if root is None else root
        stages: dict[str, Stage] = {}
        for name, cls in SECTIONS.items():
            before = list(stages.values())[-1] if stages else None
            values = _places(name, root, before) | _section(name, settings, source)
            stages[name] = parse_options(cls, values, f"{source}: {name}")
    except FieldError as error:
        raise UsageError(
            str(error) + "." * (not str(error).endswith("?")),
            "Correct it there; `slimkit compress -h` lists the options.",
        ) from None
    for name, options in stages.items():
        check_options(options, f"{source}: {name}")
    assert isinstance(stages["prune"], PruneOptions)  # the section called prune
    if stages["prune"].sensitivity:
        raise UsageError(f"{source}: prune: sensitivity is a report, and prunes nothing.", "Leave it out.")
    return Recipe(root, stages | {"train": _without_needless_training(stages["train"])})


@dataclass(frozen=True)
class _Root:
    output: Path


def _section(name: str, settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What the settings say of one stage: shared options that it has, then those of its own section."""
    section = settings.get(name) or {}
    if not isinstance(section, Mapping):
        raise FieldError(f"{source}: {name} should be a mapping of options")
    if flag := next((flag for flag in OF_ONE_RUN if flag in section), None):
        raise FieldError(f"{source}: {name}: {flag} is no part of a recipe, but a flag: --{flag}")
    own = {field.name for field in dataclasses.fields(SECTIONS[name])}
    starting = _STARTING if name == "train" else ()
    shared = {key: value for key, value in settings.items() if key in starting or (key in _SHARED and key in own)}
    return _IN_A_CHAIN.get(name, {}) | shared | dict(section)


def _places(name: str, root: Path, before: Stage | None) -> dict[str, Any]:
    """The model that a stage reads and the output that it writes, where its section does not say."""
    output = str(root / SECTIONS[name].output)
    return {"output": output} | ({} if before is None else {"model": str(before.output)})


def run_recipe(recipe: Recipe, *, force: bool = False, progress: Progress = silent) -> CompressReport:
    """Run the stages that are not finished yet, and report before and after. Raises as `run_stages`."""
    state = run_stages(recipe, tuple(recipe.stages), force=force, progress=progress)
    return dataclasses.replace(_report(recipe), page=_write_page(recipe, state, force))


def run_stages(
    recipe: Recipe,
    names: Sequence[str],
    *,
    known: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run those of the first stages `names` that are not finished yet; gives the state of all that are known.

    A stage is finished when it was run with these very options and its result is unchanged, here or in another recipe
    that gave the state `known`. Raises FolderError, before any work, where a stage that has to run would replace what
    the recipe did not make or what was changed since, unless `force` is given. The results of the stages before one
    that fails stay.
    """
    state = dict(known or {}) | _read_state(recipe.root / STATE_FILE, force)
    finished = _finished(recipe, state)
    for name in names:
        options = recipe.stages[name]
        if name not in finished:
            _check_outputs(options, state.get(name, {}), force)
    _check_inputs(recipe)
    _write_recipe(recipe, state, force)
    for name in names:
        options = recipe.stages[name]
        if name in finished:
            log.info("%s is finished: %s", name, options.output)
            continue
        replaceable = force or _is_unchanged(options, state.get(name, {}))
        going_on = _is_begun(options, state.get(name, {}))
        _mark_outdated(state, name)
        state[name] = state.get(name, {}) | {"begun": plain_options(options)}
        _write_state(recipe, state)
        _RUN[name](dataclasses.replace(_resumed(options, going_on), force=replaceable), progress)
        state[name] = _entry(options)
        _write_state(recipe, state)
    return state


def _write_page(recipe: Recipe, state: dict[str, Any], force: bool) -> Path | None:
    """Leave the HTML report beside the results, unless a file of that name is there that isn't its own."""
    file = recipe.root / PAGE
    if file.exists() and not force and state.get("report") != sha256_of(file):
        log.warning("%s is not the report that slimkit left there, so it is not replaced.", file)
        return None
    try:
        write_report(recipe.root, file)
    except FolderError as error:  # the recipe places its results elsewhere
        log.warning("There is no report: %s", error)
        return None
    state["report"] = sha256_of(file)
    _write_state(recipe, state)
    return file


def _finished(recipe: Recipe, state: Mapping[str, Any]) -> list[str]:
    """The first stages, up to the first that has to run: what was made from an older result of it is out of date."""
    finished = []
    for name, options in recipe.stages.items():
        entry = state.get(name, {})
        if entry.get("options") != plain_options(options) or not _is_unchanged(options, entry):
            break
        finished.append(name)
    return finished


def _is_begun(options: Stage, entry: Mapping[str, Any]) -> bool:
    """Whether a stage was interrupted when it ran with these very options."""
    return entry.get("begun") == plain_options(options)


def _resumed(options: Stage, going_on: bool) -> Stage:
    """The options of a stage, which goes on where it was interrupted if it is one that trains, or else starts over."""
    if not isinstance(options, TrainOptions | DistillOptions):
        return options
    checkpoints = checkpoint_folder(options.output)
    if not going_on:
        remove_checkpoints(checkpoints)
    return dataclasses.replace(options, resume=has_checkpoint(checkpoints))


def _mark_outdated(state: dict[str, Any], first: str) -> None:
    """Let no stage from `first` on count as finished or begun; its output stays known, so that it may be replaced."""
    for name in list(SECTIONS)[list(SECTIONS).index(first) :]:
        if name in state:
            state[name] = state[name] | {"options": None, "begun": None}


def _check_outputs(options: Stage, entry: Mapping[str, Any], force: bool) -> None:
    """Raise FolderError where a stage's output is to be replaced and is not what this recipe left there."""
    output = options.output
    if entry and not force and output.exists() and not _is_unchanged(options, entry):
        raise FolderError(
            f"{output} was changed since this recipe made it, and has to be made anew.",
            "Give -f/--force to start over, or -o/--output to write elsewhere.",
        )
    check_outputs(dataclasses.replace(options, force=force or bool(entry)))


def _check_inputs(recipe: Recipe) -> None:
    """Raise for what a stage names and isn't there, unless an earlier stage makes it."""
    made = [options.output for options in recipe.stages.values()]
    for options in recipe.stages.values():
        models = {name: getattr(options, name, None) for name in ("teacher", "baseline")}
        own: dict[str, Any] = {name: None for name, model in models.items() if model and Path(model) in made}
        check_inputs(dataclasses.replace(options, **own))


def _write_recipe(recipe: Recipe, state: dict[str, Any], force: bool) -> None:
    """Leave the resolved recipe beside the results. Raises FolderError where a file is there that isn't its own."""
    file, text = recipe.root / RECIPE_FILE, recipe.to_yaml()
    old = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else text
    ours = state.get("recipe") == _digest(old) or (force and old.startswith(WRITTEN_HERE))
    if old != text and not ours:
        raise FolderError(
            f"{file} is not the recipe that slimkit left there, so it is not replaced.",
            "Give that file another name, or give another -o/--output.",
        )
    write_atomically(file, text)
    state["recipe"] = _digest(text)
    _write_state(recipe, state)


def _write_state(recipe: Recipe, state: Mapping[str, Any]) -> None:
    write_atomically(recipe.root / STATE_FILE, json.dumps(state, indent=2) + "\n")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_state(file: Path, force: bool) -> dict[str, Any]:
    """For each stage that was finished once: its options, and the fingerprint of its output.

    With `force` none of them counts as finished.
    """
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        if force:
            return {}
        raise FolderError(f"{file} is not JSON: {error}.", "Delete it, or start over with -f/--force.") from None
    entries = state.items() if isinstance(state, dict) else ()
    known = {name: entry for name, entry in entries if name in ("recipe", "report") or isinstance(entry, dict)}
    if force:
        _mark_outdated(known, "train")
    return known


def _entry(options: Stage) -> dict[str, Any]:
    return {"options": plain_options(options), "fingerprint": _fingerprint(options.output)}


def _is_unchanged(options: Stage, entry: Mapping[str, Any]) -> bool:
    """Whether a stage's output is there as the recipe left it."""
    output = options.output
    return output.exists() and entry.get("fingerprint") == _fingerprint(output)


def _fingerprint(result: Path) -> dict[str, str]:
    """The sha256 of each file of a stage's result: of a model folder, or of the file of scores."""
    files = sorted(result.iterdir()) if result.is_dir() else [result]
    return {file.name: sha256_of(file) for file in files if file.is_file() and file.name not in LEFT_BY_OTHERS}


def _without_needless_training(options: Stage) -> Stage:
    """A model that comes with weights is the baseline as it is, unless epochs are asked for."""
    assert isinstance(options, TrainOptions)  # the section called train
    is_folder = (Path(options.model) / METADATA).is_file()
    trained = options.weights is not None or options.pretrained or is_folder
    return dataclasses.replace(options, epochs=0) if trained and options.epochs is None else options


def _report(recipe: Recipe) -> CompressReport:
    """The table of before and after, from the two architectures and the scores."""
    submission = recipe.stages["quantize"].output
    before, after = read_architecture(recipe.stages["train"].output), read_architecture(submission)
    results = json.loads(recipe.stages["score"].output.read_text(encoding="utf-8"))
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
