"""What is refused before any work: numbers that can't be, outputs that can't be written, flags and keys that aren't."""

import dataclasses
import json
import types
import typing
from pathlib import Path

import pytest
import typer
import yaml

from slimkit.cli.app import app, main
from slimkit.cli.config import read_settings, save_resolved
from slimkit.core.checks import check_options
from slimkit.core.errors import UsageError
from slimkit.core.options import (
    BenchmarkOptions,
    DistillOptions,
    ExportOptions,
    PruneOptions,
    QuantizeOptions,
    ScoreOptions,
    TrainOptions,
    plain_options,
)
from slimkit.core.typed import FieldError, parse_options

STAGES = {
    "train": TrainOptions,
    "prune": PruneOptions,
    "distill": DistillOptions,
    "quantize": QuantizeOptions,
    "benchmark": BenchmarkOptions,
    "score": ScoreOptions,
    "export": ExportOptions,
}
FILES = {"benchmark": "benchmark.json", "score": "results.json", "export": "model.onnx"}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> typing.Callable[..., str]:
    """Run a command that is to be refused with an exit code; gives the line that says what is wrong."""

    def run(*arguments: str, code: int) -> str:
        assert main(arguments) == code
        out, err = capsys.readouterr()
        error, hint = err.splitlines()
        assert out == ""
        assert hint.startswith("hint: ")
        return error

    return run


def numbers_of(options: type) -> list[tuple[str, type]]:
    """The name and the type of each option that is a number."""
    found = []
    for name, hint in typing.get_type_hints(options).items():
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        found += [(name, kind) for kind in kinds if kind in (int, float)]
    return found


NUMBERS = [(command, name, kind) for command, cls in STAGES.items() for name, kind in numbers_of(cls)]


@pytest.mark.parametrize(("command", "name", "kind"), NUMBERS)
def test_a_number_out_of_range_is_told_before_anything_else(
    refuse: typing.Callable[..., str], command: str, name: str, kind: type
) -> None:
    flag = f"--{name.replace('_', '-')}"
    for value in (str(-(2**70)), *(("nan", "inf") if kind is float else ())):
        assert flag in refuse(command, flag, value, code=2)
    assert list(Path().iterdir()) == []


def test_a_recipe_names_the_stage_of_a_number_out_of_range(refuse: typing.Callable[..., str]) -> None:
    Path("recipe.yaml").write_text("prune: {rate: 1.5}\n")
    assert "recipe.yaml: prune: rate is 1.5" in refuse("compress", "-c", "recipe.yaml", code=2)


@pytest.mark.parametrize("command", STAGES)
def test_outputs_are_checked_before_inputs_and_after_options(refuse: typing.Callable[..., str], command: str) -> None:
    Path("file").write_text("mine")
    assert "file/deep/er" in refuse(command, "nowhere", "-o", "file/deep/er", code=1)
    assert "--seed" in refuse(command, "nowhere", "-o", "file/deep/er", "--seed", str(2**70), code=2)
    assert "nowhere" in refuse(command, "nowhere", "-o", "new/deep/er", code=2)
    assert [path.name for path in Path().iterdir()] == ["file"]


@pytest.mark.parametrize("command", [name for name in STAGES if name not in FILES])
@pytest.mark.parametrize("output", ["file", ".", "..", "photos", "link"])
def test_only_a_model_folder_is_replaced(refuse: typing.Callable[..., str], command: str, output: str) -> None:
    Path("file").write_text("mine")
    Path("photos/cat").mkdir(parents=True)
    Path("photos/cat/1.jpg").write_text("mine")
    Path("link").symlink_to("photos")
    assert output in refuse(command, "-o", output, "-f", code=1)
    assert Path("photos/cat/1.jpg").read_text() == Path("file").read_text() == "mine"


@pytest.mark.parametrize("command", FILES)
@pytest.mark.parametrize("output", ["photos", "/dev/null", "/proc/results"])
def test_only_a_file_is_replaced(refuse: typing.Callable[..., str], command: str, output: str) -> None:
    Path("photos").mkdir()
    assert output in refuse(command, "-o", output, "-f", code=1)


def test_a_model_folder_that_holds_more_is_not_replaced(refuse: typing.Callable[..., str], model_folder: Path) -> None:
    (model_folder / "__pycache__").mkdir()
    (model_folder / "notes.txt").write_text("mine")
    assert "notes.txt" in refuse("train", "-o", str(model_folder), "-f", code=1)
    assert (model_folder / "notes.txt").read_text() == "mine"


