"""The recipe: where its paths lead, what counts as finished, and what it never replaces."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import short_classifier
from test_cli_chain import write_images
from test_resume import Stopped, stop_after

from slimkit.core.errors import FolderError, ModelError, UsageError
from slimkit.core.folder import write_folder
from slimkit.core.recipe import Recipe, resolve_recipe, run_recipe

PRUNE = {"rate": 0.5, "round_to": "none"}
SMALL = {"model": "base", "data": "images", "distill": {"epochs": 0}, "score": {"runs": 2}, "prune": PRUNE}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.chdir(tmp_path)


def places(recipe: Recipe) -> list[tuple[str, str]]:
    return [(options.model, str(options.output)) for options in recipe.stages.values()]


def test_each_stage_reads_what_the_last_one_wrote() -> None:
    assert places(resolve_recipe({}, Path("small"))) == [
        ("resnet18", "small/runs/train"),
        ("small/runs/train", "small/runs/prune"),
        ("small/runs/prune", "small/runs/distill"),
        ("small/runs/distill", "small/submission"),
        ("small/submission", "small/results.json"),
    ]
    assert places(resolve_recipe({"output": "small"})) == places(resolve_recipe({}, Path("small")))


def test_all_paths_of_a_recipe_are_as_seen_from_the_working_folder() -> None:
    settings = {"prune": {"output": "cut"}, "quantize": {"model": "elsewhere"}, "distill": {"teacher": "big"}}
    recipe = resolve_recipe(settings, Path("small"))
    assert places(recipe)[1:4] == [
        ("small/runs/train", "cut"),
        ("cut", "small/runs/distill"),
        ("elsewhere", "small/submission"),
    ]
    assert getattr(recipe.stages["distill"], "teacher") == "big"  # noqa: B009  # not every stage has one


@pytest.mark.parametrize("settings", [{}, {"prune": {"output": "cut"}}, {"output": "else", "seed": 3}])
def test_the_resolved_recipe_says_the_same_again(settings: dict[str, object]) -> None:
    recipe = resolve_recipe(settings)
    again = yaml.safe_load(recipe.to_yaml())
    assert resolve_recipe(again) == recipe
    moved, elsewhere = resolve_recipe(again, Path("moved")), resolve_recipe(settings, Path("moved"))
    assert places(moved) == places(elsewhere)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prun": {}}, "'prune'"),
        ({"outptu": "x"}, "'output'"),
        ({"search": {"prune.rate": [0.3, 0.5]}}, "leaves options open"),
        ({"prune": {"raet": 0.3}}, "'rate'"),
        ({"prune": {"rate": "much"}}, "prune: rate"),
        ({"prune": {"force": True}}, "force"),
        ({"prune": 0.3}, "mapping"),
        ({"distill": {"epochs": -1}}, "distill: epochs"),
        ({"quantize": {"device": "tpu"}}, "quantize: device"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve_recipe(settings)


def test_what_a_person_writes_is_taken() -> None:
    recipe = resolve_recipe({"seed": "3", "prune": {"round_to": 8, "rate": "4e-1", "reconstruct": "no"}})
    prune = vars(recipe.stages["prune"])
    assert (prune["round_to"], prune["rate"], prune["reconstruct"], prune["seed"]) == ("8", 0.4, False, 3)


def test_a_shared_device_is_for_the_stages_that_have_one() -> None:
    assert {vars(options)["device"] for options in resolve_recipe({"device": "cpu"}).stages.values()} == {"cpu"}


def test_nothing_is_begun_where_an_output_is_in_the_way() -> None:
    Path("small/submission").mkdir(parents=True)
    Path("small/submission/mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(FolderError, match="submission"):
            run_recipe(resolve_recipe(SMALL, Path("small")), force=force)
    assert not Path("small/runs").exists()


def test_nothing_is_begun_where_a_later_stage_lacks_an_input() -> None:
    with pytest.raises(UsageError, match="gone"):
        run_recipe(resolve_recipe({**SMALL, "distill": {"teacher": "gone"}}, Path("small")))
    assert not Path("small").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the recipe was run."""
    folder = tmp_path_factory.mktemp("recipe")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_images(folder / "images")
        write_folder(short_classifier(), Path("base"))
        run_recipe(resolve_recipe(SMALL, Path("small")))
    return folder


