"""`compress --objective`: a search that chooses a recipe's MACs and bits, and goes on where it was stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import short_classifier, small_classifier
from test_cli_chain import slimkit, write_images

from slimkit.core.checks import parse_min_accuracy
from slimkit.core.errors import MissedError, UsageError
from slimkit.core.folder import write_folder
from slimkit.core.recipe import Recipe, resolve_recipe, run_recipe
from slimkit.core.search.record import Choice, Record, Tried
from slimkit.core.search.run import Found, require_reached, search_recipe
from slimkit.core.tune.space import read_space

# Three classes by chance: a random network names a third of the images rightly, and so does any cut of it
SETTINGS: dict[str, Any] = {"model": "base", "data": "images", "score": {"runs": 2}, "prune": {"round_to": "none"}}
FEWER = {"BITS": (8, 4), "SHARES": (0.7, 0.4), "RUNS": 4, "VIEWS": 3}  # than are usual, for the sake of time
GOAL = {"objective": "size", "min_accuracy": "0", "minutes": 0.05}


def try_fewer(patch: pytest.MonkeyPatch) -> None:
    for name, value in FEWER.items():
        patch.setattr(f"slimkit.core.search.run.{name}", value)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.chdir(tmp_path)
    try_fewer(monkeypatch)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which a search and its recipe were run, and the JSON that the command printed."""
    folder = tmp_path_factory.mktemp("search")
    write_images(folder / "images")
    write_folder(short_classifier(), folder / "base")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(SETTINGS | {"goal": GOAL}))
    with pytest.MonkeyPatch.context() as patch:
        try_fewer(patch)
        done = slimkit("compress", "-c", "recipe.yaml", "-o", "small", "--threads", "1", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_choice_is_the_smallest_of_what_keeps_the_accuracy(searched: tuple[Path, str]) -> None:
    folder, printed = searched
    found = json.loads(printed)["search"]
    rounded = [each for each in found["tried"] if each["bits"]]
    assert {each["bits"] for each in rounded} <= {*FEWER["BITS"]}
    smallest = min(rounded, key=lambda each: each["size"])
    assert (found["choice"]["share"], found["choice"]["bits"]) == (smallest["share"], smallest["bits"])
    for each in rounded:
        (weights,) = (folder / "small/runs/search" / each["folder"]).glob("*.pth")
        assert each["size"] == pytest.approx(weights.stat().st_size / 2**20)
        assert each["latency"] > 0
    teacher_asked = json.loads((folder / "small/runs/search/search.json").read_text())["views"]
    assert teacher_asked == FEWER["VIEWS"]
    assert Path(folder / found["picture"]).read_bytes().startswith(b"\x89PNG")


def test_the_recipe_that_is_left_repeats_the_choice_without_a_search(searched: tuple[Path, str]) -> None:
    folder, printed = searched
    choice = json.loads(printed)["search"]["choice"]
    left = yaml.safe_load((folder / "small/runs/recipe.yaml").read_text())
    assert "goal" not in left
    assert choice["budget"] == "params"
    assert left["prune"]["params"] == choice["share"]
    assert left["distill"]["minutes"] == choice["minutes"]
    assert left["distill"]["views"] == FEWER["VIEWS"]
    assert left["quantize"].get("weight_bits", 8) == choice["bits"]
    steps = json.loads((folder / "small/submission/trained_pruned_architecture.json").read_text())["compression_steps"]
    assert len(steps) == 3  # cut, distilled, quantized


def test_a_finished_search_is_not_made_again(searched: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(searched[0], tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in Path("small").rglob("*.pth")}
    found = search_recipe(recipe_of(GOAL))
    assert found.choice.share == json.loads(searched[1])["search"]["choice"]["share"]
    assert {path: path.stat().st_mtime_ns for path in Path("small").rglob("*.pth")} == before


def test_a_search_that_was_stopped_keeps_what_it_tried(searched: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(searched[0], tmp_path, dirs_exist_ok=True)
    file = Path("small/runs/search/search.json")
    content = json.loads(file.read_text())
    cuts = [each for each in content["tried"] if each["step"] == "cut"]
    file.write_text(json.dumps(content | {"tried": cuts, "choice": None}))
    before = {path: path.stat().st_mtime_ns for path in Path("small/runs/search").glob("cut-*/*.pth")}
    search_recipe(recipe_of(GOAL))
    after = {path: path.stat().st_mtime_ns for path in Path("small/runs/search").glob("cut-*/*.pth")}
    assert {path: after[path] for path in before} == before


def test_another_search_starts_over(tmp_path: Path) -> None:
    tried = Tried(0.5, "cut", 40.0, "cut-0.5")
    record = Record.open(tmp_path / "search.json", {"seed": 0}, force=False)
    record.add(tried)
    assert Record.open(record.file, {"seed": 0}, force=False).tried == [tried]
    assert Record.open(record.file, {"seed": 1}, force=False).tried == []
    assert Record.open(record.file, {"seed": 0}, force=True).tried == []


def test_weights_from_elsewhere_are_said_to_read_high(
    searched: tuple[Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(searched[0], ".", dirs_exist_ok=True)
    search_recipe(recipe_of(GOAL))
    assert "has its weights from elsewhere" in caplog.text


def recipe_of(goal: dict[str, Any]) -> Recipe:
    return resolve_recipe(SETTINGS | {"threads": 1, "goal": goal}, Path("small"))


def test_a_submission_that_answers_worse_than_was_asked_for_is_told() -> None:
    recipe = recipe_of(GOAL)
    write_folder(small_classifier(), Path("small/submission"), figures={"accuracy": 56.9})
    require_reached(
        Found(recipe, Choice("params", 0.5, 1.0, 4), (), baseline=59.9, target=56.9, picture=Path("search.png"))
    )
    found = Found(recipe, Choice("params", 0.5, 1.0, 4), (), baseline=60.0, target=57.0, picture=Path("search.png"))
    with pytest.raises(MissedError, match=r"names 56\.90 % .* at least 57\.00 % was asked for"):
        require_reached(found)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"goal": {"objektive": "size"}}, "'objective'"),
        ({"goal": {"objective": "speed"}}, "objective"),
        ({"goal": {"minutes": 0}}, "minutes"),
        ({"goal": {"min_accuracy": "most"}}, "most is no accuracy"),
        ({"goal": {"min_accuracy": "120%"}}, "120% is no accuracy"),
        ({"goal": 60}, "mapping"),
        ({"goal": {}, "prune": {"rate": 0.3}}, "rate is a budget"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve_recipe(settings)


def test_a_goal_is_not_passed_over() -> None:
    with pytest.raises(UsageError, match="options are still to be found"):
        run_recipe(recipe_of(GOAL))
    with pytest.raises(UsageError, match="has a goal, too"):
        read_space(SETTINGS | {"goal": GOAL, "search": {"prune.rate": [0.3, 0.5]}}, "the recipe")


def test_the_accuracy_that_is_asked_for() -> None:
    assert parse_min_accuracy("95%", 60.0) == pytest.approx(57.0)
    assert parse_min_accuracy("60", 80.0) == 60.0
