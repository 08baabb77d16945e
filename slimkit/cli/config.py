"""Options in a YAML file: flags beat the file, the file beats the defaults. What a command ran with is saved as one."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import typer

from slimkit import __version__
from slimkit.core.errors import UsageError
from slimkit.core.typed import FieldError, parse_dataclass

EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")  # 1e-3: text in YAML 1.1, a number in YAML 1.2


def load_defaults(context: typer.Context, options_type: type, file: str | None) -> None:
    """Make what the YAML `file` says the defaults of the running command's flags. Raises UsageError."""
    if file is None or context.resilient_parsing:
        return
    settings = read_settings(Path(file))
    try:
        options: Any = parse_dataclass(options_type, settings, file)
    except FieldError as error:
        mend = f"Correct that line; `{context.command_path} --help` lists the options."
        raise UsageError(str(error) + "." * (not str(error).endswith("?")), mend) from None
    context.default_map = {key: getattr(options, key) for key in settings}


def read_settings(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; `image-size` and `image_size` are the same key. Raises UsageError."""
    import yaml

    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UsageError(f"There is no file {file}.", "Give --config a YAML file that exists.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(
            f"{file} can't be read as YAML: {_reason(error)}.", "Write it as `key: value` lines."
        ) from None
    if not isinstance(data, dict):
        raise UsageError(f"{file} holds no mapping of options.", "Write it as `key: value` lines.")
    return _normalize(data)


def save_resolved(command: str, options: Any) -> None:
    """Write every option that `command` ran with to `<output>.yaml`, from which -c repeats it."""
    import yaml

    from slimkit.core.files import write_atomically

    path = Path(f"{options.output}.yaml")
    values = dataclasses.asdict(options)
    del values["force"]  # to repeat a run must not overwrite unasked
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    header = f"# slimkit {__version__}. Again: slimkit {command} -c {path}\n"
    write_atomically(path, header + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def _normalize(settings: dict[Any, Any]) -> dict[str, Any]:
    return {str(key).replace("-", "_"): _normalize_value(value) for key, value in settings.items()}


def _normalize_value(value: object) -> object:
    if isinstance(value, dict):
        return _normalize(value)
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else " ".join(str(error).split())
