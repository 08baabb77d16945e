"""The command line apart from what it computes: flags, configuration files, errors, exit codes, forms of output."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

import slimkit
from slimkit.cli.app import COMMANDS, main
from slimkit.cli.failures import Terminated, explain
from slimkit.core.errors import MissedError
from slimkit.core.options import DistillOptions, PruneOptions, ScoreOptions, TrainOptions

NAMES = (
    "train",
    "prune",
    "distill",
    "quantize",
    "inspect",
    "benchmark",
    "score",
    "compress",
    "tune",
    "report",
    "export",
    "env",
)


class Result(typing.NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typing.Any:
    """Run slimkit in this process, in an empty folder; every try gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        code = main(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def words(text: str) -> str:
    """`text` without frames and line ends, which depend on the width of the window."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def python(code: str, **settings: typing.Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **settings)


def test_help_of_everything_imports_no_torch() -> None:
    done = python(
        "import sys; from slimkit.cli.app import main, COMMANDS\n"
        "names = [[], ['data'], ['data', 'check'], *([c.name] for c in COMMANDS)]\n"
        "for name in names: assert main([*name, '--help']) == 0\n"
        "main(['prune', '--raet', '1']); main(['--version'])\n"
        "print([m for m in ('torch', 'torchvision', 'onnx', 'numpy', 'PIL') if m in sys.modules])"
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_the_commands_in_the_order_of_their_use(run: typing.Any) -> None:
    assert tuple(command.name for command in COMMANDS) == NAMES
    listed = re.findall(rf"│ ({'|'.join(NAMES)}) ", run("-h").out)
    assert tuple(listed) == NAMES
    assert run().out == run("--help").out


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_has_an_example_of_it(run: typing.Any, name: str) -> None:
    result = run(name, "-h")
    assert result.code == 0
    assert f"Example: slimkit {name}" in words(result.out)
    assert run(name, "--help").out == result.out


def test_help_of_a_group_lists_its_commands_and_each_has_an_example(run: typing.Any) -> None:
    assert "│ data " in run("-h").out
    assert re.search(r"│ check ", run("data", "-h").out)
    assert "Example: slimkit data check" in words(run("data", "check", "-h").out)
    assert "Did you mean 'check'?" in run("data", "chek").err
    assert "--strict" in run("data", "check", "--strct").err


def test_help_shows_the_defaults_of_the_dataclasses(run: typing.Any) -> None:
    train, distill = words(run("train", "-h").out), words(run("distill", "-h").out)
    assert f"[default: {TrainOptions.batch_size}]" in train
    assert f"[default: {TrainOptions.output}]" in train
    assert f"[default: {DistillOptions.temperature}]" in distill
    assert f"[default: {PruneOptions.calibration_images}]" in words(run("prune", "-h").out)


@pytest.mark.parametrize(("name", "options"), [("train", TrainOptions), ("score", ScoreOptions)])
def test_every_option_has_a_flag(run: typing.Any, name: str, options: type) -> None:
    text = run(name, "-h").out
    for field in dataclasses.fields(options):
        shown = field.name if field.name in ("model", "others") else f"--{field.name.replace('_', '-')}"
        assert shown in text


def test_version(run: typing.Any) -> None:
    assert run("--version") == (0, f"slimkit {slimkit.__version__}\n", "")


def test_module_runs_like_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "slimkit", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"slimkit {slimkit.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prune", "--raet", "0.3"], "--rate"),
        (["prun"], "Did you mean 'prune'?"),
        (["prune", "--rate", "much"], "'--rate'"),
        (["prune", "--rate"], "'--rate' requires an argument"),
        (["prune", "one", "two"], "unexpected extra argument"),
        (["quantize", "--scheme", "statik"], "'statik' is not one of 'static', 'dynamic'"),
        (["train", "--device", "tpu"], "'tpu' is not one of"),
    ],
)
def test_wrong_usage_is_told_in_two_lines(run: typing.Any, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    error, hint = err.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("hint: ")
    assert "--help" in hint


@pytest.mark.parametrize(
    "arguments", [["prune", "--raet", "1"], ["prune", "nowhere/"], ["prune", "-c", "nowhere.yaml"]]
)
def test_failure_in_json_is_one_object(run: typing.Any, arguments: list[str]) -> None:
    code, out, err = run(*arguments, "--json")
    assert code in (1, 2)
    assert set(json.loads(out)) == {"error", "hint"}
    assert json.loads(out)["error"] in err


def test_model_that_is_not_there_says_what_to_run_first(run: typing.Any) -> None:
    code, out, err = run("prune")
    assert (code > 0, out) == (True, "")
    assert "runs/train" in err
    assert "slimkit train" in err


def test_file_beats_defaults_and_flags_beat_the_file(run: typing.Any) -> None:
    Path("own.yaml").write_text("model: from/file\nimage-size: 48\n")
    assert "from/file" in run("prune", "-c", "own.yaml").err
    assert "from/flag" in run("prune", "from/flag", "-c", "own.yaml").err
    assert "from/flag" in run("prune", "--config", "own.yaml", "from/flag").err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raet: 0.3", "did you mean 'rate'?"),
        ("rate: much", "rate should be of type float, not 'much'"),
        ("rate: true", "rate should be of type float, not True"),
        ("seed: 0.5", "seed should be of type int"),
        ("device: tpu", "device should be one of auto, cpu, cuda, mps, not 'tpu'"),
        ("rate: [", "line"),
        ("- rate", "no mapping"),
        ("json: true", "unknown"),
    ],
)
def test_wrong_configuration_names_file_and_key(run: typing.Any, text: str, said: str) -> None:
    Path("own.yaml").write_text(text)
    code, out, err = run("prune", "-c", "own.yaml")
    assert (code, out) == (2, "")
    error, hint = err.splitlines()
    assert error.startswith("error: own.yaml")
    assert said in error
    assert hint.startswith("hint: ")


def test_recipe_with_a_wrong_key_names_it(run: typing.Any) -> None:
    Path("recipe.yaml").write_text("prune:\n  raet: 0.3\n")
    code, _, err = run("compress", "-c", "recipe.yaml")
    assert code == 2
    assert "recipe.yaml: prune" in err
    assert "'rate'" in err


def test_a_recipe_can_not_ask_for_a_report(run: typing.Any) -> None:
    Path("recipe.yaml").write_text("prune:\n  sensitivity: true\n")
    code, _, err = run("compress", "-c", "recipe.yaml")
    assert code == 2
    assert "recipe.yaml: prune: sensitivity" in err


def test_exponents_are_numbers(run: typing.Any) -> None:
    Path("own.yaml").write_text("model: nowhere/\nlr: 1e-3\n")
    assert "nowhere" in run("distill", "-c", "own.yaml").err


def test_env_in_each_form(run: typing.Any) -> None:
    import torch

    code, human, _ = run("env")
    assert code == 0
    assert re.search(rf"torch +{re.escape(torch.__version__)}", human)
    values = json.loads(run("env", "--json").out)
    assert values["versions"]["torch"] == torch.__version__
    assert run("env", "-q") == (0, "", "")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MissedError("too slow", "prune more"), 3, "too slow"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (Terminated(), 143, "Terminated"),
        (OSError(28, "No space left on device", "/full/file"), 1, "The disk is full: /full/file"),
        (OSError(30, "Read-only file system", "/cd/file"), 1, "/cd/file"),
        (PermissionError(13, "Permission denied", "/root/file"), 1, "/root/file"),
        (FileNotFoundError(2, "No such file", "gone"), 1, "There is no gone"),
        (ZeroDivisionError("division by zero"), 1, "internal error: ZeroDivisionError: division by zero"),
    ],
)
def test_every_exception_has_its_line_and_code(error: BaseException, code: int, said: str) -> None:
    failure = explain(error)
    assert failure.exit_code == code
    assert said in failure.message
    assert failure.hint


def test_debug_shows_the_traceback(run: typing.Any) -> None:
    assert "Traceback" not in run("prune", "nowhere/").err
    err = run("prune", "nowhere/", "--debug").err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-2].startswith("error: ")


def test_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m slimkit env | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_knows_commands_flags_and_choices(shell: str) -> None:
    def complete(line: str) -> str:
        count = len(line.split()) - (not line.endswith(" "))
        environment = {
            "_SLIMKIT_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": line,
            "COMP_CWORD": str(count),
            "_TYPER_COMPLETE_ARGS": line,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        return python("from slimkit.cli.app import main; main()", env=os.environ | environment).stdout

    assert "prune" in complete("slimkit pr")
    assert "--calibration-images" in complete("slimkit prune --cal")
    assert "dynamic" in complete("slimkit quantize --scheme ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_shown_whatever_the_parent_process(shell: str) -> None:
    environment = os.environ | {"_SLIMKIT_COMPLETE": f"source_{shell}"}
    done = python("from slimkit.cli.app import main; main()", env=environment)
    assert "_SLIMKIT_COMPLETE" in done.stdout


def test_resolved_configuration_is_yaml_that_the_command_takes(run: typing.Any) -> None:
    from slimkit.cli.config import save_resolved

    save_resolved("prune", PruneOptions(model="gone/", rate=0.45, output=Path("some/where"), force=True))
    saved = yaml.safe_load(Path("some/where.yaml").read_text())
    assert (saved["rate"], saved["output"], saved["seed"]) == (0.45, "some/where", 0)
    assert "force" not in saved
    code, _, err = run("prune", "-c", "some/where.yaml")
    assert code > 0
    assert "gone" in err


def test_an_older_name_of_a_flag_still_works(run: typing.Any, tmp_path: Path) -> None:
    (tmp_path / "o.yaml").write_text("portable: true\nodd: 1\n")
    for word in ("--no-portable", "--no-reduce-range"):
        assert "nothing is neither a model folder" in run("quantize", "nothing", word).err
    assert "unknown field 'odd'" in run("quantize", "nothing", "-c", str(tmp_path / "o.yaml")).err
    assert "portable" not in run("quantize", "--help").out
