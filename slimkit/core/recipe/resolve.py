"""The recipe: the options of every stage of the chain, from what a person wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import slimkit
from slimkit.core.checks import check_options
from slimkit.core.errors import UsageError
from slimkit.core.files import WRITTEN_HERE
from slimkit.core.folder import METADATA
from slimkit.core.options import (
    OF_NAMED_MODELS,
    OF_ONE_RUN,
    CommonOptions,
    DistillOptions,
    GoalOptions,
    PruneOptions,
    QuantizeOptions,
    ScoreOptions,
    TrainOptions,
    plain_options,
)
from slimkit.core.typed import FieldError, parse_options, reject_unknown

HEADER = f"{WRITTEN_HERE}{slimkit.__version__}. Again: slimkit compress -c, with this file\n"

Stage = TrainOptions | PruneOptions | DistillOptions | QuantizeOptions | ScoreOptions  # the options of one

SECTIONS: dict[str, type[Stage]] = {
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
    goal: GoalOptions | None = (
        None  # of a search that is to choose the MACs, the minutes of distillation and the bits first
    )

    def to_yaml(self) -> str:
        """The recipe as YAML that `resolve_recipe` takes again."""
        stages: dict[str, Any] = {"output": str(self.root)}
        if self.goal:
            stages["goal"] = dataclasses.asdict(self.goal)
        before = None
        for name, options in self.stages.items():
            usual = _places(name, self.root, before)
            stages[name] = {key: value for key, value in plain_options(options).items() if usual.get(key) != value}
            before = options
        return HEADER + yaml.safe_dump(stages, sort_keys=False, allow_unicode=True)


def resolve_recipe(settings: Mapping[str, Any], root: Path | None = None, source: str = "the recipe") -> Recipe:
    """The options of every stage, from settings that hold shared options and a section per stage.

    Each stage reads what the one before it writes, and writes into `root` (None: the `output` of the settings, else the
    working folder), unless its section says otherwise. All paths are as seen from the working folder.
    Raises UsageError that names an unknown or wrong option.
    """
    if "search" in settings:
        raise UsageError(f"{source} leaves options open in its section `search`.", "Run it by `slimkit tune`.")
    try:
        reject_unknown(settings, [*SECTIONS, *_STARTING, *_SHARED, "output", "goal"], source)
        root = parse_options(_Root, {"output": settings.get("output", "")}, source).output if root is None else root
        stages: dict[str, Stage] = {}
        for name, cls in SECTIONS.items():
            before = list(stages.values())[-1] if stages else None
            values = _places(name, root, before) | _section(name, settings, source)
            stages[name] = parse_options(cls, values, f"{source}: {name}")
        goal = _goal(settings.get("goal"), f"{source}: goal")
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
    if goal and stages["prune"].budgets:
        raise UsageError(
            f"{source}: prune: {stages['prune'].budgets[0]} is a budget, which a search for the goal is to choose.",
            "Give either the budget or the goal.",
        )
    return Recipe(root, stages | {"train": _without_needless_training(stages["train"])}, goal)


def _goal(section: object, source: str) -> GoalOptions | None:
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise FieldError(f"{source} should be a mapping of options")
    options = parse_options(GoalOptions, section, source)
    check_options(options, source)
    return options


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


def _without_needless_training(options: Stage) -> Stage:
    """A model that comes with weights is the baseline as it is, unless epochs are asked for."""
    assert isinstance(options, TrainOptions)  # the section called train
    is_folder = (Path(options.model) / METADATA).is_file()
    trained = options.weights is not None or options.pretrained or is_folder
    return dataclasses.replace(options, epochs=0) if trained and options.epochs is None else options
