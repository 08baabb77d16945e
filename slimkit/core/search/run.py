"""From what a user wants to a recipe: the smallest network that keeps the accuracy, found by trying few of them.

Size falls with the parameters, latency with the MACs, and accuracy with both, so the shares of one of them are halved
as one looks up a word: a network that reaches the accuracy, at once or after a short distillation, leads to smaller
ones, another to larger. What is left then is how few bits its weights need. Every judgement is on held-out training
images. All that are trained learn from the same views of the images, about which the teacher is asked once.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimkit.core.checks import parse_min_accuracy
from slimkit.core.data import decoded_once
from slimkit.core.errors import MissedError, UsageError
from slimkit.core.files import write_atomically
from slimkit.core.folder import read_architecture, recorded_accuracy, weights_file
from slimkit.core.measure.latency import Target, measure_latencies
from slimkit.core.measure.size import size_mb
from slimkit.core.models.lineage import weights_sha256
from slimkit.core.options import DistillOptions, GoalOptions, Objective, PruneOptions, QuantizeOptions, plain_options
from slimkit.core.progress import Progress, silent
from slimkit.core.recipe import CompressReport, Recipe, run_recipe
from slimkit.core.recipe.run import run_stages
from slimkit.core.scoring.formula import Figures, score
from slimkit.core.search.plot import draw_search
from slimkit.core.search.record import SHOWN, Budget, Choice, Record, Tried
from slimkit.core.stages import run_ask, run_distill, run_prune, run_quantize

log = logging.getLogger("slimkit")

# What is cut: parameters are bytes, which weigh most in the score of a small network, and MACs are time
BUDGETS: dict[Objective, Budget] = {"score": "params", "size": "params", "latency": "macs"}
SHARES = (0.85, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.06, 0.04, 0.025, 0.015)  # of it that are tried
BITS = (8, 6, 4, 3)
TRIAL = 0.1  # of the minutes, for the distillation of one network that is tried
EXPLORING = 0.5  # of the minutes, after which no other share is tried
FINAL = 0.2  # of the minutes at least, for the distillation of the network that is chosen
SHORTEST = 0.01  # minutes of that
HOPELESS = 0.2  # of the baseline's accuracy: what is worse after the cut is not trained
RUNS = 50  # of a latency
VIEWS = 8  # of the training images, at most, about which the teacher is asked once for all trainings
ASKING = 0.25  # of the minutes, for that
FEWEST_VIEWS = 3  # that teach about as much as images that are augmented anew each time


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    recipe: Recipe  # with its choice
    choice: Choice
    tried: tuple[Tried, ...]
    baseline: float  # % of the held-out training images
    target: float  # %
    picture: Path

    def to_dict(self) -> dict[str, Any]:
        """All but the recipe, as plain JSON values."""
        choice, tried = dataclasses.asdict(self.choice), [dataclasses.asdict(each) for each in self.tried]
        figures = {"baseline": self.baseline, "target": self.target}
        return {"choice": choice, "tried": tried, "picture": str(self.picture)} | figures


def search_recipe(recipe: Recipe, *, force: bool = False, progress: Progress = silent) -> Found:
    """Make the recipe's baseline, then choose its budget, minutes of distillation and bits as its goal asks.

    A search that was stopped goes on; one that is finished gives the same again. Raises UsageError where nothing is to
    be searched, and what the stages raise.
    """
    if recipe.goal is None:
        raise UsageError("The recipe has no goal to search for.", "Give it a section `goal`.")
    run_stages(recipe, ["train"], force=force, progress=progress)
    search = _Search(recipe, recipe.goal, force, progress)
    choice = search.choose()
    picture = search.folder / "search.png"
    write_atomically(picture, draw_search(search.record.tried, choice.budget, search.baseline, search.target))
    found = tuple(search.record.tried)
    chosen = _chosen(recipe, choice, search.views(choice.share))
    return Found(chosen, choice, found, search.baseline, search.target, picture)


@decoded_once()
def run_goal(recipe: Recipe, *, force: bool = False, progress: Progress = silent) -> tuple[Found, CompressReport]:
    """Search for the recipe's goal, and run the recipe that was found. Raises as `search_recipe` and `run_recipe`."""
    found = search_recipe(recipe, force=force, progress=progress)
    return found, run_recipe(found.recipe, progress=progress)  # with `force` the search has started over already


