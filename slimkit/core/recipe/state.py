"""What a recipe has made: which stages are finished, and what it may replace."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimkit.core.errors import FolderError
from slimkit.core.files import WRITTEN_HERE, write_atomically
from slimkit.core.folder import LEFT_BY_OTHERS, sha256_of
from slimkit.core.options import plain_options
from slimkit.core.recipe.resolve import SECTIONS, Recipe, Stage
from slimkit.core.run import check_outputs

RECIPE_FILE = Path("runs/recipe.yaml")
STATE_FILE = Path("runs/recipe.state.json")


def read_state(file: Path, force: bool) -> dict[str, Any]:
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
        mark_outdated(known, "train")
    return known


def write_state(recipe: Recipe, state: Mapping[str, Any]) -> None:
    """Replace the state file."""
    write_atomically(recipe.root / STATE_FILE, json.dumps(state, indent=2) + "\n")


def write_recipe(recipe: Recipe, state: dict[str, Any], force: bool) -> None:
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
    write_state(recipe, state)


def finished_stages(recipe: Recipe, state: Mapping[str, Any]) -> list[str]:
    """The first stages, up to the first that has to run: what was made from an older result of it is out of date."""
    finished = []
    for name, options in recipe.stages.items():
        entry = state.get(name, {})
        if entry.get("options") != plain_options(options) or not is_unchanged(options, entry):
            break
        finished.append(name)
    return finished


def is_begun(options: Stage, entry: Mapping[str, Any]) -> bool:
    """Whether a stage was interrupted when it ran with these very options."""
    return entry.get("begun") == plain_options(options)


def mark_outdated(state: dict[str, Any], first: str) -> None:
    """Let no stage from `first` on count as finished or begun; its output stays known, so that it may be replaced."""
    for name in list(SECTIONS)[list(SECTIONS).index(first) :]:
        if name in state:
            state[name] = state[name] | {"options": None, "begun": None}


def check_stage_outputs(options: Stage, entry: Mapping[str, Any], force: bool) -> None:
    """Raise FolderError where a stage's output is to be replaced and is not what this recipe left there."""
    output = options.output
    if entry and not force and output.exists() and not is_unchanged(options, entry):
        raise FolderError(
            f"{output} was changed since this recipe made it, and has to be made anew.",
            "Give -f/--force to start over, or -o/--output to write elsewhere.",
        )
    check_outputs(dataclasses.replace(options, force=force or bool(entry)))


def adopt_outputs(recipe: Recipe, state: dict[str, Any]) -> None:
    """Let what lies where stages write count as the recipe's own, so that it may be replaced: `force` allows it."""
    for name, options in recipe.stages.items():
        if options.output.exists():
            state[name] = state.get(name, {}) | {"options": None, "fingerprint": _fingerprint(options.output)}


def entry_of(options: Stage) -> dict[str, Any]:
    """What is kept of a stage that is finished."""
    return {"options": plain_options(options), "fingerprint": _fingerprint(options.output)}


def is_unchanged(options: Stage, entry: Mapping[str, Any]) -> bool:
    """Whether a stage's output is there as the recipe left it."""
    output = options.output
    return output.exists() and entry.get("fingerprint") == _fingerprint(output)


def _fingerprint(result: Path) -> dict[str, str]:
    """The sha256 of each file of a stage's result: of a model folder, or of the file of scores."""
    files = sorted(result.iterdir()) if result.is_dir() else [result]
    return {file.name: sha256_of(file) for file in files if file.is_file() and file.name not in LEFT_BY_OTHERS}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
