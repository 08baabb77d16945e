"""From an options dataclass to a Typer command: one flag for each field, with the field's type and default."""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from slimkit.cli.config import reject_option_name, require_resolved
from slimkit.cli.options import FLAGS, HOW_TO_RUN, config_flag
from slimkit.cli.output import Output
from slimkit.core.checks import check_options
from slimkit.core.errors import UsageError
from slimkit.core.options import LongRunOptions, ModelOptions

Options = TypeVar("Options")


@dataclass(frozen=True)
class Command:
    """A command as `app.py` registers it."""

    name: str
    run: Callable[..., None]  # its signature is what Typer reads the flags from
    example: str


def command(
    options_type: type[Options], *, example: str, **flags: Any
) -> Callable[[Callable[[Options, Output], None]], Command]:
    """Make `function(options, output)` a command; `flags` are those that are not in `cli/options.py`, by field name."""

    def decorate(function: Callable[[Options, Output], None]) -> Command:
        def run(context: typer.Context, **values: Any) -> None:
            fields = dataclasses.fields(options_type)  # type: ignore[arg-type]  # always a dataclass
            _reject_option_names(context)
            given = {field.name: values[field.name] for field in fields}
            options = options_type(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
            _run(function, options, context.obj)

        run.__doc__ = function.__doc__
        run.__signature__ = _signature(options_type, FLAGS | flags)  # type: ignore[attr-defined]  # inspect reads it
        return Command(function.__name__, run, example)

    return decorate


def _run(function: Callable[[Options, Output], None], options: Options, output: Output) -> None:
    with output.logging():
        try:
            if output.launch.count > 1 and not isinstance(options, LongRunOptions):
                raise UsageError(
                    "torchrun starts a command several times, and train and distill alone can share their work.",
                    "Run this one by itself: slimkit in place of torchrun -m slimkit.",
                )
            check_options(options)
            if isinstance(options, ModelOptions) and output.launch.is_first:
                _check_outputs(options)
            function(options, output)
        except OSError as error:
            if error.filename is None:  # a full disk, say, does not tell which file was being written
                error.filename = str(getattr(options, "output", "")) or None
            raise


def _check_outputs(options: ModelOptions) -> None:
    from slimkit.core.run import check_outputs

    check_outputs(options)
    if getattr(options, "verify", None) is None:  # else nothing is written
        require_resolved(options)


def _reject_option_names(context: typer.Context) -> None:
    """Raise UsageError for an option whose value was left out, so that it took the next option for one."""
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.param_type_name == "option" and isinstance(value, str | Path):
            reject_option_name(context, parameter.opts, str(value))


def _type(hint: Any, flag: Any) -> Any:
    """What Typer reads a flag as; one with a parser of its own may have a type that Typer does not know."""
    if flag.parser:
        return Any
    kinds = typing.get_args(hint)
    return list[kinds[0]] if typing.get_origin(hint) is tuple and Ellipsis in kinds else hint  # type: ignore[valid-type]


def _signature(options_type: type, flags: dict[str, Any]) -> inspect.Signature:
    hints, own = get_type_hints(options_type), options_type.__annotations__
    fields = sorted(
        dataclasses.fields(options_type), key=lambda f: (flags[f.name].rich_help_panel is not None, f.name not in own)
    )  # as --help shows them: the command's own flags, those of every model, then the panel of shared ones
    parameters: list[tuple[str, Any, Any]] = [("context", typer.Context, inspect.Parameter.empty)]
    parameters += [(f.name, Annotated[_type(hints[f.name], flags[f.name]), flags[f.name]], f.default) for f in fields]
    if "config" not in hints:
        parameters.append(("config", Annotated[str | None, config_flag(options_type)], None))
    parameters += [(name, Annotated[bool, flag], False) for name, flag in HOW_TO_RUN.items()]
    return inspect.Signature(
        [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=a, default=d) for n, a, d in parameters]
    )
