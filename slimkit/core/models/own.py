"""Networks of the user's own, by where their code is:

net.py:Net            a class or function in a file
package.module:Net    a class or function that can be imported
timm:resnet18d        a network of timm's
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from slimkit.core.architecture import Preprocessing
from slimkit.core.errors import ModelError, NetworkError, UsageError, first_line
from slimkit.core.sizes import as_size

log = logging.getLogger("slimkit")

TIMM = "timm"


def is_own(model: str) -> bool:
    """Whether a model argument names code: it has a colon, and is no file or folder."""
    place, _, name = model.rpartition(":")
    names_code = place == TIMM or place.endswith(".py") or name.isidentifier()
    return bool(place) and names_code and not Path(model).exists()


def is_users_code(model: str) -> bool:
    """Whether a model argument names the user's own code, which may bring weights of its own."""
    return is_own(model) and not model.startswith(f"{TIMM}:")


def build_own(model: str, num_classes: int | None, arguments: Mapping[str, Any], pretrained: bool = False) -> nn.Module:
    """The network that the model argument names, made with `arguments`, in float32 and eval mode.

    num_classes: what its parameter of that name gets, if it has one and `arguments` do not give it; None: nothing.
    pretrained: timm's weights. Raises UsageError, ModelError and NetworkError.
    """
    place, _, name = model.rpartition(":")
    if place == TIMM:
        return _build_timm(name, _with_classes(num_classes, arguments), pretrained)
    if pretrained:
        raise UsageError(f"--pretrained is not for {model}.", "Give its weights with --weights FILE.")
    factory = _find(place, name)
    if isinstance(factory, nn.Module):
        if arguments:
            raise UsageError(f"{model} is a network already, and takes no --model-args.", "Name its class.")
        return _checked(factory, model)
    given = _with_classes(num_classes, arguments) if "num_classes" in _parameters(factory) else arguments
    try:
        network = factory(**given)
    except Exception as error:  # the user's own code runs here, and may raise anything
        wanted = ", ".join(_parameters(factory)) or "nothing"
        raise ModelError(
            f"{model} can't be made{_line_of(error)}: {_say(error)}",
            f"Give what it takes ({wanted}) with --model-args, such as '{{\"num_classes\": 37}}'.",
        ) from error
    return _checked(network, model)


