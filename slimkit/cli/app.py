"""The `slimkit` program: its commands, and the one place where exceptions become messages and exit codes."""

import functools
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from slimkit import __version__
from slimkit.cli import data
from slimkit.cli.benchmark import benchmark
from slimkit.cli.command import Command
from slimkit.cli.compress import compress
from slimkit.cli.distill import distill
from slimkit.cli.env import env
from slimkit.cli.export import export
from slimkit.cli.failures import Terminated, explain
from slimkit.cli.inspect import inspect
from slimkit.cli.output import Output
from slimkit.cli.prune import prune
from slimkit.cli.quantize import quantize
from slimkit.cli.report import report
from slimkit.cli.score import score
from slimkit.cli.train import train
from slimkit.cli.tune import tune
from slimkit.cli.values import FlagsCommand
from slimkit.memory import keep_freed_memory
from slimkit.waiting import limit_spinning

COMMANDS = (train, prune, distill, quantize, inspect, benchmark, score, compress, tune, report, export, env)
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 usage, 3 a budget or a check was missed, 130 interrupted, 143 terminated."

app = typer.Typer(
    name="slimkit",
    help="Make an image classifier small and fast, and prove it. The commands follow one another in an empty folder, "
    "each with no argument: train, prune, distill, quantize, inspect, benchmark, score; compress is all of them.",
    epilog=EXIT_CODES,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(group: typer.Typer, command: Command) -> None:
    group.command(command.name, cls=FlagsCommand, epilog=f"Example: {command.example}")(command.run)


for _command in COMMANDS:
    _add(app, _command)
_data = typer.Typer(name="data", help=data.HELP, epilog=f"Example: {data.check.example}")
_add(_data, data.check)
app.add_typer(_data)


def _print_version(value: bool) -> None:
    if value:
        print(f"slimkit {__version__}")
        raise typer.Exit


_parser_of = functools.cache(typer.main.get_command)  # to make it takes as long as a small command


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (those of the process by default) and return the exit code."""
    limit_spinning(os.environ)
    keep_freed_memory()
    arguments = sys.argv[1:] if arguments is None else arguments
    output = Output(arguments)
    previous = {number: signal.signal(number, handler) for number, handler in _handlers(output).items()}
    try:
        code = _run(arguments or ["--help"], output)
        sys.stdout.flush()
        return code
    except SystemExit:  # the shell's completion and a closed pipe end this way
        raise
    except BaseException as error:
        return _fail(error, output)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(arguments: Sequence[str], output: Output) -> int:
    code = _parser_of(app).main(args=list(arguments), prog_name="slimkit", standalone_mode=False, obj=output)
    if code == 130:  # how Typer returns what Ctrl-C raised
        raise KeyboardInterrupt
    return code or 0


def _fail(error: BaseException, output: Output) -> int:
    if output.debug:
        traceback.print_exception(error)
    failure = explain(error)
    output.failure(failure.message, failure.hint)
    return failure.exit_code


def _handlers(output: Output) -> dict[signal.Signals, Any]:
    """What signals do. A process that is not the first has nothing to clean up, and may be waiting for the others."""
    if output.launch.is_first:
        return {signal.SIGTERM: _terminate}
    return {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.SIG_DFL}


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not stop the clean-up
    raise Terminated
