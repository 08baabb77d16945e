"""`slimkit env`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from slimkit.cli.command import command
from slimkit.cli.output import Output, table


@dataclass(frozen=True)
class EnvOptions:
    """There is nothing to choose."""


@command(EnvOptions, example="slimkit env --json")
def env(options: EnvOptions, output: Output) -> None:
    """Show versions, processor, int8 kernels and threads, to paste into a bug report."""
    from slimkit.core.environment import describe_environment

    environment = describe_environment()
    output.result(environment, human=[table(None, ("", ""), list(_rows(environment)))])


def _rows(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _rows(value)
        else:
            yield key.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value)