def test_what_a_command_reads_is_not_replaced(refuse: typing.Callable[..., str], model_folder: Path) -> None:
    weights = next(model_folder.glob("*.pth"))
    before = weights.read_bytes()
    assert weights.name in refuse("export", str(model_folder), "-o", str(weights), "-f", code=1)
    assert "own.pth" in refuse("score", "resnet18", "--weights", _copy(before), "-o", "own.pth", "-f", code=1)
    assert weights.read_bytes() == Path("own.pth").read_bytes() == before


def _copy(content: bytes) -> str:
    Path("own.pth").write_bytes(content)
    return "own.pth"


@pytest.mark.parametrize("arguments", [["-o", "--json"], ["-o", "-f"], ["-c", "--quiet"], ["--data", "--seed"]])
def test_the_name_of_an_option_is_no_value(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(["score", *arguments]) == 2
    assert f"{arguments[1]} comes next" in capsys.readouterr().err


def test_a_file_may_be_called_like_an_option(refuse: typing.Callable[..., str]) -> None:
    assert "submission" in refuse("score", "-o", "./--json", code=2)  # there is no such model yet


@pytest.mark.parametrize("command", ["benchmark", "export", "inspect", "env"])
def test_a_device_is_no_option_of_what_has_no_use_for_one(refuse: typing.Callable[..., str], command: str) -> None:
    assert "No such option: --device" in refuse(command, "--device", "cpu", code=2)


def test_a_flag_with_two_letters_exchanged_is_suggested(refuse: typing.Callable[..., str]) -> None:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]  # a group
        for flag in {flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")}:
            wrong = flag[:-2] + flag[-1] + flag[-2] if flag[-1] != flag[-2] else flag[:-1]
            if wrong not in ("--jsno", flag):
                assert flag in refuse(name, wrong, code=2)


def test_a_key_with_two_letters_exchanged_is_suggested(refuse: typing.Callable[..., str]) -> None:
    for command, cls in STAGES.items():
        for name in (field.name for field in dataclasses.fields(cls)):
            wrong = name[:-2] + name[-1] + name[-2]
            Path("own.yaml").write_text(f"{wrong}: 1\n")
            if wrong != name:
                assert f"did you mean {name!r}" in refuse(command, "-c", "own.yaml", code=2)


def parsed(cls: type, text: str) -> typing.Any:
    Path("own.yaml").write_text(text)
    return parse_options(cls, read_settings(Path("own.yaml")), "own.yaml")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("round_to: 8", "round_to", "8"),
        ("round-to: none", "round_to", "none"),
        ("latency: 4", "latency", "4"),
        ("latency: 4ms", "latency", "4ms"),
        ("macs: 75e6", "macs", 75e6),
        ("macs: '1e-1'", "macs", 0.1),
        ("rate: .3", "rate", 0.3),
        ("seed: '5'", "seed", 5),
        ("steps: 2.0", "steps", 2),
        ("calibration-images: 1e3", "calibration_images", 1000),
        ("reconstruct: no", "reconstruct", False),
        ("reconstruct: 'off'", "reconstruct", False),
        ("pretrained: Yes", "pretrained", True),
        ("data: 010", "data", "010"),
        ("data: 1.10", "data", "1.10"),
        ("data: 2026-01-01", "data", "2026-01-01"),
        ("output: 8", "output", Path("8")),
        ("rate: ~", "rate", None),
    ],
)
def test_what_a_person_writes_in_yaml_is_what_is_meant(text: str, name: str, value: object) -> None:
    found = getattr(parsed(PruneOptions, text), name)
    assert (found, type(found)) == (value, type(value))


def test_a_key_may_have_any_name_of_its_flag() -> None:
    assert parsed(BenchmarkOptions, "against: base").baseline == "base"
    with pytest.raises(FieldError, match=r"backend.* should be one of torch, compile"):
        parsed(BenchmarkOptions, "onnx: false")


def test_one_item_stands_for_a_list_of_it() -> None:
    @dataclasses.dataclass
    class Listed:
        names: tuple[str, ...]
        sizes: tuple[int, ...] = ()

    assert parse_options(Listed, {"names": "a", "sizes": "3"}, "x") == Listed(("a",), (3,))
    assert parse_options(Listed, {"names": ["a", 1]}, "x") == Listed(("a", "1"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 0.5", "seed should be of type int"),
        ("rate: 30%", "rate should be of type float"),
        ("data: no", "put it in quotes"),
        ("seed:", "seed has no value"),
        ("reconstruct: 2", "reconstruct should be of type bool"),
    ],
)
def test_what_can_not_be_meant_is_named(text: str, said: str) -> None:
    with pytest.raises(FieldError, match=said):
        parsed(PruneOptions, text)


