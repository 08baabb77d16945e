"""Turning parsed JSON and YAML into typed dataclasses, with errors that name the field."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from slimkit.core.sizes import Size, parse_size

T = TypeVar("T")
TRUTH = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


class FieldError(ValueError):
    """A field is missing, unknown or of a wrong type; the message names it."""


def parse_dataclass(cls: type[T], data: object, source: str) -> T:
    """Build `cls` from parsed JSON or YAML; `source` is the path to it that errors name. Raises FieldError."""
    if not isinstance(data, dict):
        raise _wrong(source, "an object", data)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is always a dataclass
    reject_unknown(data, fields, source)
    missing = [n for n, f in fields.items() if n not in data and not _has_default(f)]
    if missing:
        raise FieldError(f"{source} lacks the field {missing[0]!r}")
    return cls(**{key: _parse(hints[key], value, f"{source}: {key}") for key, value in data.items()})


def parse_options(cls: type[T], data: Mapping[str, object], source: str) -> T:
    """As `parse_dataclass`, from what a person wrote: 8 for "8", "1e-3" for 0.001, "yes" for true, one item for a list.

    Raises FieldError.
    """
    hints = typing.get_type_hints(cls)
    reject_unknown(data, hints, source)
    meant = {key: _as_meant(hints[key], value, f"{source}: {key}") for key, value in data.items()}
    return parse_dataclass(cls, meant, source)


def _as_meant(hint: Any, value: object, source: str) -> object:
    """`value` as one that the annotation allows, where what was meant is beyond doubt; else as it is."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if isinstance(value, str) and set(typing.get_args(Size)) <= {*args}:
            value = value if (size := parse_size(value)) is None else size
        return None if value is None else _as_meant(_meant(args, value), value, source)
    if value is None:
        raise FieldError(f"{source} has no value: write one, or leave the line out")
    if typing.get_origin(hint) is tuple:
        return [_as_meant(args[0], item, source) for item in (value if isinstance(value, list | tuple) else [value])]
    if hint in (str, Path) and isinstance(value, bool):
        raise FieldError(f"{source} should be text, not {value!r}: put it in quotes")
    if hint in (str, Path) and isinstance(value, int | float):
        return str(value)
    if hint is bool and isinstance(value, str):
        return TRUTH.get(value.lower(), value)
    return _number(hint, value) if hint in (int, float) and isinstance(value, str | float) else value


def _meant(kinds: tuple[Any, ...], value: object) -> Any:
    """Of the kinds in a union the one that `value` is to be: a word that is listed, that for lists, or the first."""
    is_list = isinstance(value, list | tuple)
    given = [kind for kind in kinds if kind is not type(None)]
    if isinstance(value, str) and (words := [kind for kind in given if value in typing.get_args(kind)]):
        return words[0]
    return next((kind for kind in given if is_list == (typing.get_origin(kind) is tuple)), given[0])


def _number(kind: type, value: str | float) -> object:
    """What a text says as an int or a float; 5.0 is an int too, 0.5 is not."""
    try:
        number = float(value)
        return (int(number) if number == int(number) else value) if kind is int else number
    except (ValueError, OverflowError):
        return value


def reject_unknown(data: typing.Iterable[str], known: typing.Iterable[str], source: str) -> None:
    """Raise FieldError for the first key of `data` that is not `known`, with the nearest one that is."""
    names = list(known)
    for key in data:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5 if len(str(key)) < 3 else 0.6)
            raise FieldError(
                f"{source} has an unknown field {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )


def _has_default(f: "dataclasses.Field[Any]") -> bool:
    return f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING


def _parse(hint: Any, value: object, source: str) -> Any:
    """Check `value` against one of the few kinds of annotation that our JSON and YAML use."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _parse(_meant(args, value), value, source)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(source, "a list", value)
        return tuple(_parse(args[0], item, f"{source}[{i}]") for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, Mapping):
        return {name: _parse(args[1], item, f"{source}: {name}") for name, item in value.items()}
    if origin is Literal:
        if value not in args:
            raise _wrong(source, "one of " + ", ".join(map(str, args)), value)
        return value
    if dataclasses.is_dataclass(hint):
        return parse_dataclass(typing.cast(type, hint), value, source)
    return _parse_plain(origin or hint, value, source)


def _parse_plain(kind: type, value: object, source: str) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(source, f"of type {kind.__name__}", value)
    return value


def _wrong(source: str, wanted: str, value: object) -> FieldError:
    return FieldError(f"{source} should be {wanted}, not {value!r:.60}")
