"""What the user sees: results on stdout (tables, one JSON object, or a path), logs and progress bars on stderr."""

import io
import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimkit.core.progress import Advance
from slimkit.core.torchrun import launch

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bars
    from rich.table import Table

GRACE = 10.0  # seconds that the first of several processes has to tell a failure; torchrun ends the others meanwhile
NO_TERMINAL_WIDTH = 200  # columns where nobody's window limits them: a table takes what it needs


class Output:
    """The one place that prints. Of the processes that torchrun started the first alone does."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Read the form from the command line itself, so that even a mistyped flag is told in it."""
        self.arguments = tuple(arguments)
        self.json = "--json" in arguments
        self.debug = "--debug" in arguments
        self.quiet = any(re.match("--quiet$|-[fh]*q", argument) for argument in arguments)  # -fq and -qo too
        self.launch = launch()
        self._printed_json = False
        self._open_tasks = 0
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # an ASCII terminal gets a ? for an arrow, and no error

    @cached_property
    def _stdout(self) -> "Console":
        return _console(stderr=False)

    @cached_property
    def _stderr(self) -> "Console":
        return _console(stderr=True)

    @cached_property
    def _bars(self) -> "Bars":
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        texts = (TextColumn("{task.description}"), TextColumn("{task.fields[note]}"))
        columns = (texts[0], BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), texts[1])
        return Progress(*columns, console=self._stderr, transient=True)

    def result(self, data: dict[str, Any], *, path: Path | None = None, human: "Sequence[RenderableType]" = ()) -> None:
        """Print a command's result: `data` as JSON, or `path` alone if quiet, or else `human` one after the other."""
        if not self.launch.is_first:
            return
        if self.json:
            self._print_json(data)
        elif self.quiet:
            if path is not None:
                print(path)
        else:
            for renderable in human:
                self._stdout.print(renderable)

    def failure(self, message: str, hint: str) -> None:
        """Tell what went wrong, and how to fix it, on stderr; in JSON on stdout too, unless a result is there.

        A process that is not the first tells what went wrong in it alone.
        """
        first = self.launch.is_first
        if not first:
            time.sleep(GRACE)
        self._say(f"error: {'' if first else f'process {self.launch.rank}: '}{message}", style="bold red")
        self._say(f"hint: {hint}")
        if first and self.json and not self._printed_json:
            self._print_json({"error": message, "hint": hint})

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """The core's `Progress`: a bar on a terminal, elsewhere one line when the task is done."""
        if self.quiet or not self.launch.is_first:
            yield lambda units, note="": None
        elif self._stderr.is_terminal:
            with self._bar(description, total) as advance:
                yield advance
        else:
            start = time.monotonic()
            yield lambda units, note="": None
            self._say(f"{description}: done in {time.monotonic() - start:.1f} s")

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Show what the core logs, on stderr, while the block runs; other libraries' warnings only to debug."""
        logger = logging.getLogger("slimkit")
        handler = _Handler(self)
        logger.addHandler(handler)
        logger.setLevel(self._log_level)
        try:
            with warnings.catch_warnings():
                if not self.debug:
                    warnings.simplefilter("ignore")
                yield
        finally:
            logger.removeHandler(handler)

    @property
    def _log_level(self) -> int:
        if not self.launch.is_first:
            return logging.CRITICAL
        return logging.WARNING if self.quiet else logging.DEBUG if self.debug else logging.INFO

    @contextmanager
    def _bar(self, description: str, total: int) -> Iterator[Advance]:
        task = self._bars.add_task(description, total=total, note="")
        self._open_tasks += 1
        self._bars.start()
        try:
            yield lambda units, note="": self._bars.update(task, advance=units, note=note)
        finally:
            self._bars.remove_task(task)
            self._open_tasks -= 1
            if not self._open_tasks:
                self._bars.stop()

    def _say(self, line: str, style: str | None = None) -> None:
        self._stderr.print(line, style=style, soft_wrap=True)

    def _print_json(self, data: dict[str, Any]) -> None:
        print(json.dumps(data, indent=2, default=str))
        self._printed_json = True


class _Handler(logging.Handler):
    """Prints log records above a running bar instead of into it."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        self._output._say(prefix + record.getMessage())


def _console(stderr: bool) -> "Console":
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}  # paths are shown as they are
    return Console(stderr=stderr, **plain, width=None if stream.isatty() else NO_TERMINAL_WIDTH)


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[object]], total: bool = False) -> "Table":
    """A table whose texts fold where room is short, but never a number. With `total` the last row is set off."""
    from rich import box
    from rich.table import Table

    result = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    result.show_header = any(columns)
    for index, name in enumerate(columns):
        numeric = all(_is_number(row[index]) for row in rows)
        result.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for index, row in enumerate(rows):
        if total and index == len(rows) - 1:
            result.add_section()
        result.add_row(*(text(value) for value in row))
    return result


def foreign_code(names: Sequence[str]) -> list[str]:
    """What is to be said of code in a model folder that is not slimkit's own."""
    return [f"{name} in the folder is not this slimkit's: it was not run, slimkit's own was." for name in names]


def walls_around(walls: dict[str, str]) -> str:
    """What is to be said of the sandbox of a stranger's code: for each wall, "" where it holds, or why not."""
    from slimkit.core.strangers.walls import BUBBLEWRAP

    held = ", ".join(name for name, why in walls.items() if not why)
    missing = [f"{name} ({why})" for name, why in walls.items() if why and name != BUBBLEWRAP]
    absent = f" {BUBBLEWRAP}, which is not required, is absent ({why})." if (why := walls.get(BUBBLEWRAP)) else ""
    return (
        f"Walls around its code: {held}; {'missing: ' + ', '.join(missing) if missing else 'none is missing'}.{absent}"
    )


def threads(count: int) -> str:
    """The number of threads in words."""
    return "1 thread" if count == 1 else f"{count} threads"


def text(value: object) -> str:
    """A value as a table shows it: integers in groups of three digits, other numbers to three decimals."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return str(value)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