@pytest.mark.parametrize("text", ["rate: 0.3\nrate: 0.4", "round-to: 8\nround_to: 16"])
def test_a_key_that_is_given_twice_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="twice"):
        parsed(PruneOptions, text)


def test_saved_options_are_read_as_they_were() -> None:
    options = PruneOptions(model="010", data="no", latency="4", output=Path("1e3"), macs=1e20, weights=Path("x y: z"))
    save_resolved("prune", options)
    assert parse_options(PruneOptions, read_settings(Path("1e3.yaml")), "1e3.yaml") == options


class TestResolvedConfiguration:
    """`<output>.yaml`, which every command leaves beside its result."""

    def test_the_file_that_was_given_is_never_replaced(self, refuse: typing.Callable[..., str]) -> None:
        mine = "# mine\nmodel: nowhere\nrate: 0.3\n"
        Path("cut.yaml").write_text(mine)
        for flags in ([], ["-f"]):
            assert "cut.yaml" in refuse("prune", "-c", "cut.yaml", "-o", "cut", "--seed", "1", *flags, code=1)
        save_resolved("prune", PruneOptions(model="nowhere", rate=0.3, output=Path("cut")))  # says the same
        Path("cut.yaml").write_text(mine + "output: cut\n")
        assert "nowhere" in refuse("prune", "-c", "cut.yaml", code=2)  # that is the next thing to be wrong
        assert Path("cut.yaml").read_text().startswith(mine)

    def test_a_report_has_one_of_its_own(self, refuse: typing.Callable[..., str]) -> None:
        save_resolved("prune", PruneOptions(model="nowhere", rate=0.3, output=Path("cut")))
        assert "nowhere" in refuse("prune", "nowhere", "-o", "cut", "--sensitivity", code=2)
        save_resolved("prune", PruneOptions(output=Path("cut"), sensitivity=True))
        assert yaml.safe_load(Path("cut.yaml").read_text())["rate"] == 0.3
        assert yaml.safe_load(Path("cut.sensitivity.yaml").read_text())["sensitivity"] is True

    def test_what_slimkit_left_is_replaced_by_force_alone(self, refuse: typing.Callable[..., str]) -> None:
        save_resolved("prune", PruneOptions(model="nowhere", rate=0.3, output=Path("cut")))
        assert "cut.yaml" in refuse("prune", "nowhere", "-o", "cut", code=1)
        assert "nowhere" in refuse("prune", "nowhere", "-o", "cut", "-f", code=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (TrainOptions(batch_size=1), "--batch-size"),
        (TrainOptions(pretrained=True, weights=Path("x")), "exclude"),
        (TrainOptions(image_size=64, resize=32), "can't be cut"),
        (PruneOptions(rate=0.3, macs=0.5), "several budgets"),
        (PruneOptions(round_to="-8"), "--round-to"),
        (PruneOptions(round_to="0"), "--round-to"),
        (PruneOptions(latency="4 minutes"), "--latency"),
        (PruneOptions(steps=2, max_drop=1.0), "--steps"),
        (PruneOptions(use_sensitivity=Path("x"), rate=0.3), "--use-sensitivity"),
        (DistillOptions(teacher_weights=Path("x")), "--teacher"),
        (DistillOptions(method="dkd", mixup=0.2), "dkd"),
        (QuantizeOptions(weight_bits=7), "--weight-bits"),
        (QuantizeOptions(qat_epochs=1, scheme="dynamic"), "--qat-epochs"),
    ],
)
def test_options_that_exclude_each_other(options: typing.Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_options(options)


@pytest.mark.parametrize(("command", "cls"), STAGES.items())
def test_the_defaults_are_possible(command: str, cls: type) -> None:
    check_options(cls())


def test_failures_in_json_are_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "--rate", "1.5", "--json"]) == 2
    assert "--rate" in json.loads(capsys.readouterr().out)["error"]


def test_options_are_the_same_after_json_and_yaml() -> None:
    options = PruneOptions(weights=Path("w.pth"), mean=(0.1, 0.2, 0.3), force=True)
    plain = plain_options(options)
    assert plain == json.loads(json.dumps(plain)) == yaml.safe_load(yaml.safe_dump(plain))
    assert parse_options(PruneOptions, plain, "here") == dataclasses.replace(options, force=False)
