"""The study of a search: optuna's, in a journal file that outlives every interruption."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from compressor.errors import StoreError
from compressor.search.objective import Value
from compressor.storage import storage_errors
from targets.errors import MissingLibraryError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

__all__ = [
    "Outcome",
    "TrialRecord",
    "ask",
    "held",
    "identify",
    "num_counted",
    "open_study",
    "records",
    "take_up",
    "tell",
]

NAME = "search"
OUTCOME = "outcome"
BUDGET = "budget"
IDENTITY = "of"
JOURNAL = b'{"op_code"'
"""How a journal begins."""
WHOLE = 1000
"""How far a trial is that has trained: trials are compared at the same part of their training."""
STOPPED_SHARE = 4
"""The first trials are stopped after this part of it."""
UNKNOWN_SHORTFALL = 1e6
"""Of a trial that was stopped: it ranks behind all that were measured."""

State = Literal["complete", "pruned", "failed", "interrupted", "running", "waiting"]


class Outcome(BaseModel):
    """How a trial ended."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    state: Literal["complete", "pruned", "failed"]
    value: Value | None = None
    """None where it is not complete."""
    accuracies: tuple[float, ...] = ()
    """After each evaluation of its trainings, on the validation data, in [0, 1]."""
    reason: str | None = None
    """Why it failed."""
    duration_s: float


class TrialRecord(BaseModel):
    """A trial, as it is written down for people and programs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    number: int
    """From 0, in the order of their beginning."""
    state: State
    settings: dict[str, Any]
    """Path in the recipe -> value."""
    outcome: Outcome | None
    """None where it has not ended by itself."""

    @property
    def value(self) -> Value | None:
        """What it reached; None where it is not complete."""
        return None if self.outcome is None else self.outcome.value


def open_study(path: Path) -> Study:
    """Open the study of a file, or begin one.

    A trial is stopped after about a quarter and half of its training where it is not in the better
    half of those that came so far (asynchronous successive halving, Li et al., 2020).

    Args:
        path: The journal.

    Raises:
        MissingLibraryError: optuna is not installed.
        StoreError: The file cannot be read or written, or is none.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise MissingLibraryError.for_extra("optuna", "search", "search") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=WHOLE // STOPPED_SHARE, reduction_factor=2
    )
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return optuna.create_study(
                study_name=NAME,
                storage=JournalStorage(JournalFileBackend(str(path))),
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise _no_study(path, f"{type(error).__name__}: {error}") from error


def _no_study(path: Path, given: str) -> StoreError:
    return StoreError(
        "the study file is damaged, or is not a study",
        where=path,
        given=given,
        fix="name another file with --study, or remove it: finished steps are kept in the store",
    )


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Be the only search that leads a study; cuts off a line that a killed one wrote half.

    Raises:
        StoreError: Another search leads it, or the file is no journal.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f"{path.name}.held"))
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                "another search is working on this study",
                where=path,
                fix="wait for it to end, or name another file with --study",
            ) from error
    try:
        if path.is_file():
            with storage_errors(path):
                content = path.read_bytes()
                if not content.startswith(JOURNAL[: len(content)]):
                    raise _no_study(path, f"it begins with {content[:20]!r}")
                os.truncate(path, content.rfind(b"\n") + 1)
        yield
    finally:
        lock.release()


def identify(study: Study, path: Path, parts: Mapping[str, str]) -> None:
    """Note what a study is of, or check that it is of the same.

    Args:
        study: Perhaps of an earlier command.
        path: Of its file, for messages.
        parts: What it depends on -> its hash.

    Raises:
        StoreError: It is of something else; names what differs.
    """
    known = study.user_attrs.get(IDENTITY)
    if known is None:
        study.set_user_attr(IDENTITY, dict(parts))
    elif known != parts:
        changed = [name for name in parts if known.get(name) != parts[name]]
        raise StoreError(
            "the study was started with different inputs, so its trials cannot be compared",
            where=path,
            given=f"changed since: {', '.join(changed)}",
            fix="name another file with --study, or another --output",
        )


def take_up(study: Study) -> None:
    """Fail the trials that were running when a search was ended, and enqueue them again."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def num_counted(study: Study) -> int:
    """How many trials have ended by themselves or are running."""
    return sum(each.state in ("complete", "pruned", "failed", "running") for each in records(study))


def ask(
    study: Study, distributions: Mapping[str, BaseDistribution], *, seed: int, parallel: bool
) -> Trial:
    """The next trial: one that waits, or one that the sampler (TPE) proposes.

    The sampler is seeded by the number of trials so far, so that a search that was interrupted
    proposes what it would have proposed otherwise.
    """
    from optuna.samplers import TPESampler

    state = np.random.SeedSequence((seed, num_counted(study))).generate_state(1)
    study.sampler = TPESampler(seed=int(state[0]), constant_liar=parallel)
    return study.ask(dict(distributions))


def tell(study: Study, trial: Trial, outcome: Outcome) -> None:
    """Note how a trial ended."""
    from optuna.trial import TrialState

    states = {
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    trial.set_user_attr(OUTCOME, outcome.model_dump(mode="json"))
    value = None
    if outcome.state == "pruned":  # without a constraint it would count as within the budget
        trial.set_constraint(BUDGET, UNKNOWN_SHORTFALL)
    if outcome.value is not None:
        trial.set_constraint(BUDGET, outcome.value.shortfall)
        value = outcome.value.of(study.user_attrs["objective"])
    study.tell(trial, value, state=states[outcome.state])


def records(study: Study) -> list[TrialRecord]:
    """All trials, the oldest first."""
    return [_record(each) for each in study.get_trials(deepcopy=False)]


def _record(trial: FrozenTrial) -> TrialRecord:
    found = trial.user_attrs.get(OUTCOME)
    outcome = None if found is None or not trial.state.is_finished() else Outcome(**found)
    unfinished: State = "waiting" if trial.state.name == "WAITING" else "running"
    ended: State = "interrupted" if outcome is None else outcome.state
    return TrialRecord(
        number=trial.number,
        state=ended if trial.state.is_finished() else unfinished,
        settings=dict(trial.params),
        outcome=outcome,
    )
