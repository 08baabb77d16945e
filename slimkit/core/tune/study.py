"""The study of Optuna in which all trials stand, and how several processes take theirs from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slimkit.core.errors import UsageError, first_line
from slimkit.core.scoring.formula import Figures
from slimkit.core.tune.locks import locked
from slimkit.core.tune.space import Dimension, Interval, Space, Value

NAME = "slimkit"
OBJECTIVES = {"accuracy": "maximize", "latency": "minimize", "size": "minimize"}  # %, ms (median), MB
SPACE, REASON = "space", "reason"  # names of attributes in the study and in its trials
LOCK, TRIAL_LOCK = "study.lock", "trial.lock"
BUSY_SECONDS = 60  # that SQLite waits for another process


@dataclass(frozen=True)
class Claim:
    """A trial that this process is to run."""

    number: int
    values: Mapping[str, Value]  # of the dimensions
    folder: Path


@dataclass(frozen=True)
class Trial:
    """What has become of a trial."""

    number: int
    values: Mapping[str, Value]
    state: str  # complete, failed, or running
    figures: Figures | None
    reason: str | None  # of a failure
    best: bool  # no other trial is as good in all figures and better in one


class Study:
    """All trials of a space; several processes may hold the same one."""

    def __init__(self, space: Space, folder: Path, storage: str, seed: int) -> None:
        """Open the study in `storage` (an URL), or begin it. Trials of this process lie in `folder`.

        Raises UsageError where Optuna is missing, or the storage can't be opened or has the study of another recipe.
        """
        self._optuna = _import_optuna()
        self._folder, self._seed = folder, seed
        self._distributions = {each.name: self._distribution(each) for each in space.dimensions}
        with locked(folder / LOCK):
            self._study = self._open(storage)
            _require_same(self._study, space, storage)

    @contextmanager
    def next_claim(self, trials: int) -> Iterator[Claim | None]:
        """A trial for this process to run while the block does: one that a process was stopped in, or a new one.

        None where there are `trials` in all.
        """
        with ExitStack() as held:
            with locked(self._folder / LOCK):
                claim = self._abandoned(held) or self._new(held, trials)
            yield claim

    def complete(self, claim: Claim, figures: Figures) -> None:
        """The trial came to an end."""
        self._study.tell(claim.number, [getattr(figures, name) for name in OBJECTIVES])

    def fail(self, claim: Claim, reason: str) -> None:
        """The trial came to no end."""
        frozen = self._study.get_trials()[claim.number]
        self._optuna.trial.Trial(self._study, frozen._trial_id).set_user_attr(REASON, reason)
        self._study.tell(claim.number, state=self._optuna.trial.TrialState.FAIL)

    def trials(self) -> tuple[Trial, ...]:
        """All trials of all processes, in their order."""
        best = {trial.number for trial in self._study.best_trials}
        return tuple(self._trial(frozen, frozen.number in best) for frozen in self._study.get_trials())

    def folder_of(self, number: int) -> Path:
        """Where a trial of this process's folder writes."""
        return self._folder / "trials" / f"{number:04d}"

    def _open(self, storage: str) -> Any:
        optuna = self._optuna
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        arguments = {"connect_args": {"timeout": BUSY_SECONDS}} if storage.startswith("sqlite") else {}
        try:
            store = optuna.storages.RDBStorage(storage, engine_kwargs=arguments)
            return optuna.create_study(
                storage=store, study_name=NAME, directions=list(OBJECTIVES.values()), load_if_exists=True
            )
        except Exception as error:  # of Optuna, of SQLAlchemy, or of the driver of a data base
            raise UsageError(
                f"--storage {storage} can't be opened: {first_line(error)}.", "Give an URL such as sqlite:///study.db."
            ) from error

    def _distribution(self, dimension: Dimension) -> Any:
        kinds, values = self._optuna.distributions, dimension.values
        if not isinstance(values, Interval):
            return kinds.CategoricalDistribution(values)
        if isinstance(values.low, int):
            return kinds.IntDistribution(values.low, values.high, log=values.log, step=int(values.step or 1))
        return kinds.FloatDistribution(values.low, values.high, log=values.log, step=values.step)

    def _abandoned(self, held: ExitStack) -> Claim | None:
        """A trial of this folder that counts as running, and that no process runs."""
        for frozen in self._study.get_trials(states=(self._optuna.trial.TrialState.RUNNING,)):
            folder = self.folder_of(frozen.number)
            if folder.is_dir() and held.enter_context(locked(folder / TRIAL_LOCK, wait=False)):
                return Claim(frozen.number, frozen.params, folder)
        return None

    def _new(self, held: ExitStack, trials: int) -> Claim | None:
        """The next trial. What is drawn hangs on its number, so that no two processes draw the same."""
        if (number := len(self._study.get_trials(deepcopy=False))) >= trials:
            return None
        (seed,) = np.random.SeedSequence([self._seed % 2**64, number]).generate_state(1)
        self._study.sampler = self._optuna.samplers.TPESampler(seed=int(seed), constant_liar=True)
        trial = self._study.ask(self._distributions)
        folder = self.folder_of(trial.number)
        held.enter_context(locked(folder / TRIAL_LOCK))
        return Claim(trial.number, trial.params, folder)

    def _trial(self, frozen: Any, best: bool) -> Trial:
        states = self._optuna.trial.TrialState
        names = {states.COMPLETE: "complete", states.FAIL: "failed"}
        is_complete = frozen.state == states.COMPLETE
        figures = Figures(**dict(zip(OBJECTIVES, frozen.values, strict=True))) if is_complete else None
        reason = frozen.user_attrs.get(REASON)
        return Trial(frozen.number, frozen.params, names.get(frozen.state, "running"), figures, reason, best)


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UsageError(
            "Optuna, which chooses what is tried, is not installed.", 'Run `pip install "slimkit[tune]"`.'
        ) from None
    return optuna


def _require_same(study: Any, space: Space, storage: str) -> None:
    """Raise UsageError where the study is of another recipe."""
    said = json.dumps({"settings": space.settings, "search": [vars(each) for each in space.dimensions]}, default=vars)
    if study.user_attrs.get(SPACE, said) != said:
        raise UsageError(
            f"The study in {storage} is of another recipe than {space.source}.",
            "Go on with the recipe that it was begun with, or give another -o/--output and --storage.",
        )
    if SPACE not in study.user_attrs:
        study.set_user_attr(SPACE, said)
