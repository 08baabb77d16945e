"""What is searched over: the `search` section of a recipe, and the recipe of one trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimkit.core.errors import UsageError
from slimkit.core.options import TrainOptions
from slimkit.core.recipe import SECTIONS, Recipe, resolve_recipe
from slimkit.core.typed import FieldError, parse_dataclass, parse_options

SEARCHED = ("train", "prune", "distill", "quantize")  # stages; score is run on the images that nothing is chosen by
EXAMPLE = "Write it as prune.rate: [0.2, 0.5] (choices) or distill.lr: {low: 1e-4, high: 1e-2, log: true} (a range)."

Value = int | float | str | bool | None


@dataclass(frozen=True)
class Interval:
    """A range of numbers, its ends included; whole ones where both ends are."""

    low: float
    high: float
    log: bool = False  # whether as many are tried from 1 to 10 as from 10 to 100
    step: float | None = None


@dataclass(frozen=True)
class Dimension:
    """An option that is searched over."""

    name: str  # stage.option, or a shared option
    values: tuple[Value, ...] | Interval

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values between which all others are."""
        return (self.values.low, self.values.high) if isinstance(self.values, Interval) else self.values

    @property
    def stage(self) -> str | None:
        """The first stage that it changes; None for all."""
        stage, dot, _ = self.name.partition(".")
        return stage if dot else None


@dataclass(frozen=True)
class Space:
    """A recipe with some options left open."""

    settings: Mapping[str, Any]  # the recipe without its `search` section
    dimensions: tuple[Dimension, ...]
    source: str  # that errors name

    @property
    def common(self) -> tuple[str, ...]:
        """The first stages, which are the same in every trial."""
        searched = [dimension.stage or SEARCHED[0] for dimension in self.dimensions]
        return SEARCHED[: min(map(SEARCHED.index, searched))]

    def recipe(self, values: Mapping[str, Value], root: Path, shared: Path) -> Recipe:
        """The recipe with these values of its dimensions, in `root`; its common stages are in `shared`."""
        sections = {stage: dict(self.settings.get(stage) or {}) for stage in SEARCHED}
        settings = {**self.settings, **sections}
        for name, value in values.items():
            stage, dot, option = name.partition(".")
            target = sections[stage] if dot else settings
            target[option if dot else name] = value
        for stage in self.common:
            sections[stage]["output"] = str(shared / SECTIONS[stage].output)
        return resolve_recipe(settings, root, self.source)


def read_space(settings: Mapping[str, Any], source: str) -> Space:
    """The recipe and what its `search` section names. Raises UsageError for what no trial could have."""
    section = settings.get("search")
    if not isinstance(section, Mapping) or not section:
        raise UsageError(f"{source} has no section `search` that says which options to try.", EXAMPLE)
    if "goal" in settings:
        raise UsageError(f"{source} has a goal, too, which is for slimkit compress.", "Leave out `goal` or `search`.")
    rest = {name: part for name, part in settings.items() if name != "search"}
    for name, part in rest.items():
        if name == "output" or (isinstance(part, Mapping) and "output" in part):
            place = "output" if name == "output" else f"{name}: output"
            raise UsageError(
                f"{source}: {place} is one place for all trials.", "Leave it out: each has its own folder."
            )
    resolve_recipe(rest, Path(), source)
    dimensions = tuple(_dimension(str(name), said, f"{source}: search: {name}") for name, said in section.items())
    space = Space(rest, dimensions, source)
    _require_possible(space)
    return space


def _dimension(name: str, said: object, source: str) -> Dimension:
    stage, dot, option = name.partition(".")
    if dot and stage not in SEARCHED:
        raise UsageError(f"{source} is in no stage that is searched.", f"Name one of {', '.join(SEARCHED)}.")
    if option == "output":
        raise UsageError(f"{source} is no choice: each trial has its own folder.", "Leave it out.")
    cls, option = (SECTIONS[stage], option) if dot else (TrainOptions, name)
    try:
        if isinstance(said, list | tuple) and said:
            return Dimension(name, tuple(_typed(cls, option, value, source) for value in said))
        if isinstance(said, Mapping):
            return Dimension(name, _interval(cls, option, said, source))
    except FieldError as error:
        raise UsageError(f"{str(error).rstrip('?.')}.", EXAMPLE) from None
    raise UsageError(f"{source} is neither a list of choices nor a range.", EXAMPLE)


def _interval(cls: type, option: str, said: Mapping[str, Any], source: str) -> Interval:
    numbers = {
        key: _typed(cls, option, value, f"{source}: {key}") if key in ("low", "high", "step") else value
        for key, value in said.items()
    }
    interval = parse_dataclass(Interval, numbers, source)
    low, high = interval.low, interval.high
    if not low < high or (interval.log and (low <= 0 or interval.step is not None)):
        wanted = "low < high" + (", above 0 and without a step" if interval.log else "")
        raise FieldError(f"{source} is {low:g} … {high:g}, and has to have {wanted}")
    whole = all(isinstance(numbers[key], int) for key in ("low", "high"))
    return dataclasses.replace(interval, low=int(low), high=int(high)) if whole else interval


def _typed(cls: type, option: str, value: object, source: str) -> Value:
    """What the option takes for `value`, if that is a single number, word or truth; else as it is written."""
    typed = getattr(parse_options(cls, {option: value}, source), option)
    return typed if isinstance(typed, int | float | str | bool | None) else str(value)


def _require_possible(space: Space) -> None:
    """Raise UsageError for a value at which the recipe can't be resolved, the first values of the others given."""
    first = {dimension.name: dimension.ends[0] for dimension in space.dimensions}
    for dimension in space.dimensions:
        for value in dimension.ends:
            space.recipe(first | {dimension.name: value}, Path(), Path())
