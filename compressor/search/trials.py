"""`compressor search`: the best settings of a recipe, by trials that optuna proposes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.data import data_fingerprint
from compressor.errors import BudgetError
from compressor.planning import validate_recipe
from compressor.preparation import runnable_targets
from compressor.progress import Progress
from compressor.recipe.schema import Recipe
from compressor.search.objective import (
    Objective,
    Value,
    check_budget,
    objective_of,
)
from compressor.search.space import Space, with_settings
from compressor.search.study import (
    Outcome,
    TrialRecord,
    ask,
    held,
    identify,
    num_counted,
    open_study,
    records,
    take_up,
    tell,
)
from compressor.search.workers import InTurn, Job, RayWorkers, Workers
from compressor.storage import storage_errors, write_atomically
from compressor.store import RunStore
from compressor.tasks import get_task
from targets.bundle import hash_file
from targets.provenance import checkpoint_hashes

if TYPE_CHECKING:
    from optuna.trial import Trial

__all__ = ["Trials", "search_settings", "short"]


STOPPING_VERSION = 2
"""Goes up when trials are stopped, or ranked, in another way than those of an earlier study."""


@dataclass(frozen=True)
class Trials:
    """What a search found.

    Attributes:
        objective: What was maximized.
        trials: All of them, the oldest first.
        stopped: Why it ended before all trials were made, in words; None where it did not.
    """

    objective: Objective
    trials: tuple[TrialRecord, ...]
    stopped: str | None = None

    @property
    def best(self) -> TrialRecord | None:
        """The best of those within the budget; of equal ones the better by the other figure."""
        ranked = self._ranked()
        return ranked[0][0] if ranked and ranked[0][1].shortfall == 0 else None

    def recipe(self, base: Recipe) -> Recipe:
        """The recipe of the best trial.

        Raises:
            BudgetError: No trial keeps the budget.
        """
        if self.best is not None:
            return with_settings(base, self.best.settings)
        ranked = self._ranked()
        given = f"none of {len(self.trials)} trials was finished"
        failed = [each.outcome for each in self.trials if each.outcome and each.outcome.reason]
        if ranked:
            nearest, value = ranked[0]
            given = (
                f"the nearest, trial {nearest.number}, is {value.speedup:.2f}x as fast and loses "
                f"{value.drop_points:.1f} points"
            )
        elif failed:
            given += f"; the first that failed: {failed[0].reason}"
        raise BudgetError(
            "no trial meets the budget on the validation data",
            where="budget",
            given=given,
            fix="widen the space, allow more --trials, or loosen the budget",
        )

    def as_json(self) -> dict[str, Any]:
        """For ``trials.json``."""
        return {
            "objective": self.objective,
            "best": None if self.best is None else self.best.number,
            "trials": [each.model_dump(mode="json") for each in self.trials],
        }

    def _ranked(self) -> list[tuple[TrialRecord, Value]]:
        """The complete trials, the best first."""

        def rank(finished: tuple[TrialRecord, Value]) -> tuple[float, ...]:
            trial, value = finished
            other = value.accuracy if self.objective == "speedup" else value.speedup
            return (value.shortfall, -value.of(self.objective), -other, trial.number)

        return sorted(
            ((each, each.value) for each in self.trials if each.value is not None), key=rank
        )


def search_settings(
    recipe: Recipe,
    space: Space,
    *,
    num_trials: int,
    study: Path,
    store: RunStore,
    progress: Progress,
    workers: int | None = None,
    ray_address: str | None = None,
    time_limit_s: float | None = None,
) -> Trials:
    """Try settings of a recipe; goes on where an earlier call with the same study ended.

    Args:
        recipe: Its budget says what is best; see `objective_of`.
        space: Which settings may be what.
        num_trials: How many trials the study is to have in the end.
        study: File of the study.
        store: Where finished steps are kept.
        progress: Is told what happens.
        workers: Trials that run side by side through Ray; None runs them in this process.
        ray_address: Of a running cluster of Ray.
        time_limit_s: No trial is begun after so long.

    Raises:
        RecipeError: The recipe or its budget does not hold.
        StoreError: The study is of another search, or another command is working on it.
    """
    check_budget(recipe)
    runnable_targets(recipe)
    for warning in validate_recipe(recipe).warnings:
        progress.warn(warning)
    with held(study):
        return _Search(recipe, space, study, store, progress).run(
            num_trials, workers, ray_address, time_limit_s
        )


class _Search:
    def __init__(
        self, recipe: Recipe, space: Space, path: Path, store: RunStore, progress: Progress
    ) -> None:
        self.recipe = recipe
        self.space = space
        self.path = path
        self.store = store
        self.progress = progress
        self.objective = objective_of(recipe.budget)
        self.study = open_study(path)
        identify(self.study, path, _identity(recipe, space))
        self.study.set_user_attr("objective", self.objective)
        take_up(self.study)

    def run(
        self,
        num_trials: int,
        workers: int | None,
        ray_address: str | None,
        time_limit_s: float | None,
    ) -> Trials:
        started = time.monotonic()

        def is_late() -> bool:
            return time_limit_s is not None and time.monotonic() - started > time_limit_s

        pool: Workers
        if workers is None:
            pool = InTurn(_Inside(self.progress))
        else:
            pool = RayWorkers(workers, ray_address)
        try:
            if num_counted(self.study) < num_trials:
                with pool:
                    self.loop(pool, num_trials, is_late)
        finally:
            self.write()
        missing = num_trials - num_counted(self.study)
        stopped = None
        if missing > 0 and time_limit_s is not None:
            stopped = f"the time limit of {time_limit_s / 60:g} min, with {missing} trials left"
        return self.found(stopped)

    def loop(self, pool: Workers, num_trials: int, is_late: Callable[[], bool]) -> None:
        """Keep the workers busy until all trials have ended or it is late."""
        distributions = {name: each.distribution() for name, each in self.space.items()}
        running: dict[int, Trial] = {}
        while True:
            while (
                len(running) < pool.size and num_counted(self.study) < num_trials and not is_late()
            ):
                trial = ask(
                    self.study, distributions, seed=self.recipe.seed, parallel=pool.size > 1
                )
                running[trial.number] = trial
                pool.start(
                    Job(
                        study=self.path,
                        store=self.store.root.absolute(),
                        recipe=self.recipe.model_dump(mode="json"),
                        trial=trial.number,
                    )
                )
            if not running:
                return
            only = next(iter(running)) if pool.size == 1 else None
            self.progress.start(f"{len(running)} trials" if only is None else f"trial {only}")
            number, outcome = pool.wait()
            trial = running.pop(number)
            tell(self.study, trial, outcome)
            which = f"trial {number}: " if only is None else ""
            self.progress.finish(which + _line(trial.params, outcome), cached=False)
            self.write()

    def found(self, stopped: str | None = None) -> Trials:
        return Trials(self.objective, tuple(records(self.study)), stopped)

    def write(self) -> None:
        """Write down what is known so far."""
        with storage_errors(self.recipe.output):
            self.recipe.output.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.found().as_json(), indent=1)
            write_atomically(self.recipe.output / "trials.json", text)


class _Inside:
    """What happens in a trial, told as what its one line is at."""

    def __init__(self, outer: Progress) -> None:
        self.outer = outer
        self.title = ""

    def warn(self, line: str) -> None:
        """Said once already, of the recipe."""

    def start(self, title: str) -> None:
        self.title = title
        self.outer.update(0.0, title)

    def update(self, fraction: float, line: str) -> None:
        self.outer.update(fraction, f"{self.title}: {line}")

    def finish(self, line: str, *, cached: bool) -> None:
        """See `Progress`."""


def _line(settings: dict[str, Any], outcome: Outcome) -> str:
    """One line on a trial that has ended."""
    chosen = ", ".join(f"{name}={short(value)}" for name, value in settings.items())
    if outcome.value is None:
        after = f" after {len(outcome.accuracies)} evaluations" if outcome.state == "pruned" else ""
        reason = f": {outcome.reason.splitlines()[0]}" if outcome.reason else ""
        return f"{outcome.state}{after}{reason} ({chosen})"
    value = outcome.value
    missed = "" if value.shortfall == 0 else ", misses the budget"
    return f"{value.speedup:.2f}x, {0.0 - value.drop_points:+.1f} points{missed} ({chosen})"


def short(value: object) -> str:
    """A setting of a trial, such as ``0.3333`` or ``taylor``."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _identity(recipe: Recipe, space: Space) -> dict[str, str]:
    """What the trials of a study depend on -> its hash."""
    settings = recipe.model_dump(mode="json", exclude={"output", "name", "model", "data"})
    task = get_task(recipe.task)
    files = [
        hash_file(path)
        for passes in recipe.chains.values()
        for each in passes
        for path in each.input_files
        if path.is_file()
    ]
    return {
        "how trials are stopped": str(STOPPING_VERSION),
        "the recipe": _hash(settings),
        "the space": _hash({name: each.model_dump(mode="json") for name, each in space.items()}),
        "the model": _hash(checkpoint_hashes(recipe.model)),
        "the data": data_fingerprint(
            recipe.data, kind=task.kind, labels=task.label_field, seed=recipe.seed
        ),
        **({"the files that its passes read": _hash(files)} if files else {}),
    }


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
