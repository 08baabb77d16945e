"""The whole chain as one recipe: train, prune, distill, quantize, score; resumed where it was left."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimkit.core.data import decoded_once
from slimkit.core.errors import FolderError, UsageError
from slimkit.core.folder import read_architecture, sha256_of
from slimkit.core.htmlreport.page import write_report
from slimkit.core.options import DistillOptions, TrainOptions, plain_options
from slimkit.core.progress import Progress, silent
from slimkit.core.recipe.resolve import Recipe, Stage
from slimkit.core.recipe.state import (
    STATE_FILE,
    adopt_outputs,
    check_stage_outputs,
    entry_of,
    finished_stages,
    is_begun,
    is_unchanged,
    mark_outdated,
    read_state,
    write_recipe,
    write_state,
)
from slimkit.core.run import check_inputs
from slimkit.core.scoring.run import run_score
from slimkit.core.stages import run_distill, run_prune, run_quantize, run_train
from slimkit.core.training.checkpoint import checkpoint_folder, has_checkpoint, remove_checkpoints

log = logging.getLogger("slimkit")

PAGE = "report.html"

_RUN: dict[str, Callable[..., Any]] = {
    "train": run_train,
    "prune": run_prune,
    "distill": run_distill,
    "quantize": run_quantize,
    "score": run_score,
}


@dataclass(frozen=True)
class CompressReport:
    """Before and after, and where the submission lies."""

    submission: Path
    rows: tuple[tuple[str, float | None, float | None], ...]  # figure, of the baseline, of the submission
    results: dict[str, Any]  # as in results.json
    page: Path | None = None  # the HTML report


def run_recipe(recipe: Recipe, *, force: bool = False, progress: Progress = silent) -> CompressReport:
    """Run the stages that are not finished yet, and report before and after.

    Raises UsageError for a recipe with a goal, and as `run_stages`.
    """
    if recipe.goal:
        raise UsageError("The recipe has a goal, for which options are still to be found.", "Run it by `run_goal`.")
    state = run_stages(recipe, tuple(recipe.stages), force=force, progress=progress)
    return dataclasses.replace(_report(recipe), page=_write_page(recipe, state, force))


@decoded_once()
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
    that gave the state `known`. Raises FolderError, before any work, where a stage that has to run, now or later, would
    replace what the recipe did not make or what was changed since, unless `force` is given. The results of the stages
    before one that fails stay.
    """
    state = dict(known or {}) | read_state(recipe.root / STATE_FILE, force)
    finished = finished_stages(recipe, state)
    for name, options in recipe.stages.items():
        if name not in finished:
            check_stage_outputs(options, state.get(name, {}), force)
    _check_inputs(recipe)
    if force:
        adopt_outputs(recipe, state)
    write_recipe(recipe, state, force)
    for name in names:
        options = recipe.stages[name]
        if name in finished:
            log.info("%s is finished: %s", name, options.output)
            continue
        replaceable = force or is_unchanged(options, state.get(name, {}))
        going_on = is_begun(options, state.get(name, {}))
        mark_outdated(state, name)
        state[name] = state.get(name, {}) | {"begun": plain_options(options)}
        write_state(recipe, state)
        _RUN[name](dataclasses.replace(_resumed(options, going_on), force=replaceable), progress)
        state[name] = entry_of(options)
        write_state(recipe, state)
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
    write_state(recipe, state)
    return file


def _resumed(options: Stage, going_on: bool) -> Stage:
    """The options of a stage, which goes on where it was interrupted if it is one that trains, or else starts over."""
    if not isinstance(options, TrainOptions | DistillOptions):
        return options
    checkpoints = checkpoint_folder(options.output)
    if not going_on:
        remove_checkpoints(checkpoints)
    return dataclasses.replace(options, resume=has_checkpoint(checkpoints))


def _check_inputs(recipe: Recipe) -> None:
    """Raise for what a stage names and isn't there, unless an earlier stage makes it."""
    made = [options.output for options in recipe.stages.values()]
    for options in recipe.stages.values():
        models = {name: getattr(options, name, None) for name in ("teacher", "baseline")}
        own: dict[str, Any] = {name: None for name, model in models.items() if model and Path(model) in made}
        check_inputs(dataclasses.replace(options, **own))


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