def _with_classes(num_classes: int | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {**({} if num_classes is None else {"num_classes": num_classes}), **arguments}


def own_type(model: str) -> str:
    """The architecture's `model_type`: the name of the class or function, or timm's name."""
    return re.sub(r"[^\w.-]", "_", model.rpartition(":")[2])


def own_base(model: str) -> str:
    """The model argument without the folders of this machine."""
    place, colon, name = model.rpartition(":")
    return f"{Path(place).name}{colon}{name}"


def own_preprocessing(model: str) -> Preprocessing | None:
    """What timm's weights of the network want; None for a network that says nothing of it. Nothing is downloaded."""
    place, _, name = model.rpartition(":")
    if place != TIMM:
        return None
    _require_timm_name(name)
    config = _timm("data").resolve_data_config(pretrained_cfg=_timm().get_pretrained_cfg(name).to_dict())
    _, height, width = config["input_size"]
    return Preprocessing(
        resize=as_size(*(math.floor(side / config["crop_pct"]) for side in (height, width))),
        crop=as_size(height, width),
        mean=tuple(map(float, config["mean"])),
        std=tuple(map(float, config["std"])),
        interpolation=str(config["interpolation"]),
    )


def parse_arguments(text: str | None) -> dict[str, Any]:
    """The arguments in --model-args. Raises UsageError for anything but one JSON object."""
    try:
        arguments = json.loads(text) if text is not None else {}
    except ValueError as error:
        raise UsageError(f"--model-args {text!r} is not JSON: {error}.", _JSON_HINT) from None
    if not isinstance(arguments, dict):
        raise UsageError(f"--model-args {text!r} is no JSON object.", _JSON_HINT)
    return arguments


_JSON_HINT = "Write an object in single quotes: --model-args '{\"num_classes\": 37}'."


def _find(place: str, name: str) -> Any:
    """The object called `name` in a file or a module."""
    code = _run_file(Path(place)) if place.endswith(".py") else _import(place)
    if hasattr(code, name):
        found = getattr(code, name)
        if not callable(found):
            raise UsageError(f"{name} in {place} is a {type(found).__name__}, no class or function.", "Name another.")
        return found
    names = [key for key, value in vars(code).items() if callable(value) and not key.startswith("_")]
    networks = [key for key in names if isinstance(vars(code)[key], type) and issubclass(vars(code)[key], nn.Module)]
    near = difflib.get_close_matches(name, names, n=3) or networks[:5]
    hint = f"Did you mean {', '.join(near)}?" if near else "Name a class or function that gives an nn.Module."
    raise UsageError(f"{place} has nothing called {name}.", hint)


def _run_file(file: Path) -> ModuleType:
    """The module in a file, which may import its neighbours as a script does."""
    if not file.is_file():
        raise UsageError(f"There is no file {file}.", "Write the model as FILE.py:NAME.")
    known = sys.modules.get(file.stem)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == file.resolve():
        return known
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    if known is None:  # a file that is called like a library does not replace it
        sys.modules[file.stem] = code  # where dataclasses and the file's neighbours look for it
    try:
        spec.loader.exec_module(code)
    except Exception as error:  # the user's own code runs here, and may raise anything
        if known is None:
            del sys.modules[file.stem]
        raise ModelError(f"{file} can't be run{_line_of(error)}: {_say(error)}", "Correct its code.") from error
    return code


def _import(place: str) -> ModuleType:
    try:
        if "" not in sys.path:
            sys.path.insert(0, "")  # as `python -m` does: a package in the working folder is found
        return importlib.import_module(place)
    except ImportError as error:
        raise UsageError(
            f"{place} can't be imported: {error}.", "Install it, or write FILE.py:NAME for a class in a file."
        ) from error
    except Exception as error:  # as above
        raise ModelError(f"{place} can't be imported{_line_of(error)}: {_say(error)}", "Correct its code.") from error


def _checked(network: object, model: str) -> nn.Module:
    """The network, in float32: on a CPU half precision is slower, and few operations have it."""
    if not isinstance(network, nn.Module):
        raise UsageError(f"{model} gives a {type(network).__name__}, no torch.nn.Module.", "Name another.")
    types = {p.dtype for p in network.parameters() if p.is_floating_point()}
    if any(str(kind) != "torch.float32" for kind in types):
        log.info("%s has weights in %s: they are computed with in float32.", model, " and ".join(map(str, types)))
    return network.float().eval()


def _parameters(factory: Callable[..., Any]) -> list[str]:
    """The names of what a class or function takes."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _build_timm(name: str, arguments: Mapping[str, Any], pretrained: bool) -> nn.Module:
    _require_timm_name(name)
    try:
        network = _timm().create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # its code takes whatever --model-args say, and may raise anything
        if pretrained and isinstance(error, OSError | RuntimeError):
            raise NetworkError(
                f"timm's weights of {name} can't be had: {first_line(error)}",
                "Connect to the network, or give a file with --weights.",
            ) from error
        raise ModelError(f"timm can't make {name}: {first_line(error)}", "Correct --model-args.") from error
    return _checked(network, f"{TIMM}:{name}")


def _require_timm_name(name: str) -> None:
    timm = _timm()
    if timm.is_model(name):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"Did you mean {', '.join(near)}?" if near else "timm.list_models() lists its names."
    raise UsageError(f"timm has no network called {name}.", hint)


def _timm(part: str = "") -> Any:
    try:
        return importlib.import_module(f"{TIMM}.{part}" if part else TIMM)
    except ImportError as error:
        raise UsageError(f"timm can't be imported: {error}.", "Install it: pip install timm") from error


def _line_of(error: Exception) -> str:
    """The last line of Python that an error came through: " at net.py:12"."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):
        return f" at {Path(error.filename or '').name}:{error.lineno}"
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _say(error: Exception) -> str:
    """What an error says, with its kind: a KeyError says no more than the key."""
    return f"{type(error).__name__}: {first_line(error)}"