class TestResumed:
    """A recipe that was run, and is run again."""

    @pytest.fixture(autouse=True)
    def copied(self, finished: Path, here: None) -> None:
        shutil.copytree(finished, ".", dirs_exist_ok=True)

    def test_is_finished(self, caplog: pytest.LogCaptureFixture) -> None:
        before = {path: path.stat().st_mtime_ns for path in Path("small").rglob("*.pth")}
        with caplog.at_level("INFO", "slimkit"):
            run_recipe(resolve_recipe(SMALL, Path("small")))
        assert [line for line in caplog.messages if "is finished" in line] == [
            f"{name} is finished: small/{place}"
            for name, place in (
                ("train", "runs/train"),
                ("prune", "runs/prune"),
                ("distill", "runs/distill"),
                ("quantize", "submission"),
                ("score", "results.json"),
            )
        ]
        assert {path: path.stat().st_mtime_ns for path in Path("small").rglob("*.pth")} == before

    @pytest.mark.parametrize("changed", ["weights", "a file more", "the scores"])
    def test_what_was_changed_by_hand_is_not_replaced(self, changed: str) -> None:
        if changed == "weights":
            write_folder(short_classifier(), Path("small/runs/distill"), force=True)
        elif changed == "a file more":
            Path("small/submission/notes.txt").write_text("mine")
        else:
            Path("small/results.json").write_text("{}")
        before = {path: path.stat().st_mtime_ns for path in Path("small").rglob("*")}
        for settings in (SMALL, {**SMALL, "prune": PRUNE | {"rate": 0.4}}):
            with pytest.raises(FolderError, match="was changed since"):
                run_recipe(resolve_recipe(settings, Path("small")))
        assert {path: path.stat().st_mtime_ns for path in Path("small").rglob("*")} == before

    def test_goes_on_where_making_it_anew_failed(self) -> None:
        anew = {**SMALL, "prune": PRUNE | {"rate": 0.4}}
        diverging = {"epochs": 1, "batch_size": 8, "optimizer": "sgd", "lr": 1e30}
        with pytest.raises(ModelError, match="diverged"):
            run_recipe(resolve_recipe({**anew, "distill": diverging}, Path("small")))
        state = json.loads(Path("small/runs/recipe.state.json").read_text())
        assert state["prune"]["options"]["rate"] == 0.4
        assert state["distill"]["options"] is None  # its output is of the network that was replaced
        assert run_recipe(resolve_recipe(anew, Path("small"))).submission.is_dir()

    def test_goes_on_within_a_stage_that_was_interrupted(self, caplog: pytest.LogCaptureFixture) -> None:
        settings: dict[str, object] = {**SMALL, "distill": {"epochs": 2, "batch_size": 2, "checkpoint_minutes": 0}}
        for _ in range(2):
            with pytest.raises(Stopped), caplog.at_level("INFO", "slimkit"):
                run_recipe(resolve_recipe(settings, Path("small")), progress=stop_after(20))
        other = {**settings, "distill": {"epochs": 3, "batch_size": 2}}
        with pytest.raises(Stopped):  # another distillation starts over
            run_recipe(resolve_recipe(other, Path("small")), progress=stop_after(2))
        assert [line.split(",")[0] for line in caplog.messages if "going on" in line] == [
            "going on after step 10 of 34"
        ]

    def test_a_recipe_of_the_users_own_is_not_replaced(self) -> None:
        Path("small/runs/recipe.yaml").write_text("# mine\n")
        for force in (False, True):
            with pytest.raises(FolderError, match=r"recipe\.yaml"):
                run_recipe(resolve_recipe({**SMALL, "prune": PRUNE | {"rate": 0.4}}, Path("small")), force=force)
        assert Path("small/runs/recipe.yaml").read_text() == "# mine\n"
