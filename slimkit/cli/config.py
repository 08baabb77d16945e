"""Options in a YAML file: flags beat the file, the file beats the defaults. What a command ran with is saved as one."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer

from slimkit import __version__
from slimkit.cli.values import OTHER_NAMES
from slimkit.core.errors import FolderError, UsageError
from slimkit.core.files import WRITTEN_HERE, require_file, write_atomically
from slimkit.core.options import plain_options
from slimkit.core.typed import FieldError, parse_options


def load_defaults(context: typer.Context, options_type: type, file: str | None) -> None:
    """Make what the YAML `file` says the defaults of the running command's flags. Raises UsageError."""
    if file is None or context.resilient_parsing:
        return
    reject_option_name(context, ["--config", "-c"], file)
    settings = read_settings(Path(file))
    try:
        options: Any = parse_options(options_type, settings, file)
    except FieldError as error:
        hint = f"Correct that line; `{context.command_path} --help` lists the options."
        raise UsageError(str(error) + "." * (not str(error).endswith("?")), hint) from None
    context.default_map = {key: getattr(options, key) for key in settings}


def reject_option_name(context: typer.Context, flags: Sequence[str], value: str) -> None:
    """Raise UsageError for a value that is the name of an option: that of the flag, by its names, was left out."""
    if not re.match("-[-a-zA-Z]", value):
        return
    flag, short = max(flags, key=len), min(flags, key=len)
    words = context.obj.arguments
    if any(
        after == value and (one in flags or re.fullmatch(f"-[a-z]*{short[1:]}", one)) for one, after in pairwise(words)
    ):
        raise UsageError(
            f"{flag} has no value: {value} comes next, which looks like an option.",
            f"Give {flag} a value; a file of that name is ./{value}.",
        )


def read_settings(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; `image-size` and `image_size` are the same key. Raises UsageError."""
    import yaml

    try:
        data = yaml.load(file.read_text(encoding="utf-8-sig"), _loader()) or {}  # a safe one
    except FileNotFoundError:
        raise UsageError(f"There is no file {file}.", "Name a YAML file that exists.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(
            f"{file} can't be read as YAML: {_reason(error)}.", "Write it as `key: value` lines."
        ) from None
    if not isinstance(data, dict):
        raise UsageError(f"{file} holds no mapping of options.", "Write it as `key: value` lines.")
    return data


def require_resolved(options: Any) -> None:
    """Raise FolderError where `save_resolved` must not write: with -f it replaces what slimkit wrote, and no more."""
    path = _resolved_file(options)
    require_file(path, force=True)
    if not path.exists() or _says(path, options):
        return
    if not options.force:
        raise FolderError(
            f"{path} exists already, and says other options than these.",
            "Give -f/--force to replace it, or -o/--output to write elsewhere.",
        )
    if not path.read_text(encoding="utf-8", errors="replace").startswith(WRITTEN_HERE):
        raise FolderError(
            f"{path} was not written by slimkit, so it is not replaced by the options of this run.",
            "Give it another name, or give another -o/--output.",
        )


def save_resolved(command: str, options: Any) -> None:
    """Write every option that `command` ran with to `<output>.yaml`, from which -c repeats it.

    A file that says these options already stays as it is.
    """
    import yaml

    path = _resolved_file(options)
    if path.exists() and _says(path, options):
        return
    header = f"{WRITTEN_HERE}{__version__}. Again: slimkit {command} -c {path}\n"
    write_atomically(path, header + yaml.safe_dump(plain_options(options), sort_keys=False, allow_unicode=True))


def _resolved_file(options: Any) -> Path:
    output: Path = options.output
    report = ".sensitivity" if getattr(options, "sensitivity", False) else ""
    return output.with_name(f"{output.name}{report}.yaml")


def _says(file: Path, options: Any) -> bool:
    """Whether `file` gives these very options when a command reads it."""
    try:
        settings = read_settings(file)
        return plain_options(parse_options(type(options), settings, str(file))) == plain_options(options)
    except (UsageError, FieldError):
        return False


def _loader() -> Any:
    """PyYAML's safe loader, save that numbers and dates stay the text that they are written as, and keys are our names.

    Only the option tells what is meant: 010 and 1.10 may be names of folders, and 1e-3 is no number to YAML 1.1.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [_name(key.value) for key, _ in node.value]
            if again := next((name for index, name in enumerate(names) if name in names[:index]), None):
                raise yaml.constructor.ConstructorError(None, None, f"{again} is given twice", node.start_mark)
            return {_name(key): value for key, value in super().construct_mapping(node, deep=True).items()}

    typed = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in typed]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def _name(key: object) -> str:
    """The option that a key means, which may be another name of it."""
    flag = "--" + str(key).replace("_", "-")
    return OTHER_NAMES.get(flag, flag).partition("=")[0].removeprefix("--").replace("-", "_")


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else " ".join(str(error).split())