def require_reached(found: Found) -> None:
    """Raise MissedError where the submission of the recipe that was found answers worse than was asked for."""
    submission = found.recipe.stages["quantize"].output
    accuracy = recorded_accuracy(submission)
    if accuracy < found.target:
        raise MissedError(
            f"{submission} names {accuracy:.2f} % of the held-out training images rightly; at least "
            f"{found.target:.2f} % was asked for.",
            "Give more --minutes, or a lower --min-accuracy.",
        )


def _chosen(recipe: Recipe, choice: Choice, views: int | None) -> Recipe:
    chosen: dict[str, dict[str, Any]] = {
        "prune": {choice.budget: choice.share},
        "distill": {"epochs": None, "minutes": choice.minutes, "views": views},
        "quantize": {"weight_bits": choice.bits},
    }
    stages = {name: dataclasses.replace(options, **chosen.get(name, {})) for name, options in recipe.stages.items()}
    return Recipe(recipe.root, stages)


class _Search:
    """A search on its way."""

    def __init__(self, recipe: Recipe, options: GoalOptions, force: bool, progress: Progress) -> None:
        self._recipe, self._options, self._progress = recipe, options, progress
        self._source = recipe.stages["train"].output
        self.folder = recipe.root / "runs" / "search"
        self.baseline = recorded_accuracy(self._source)
        self.target = parse_min_accuracy(options.min_accuracy, self.baseline)
        self._seconds, self._budget = 60 * options.minutes, BUDGETS[options.objective]
        self.record = Record.open(self.folder / "search.json", self._about(), force)
        if not _was_trained_here(self._source):
            log.warning(
                "%s has its weights from elsewhere. If they saw the held-out images, these judge too well of it "
                "(%.2f %%) and of whatever is cut from it: let `slimkit score` judge on test images, or train the "
                "baseline here.",
                *(self._source, self.baseline),
            )

    def choose(self) -> Choice:
        """Try networks until the choice is clear or the time for it is over."""
        if self.record.choice is None:
            share = self._smallest_share()
            bits = self._best_bits(share)
            self.views(share)  # before the time that is left is told
            minutes = max(round(self._seconds_left(share, bits) / 60, 2), SHORTEST)
            self.record.choice = Choice(self._budget, share, minutes, bits)
            self.record.write()
        choice = self.record.choice
        log.info("The search chose %g of the %s, weights of %d bits.", choice.share, SHOWN[choice.budget], choice.bits)
        return choice

    def _seconds_left(self, share: float, bits: int) -> float:
        """For the distillation, when the chosen network has been cut once more and before it is rounded."""
        again = [self.record.find(share, "cut"), self.record.find(share, "rounded", bits)]
        left = self._seconds - self.record.spent - sum(each.seconds for each in again if each)
        return max(left, FINAL * self._seconds)

    def _about(self) -> dict[str, Any]:
        """What the answers hang on."""
        stages = {name: plain_options(self._recipe.stages[name]) for name in ("prune", "distill", "quantize")}
        return {
            "goal": dataclasses.asdict(self._options),
            "baseline": weights_sha256(self._source),
            "stages": stages,
        }

    def _smallest_share(self) -> float:
        reached, missed = -1, len(SHARES)
        while missed - reached > 1 and self.record.spent < EXPLORING * self._seconds:
            middle = (reached + missed) // 2
            if self._reaches(SHARES[middle]):
                reached = middle
            else:
                missed = middle
        if reached < 0:
            log.warning("No network that was tried keeps %.2f %%: the least is cut.", self.target)
        return SHARES[max(reached, 0)]

    def _reaches(self, share: float) -> bool:
        """Whether a network with this share keeps the accuracy, at once or after a short training."""
        cut = self.record.find(share, "cut") or self._cut(share)
        if cut is None or cut.accuracy < HOPELESS * self.baseline:
            return False
        return cut.accuracy >= self.target or self._trained(share).accuracy >= self.target

    def _cut(self, share: float) -> Tried | None:
        """None where no cut comes to the share."""
        folder, begun = self.folder / f"cut-{share:g}", self.record.spent
        options = self._options_of("prune", PruneOptions, model=self._source, output=folder, **{self._budget: share})
        try:
            run_prune(options, self._progress)
        except (MissedError, UsageError) as error:
            log.info("%g of the %s can't be had: %s", share, SHOWN[self._budget], error)
            return None
        accuracy, seconds = recorded_accuracy(folder), self.record.spent - begun
        return self.record.add(Tried(share, "cut", accuracy, folder.name, seconds=seconds))

    def _trained(self, share: float) -> Tried:
        if found := self.record.find(share, "trained"):
            return found
        minutes, folder = TRIAL * self._options.minutes, self.folder / f"trained-{share:g}"
        source = self.folder / f"cut-{share:g}"
        views = self.views(share)
        options = self._distilling(source, folder, minutes=minutes, views=views)
        run_distill(options, self._progress)
        return self.record.add(Tried(share, "trained", recorded_accuracy(folder), folder.name, minutes))

    def views(self, share: float) -> int | None:
        """Of the images, that the trainings of all networks share; None: each epoch has its own."""
        wanted = self._options_of("distill", DistillOptions)
        if wanted.views is not None or wanted.mixup or wanted.cutmix:
            return int(wanted.views) if wanted.views else None
        if self.record.views is None:
            options = self._distilling(self.folder / f"cut-{share:g}", self.folder / "teacher", views=VIEWS)
            known = run_ask(options, ASKING * self._seconds, self._progress)
            self.record.views = known if known >= FEWEST_VIEWS else 0
            self.record.write()
        return self.record.views or None

    def _distilling(self, source: Path, output: Path, **changes: Any) -> DistillOptions:
        """The recipe's options of a distillation from the baseline, unless the recipe has another teacher."""
        changes |= {"model": source, "output": output, "epochs": None}
        options: DistillOptions = self._options_of("distill", DistillOptions, **changes)
        return dataclasses.replace(options, teacher=options.teacher or str(self._source))

    def _best_bits(self, share: float) -> int:
        """Of those that keep the accuracy, the bits with the best objective; 8 where none does."""
        source = self.record.find(share, "trained") or self.record.find(share, "cut") or self._cut(share)
        if source is None:
            raise MissedError(
                f"The baseline can't be cut to {share:g} of its {SHOWN[self._budget]}.", "Give a recipe without a goal."
            )
        rounded = [found for bits in BITS if (found := self._rounded(source, bits))]
        baseline, *timed = self._timed(rounded)
        reaching = [each for each in timed if each.accuracy >= self.target]
        best = max(reaching, key=lambda each: self._merit(each, baseline), default=None)
        return best.bits or BITS[0] if best else BITS[0]

    def _rounded(self, source: Tried, bits: int) -> Tried | None:
        """None where so few bits make another network of it."""
        if found := self.record.find(source.share, "rounded", bits):
            return found
        folder, begun = self.folder / f"rounded-{source.share:g}-{bits}", self.record.spent
        model = self.folder / source.folder
        options = self._options_of("quantize", QuantizeOptions, model=model, output=folder, weight_bits=bits)
        try:
            run_quantize(options, self._progress)
        except MissedError as error:
            log.info("%d bits are too few: %s", bits, error)
            return None
        made = dataclasses.replace(
            source,
            step="rounded",
            accuracy=recorded_accuracy(folder),
            folder=folder.name,
            bits=bits,
            size=size_mb(weights_file(folder)),
            seconds=self.record.spent - begun,
        )
        return self.record.add(made)

    def _timed(self, rounded: list[Tried]) -> list[Tried]:
        """The baseline, and these, with their latencies, which are measured in turn."""
        size = size_mb(weights_file(self._source))
        networks = [Tried(1.0, "baseline", self.baseline, str(self._source), size=size), *rounded]
        targets = [Target(self.folder / each.folder if each.bits else self._source) for each in networks]
        latencies = measure_latencies(targets, runs=RUNS, progress=self._progress)
        timed = [dataclasses.replace(t, latency=each.median) for t, each in zip(networks, latencies, strict=True)]
        return [self.record.add(each) for each in timed]

    def _merit(self, tried: Tried, baseline: Tried) -> float:
        """How good a rounded network is; more is better."""
        if self._options.objective == "score":
            return score(_figures(tried), _figures(baseline)).total
        return -(_figures(tried).size if self._options.objective == "size" else _figures(tried).latency)

    def _options_of(self, stage: str, kind: type[Any], **changes: Any) -> Any:
        """The recipe's options of a stage, for one network that is tried."""
        options = self._recipe.stages[stage]
        assert isinstance(options, kind)
        if "model" in changes:
            changes["model"] = str(changes["model"])
        return dataclasses.replace(options, force=True, **changes)


def _figures(tried: Tried) -> Figures:
    """Of a network that was rounded and timed."""
    assert tried.size is not None
    assert tried.latency is not None
    return Figures(tried.size, tried.latency, tried.accuracy)


def _was_trained_here(folder: Path) -> bool:
    """Whether slimkit trained the model, and so kept the held-out images from it."""
    details = read_architecture(folder).training_details
    return any(detail.get("stage") == "train" and detail.get("epochs") for detail in details)
