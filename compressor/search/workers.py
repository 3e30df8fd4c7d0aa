"""Where the trials of a search run: one after the other here, or side by side through Ray."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from pydantic import BaseModel, ConfigDict

from compressor.errors import DeviceError, StoreError
from compressor.manager import TrainingStoppedError
from compressor.pipeline import try_on_validation
from compressor.preparation import Prepared
from compressor.progress import Progress, Silent
from compressor.recipe.load import validate_document
from compressor.search.objective import (
    judge_trial,
    least_drop_allowed,
    num_evaluations,
    objective_of,
)
from compressor.search.space import with_settings
from compressor.search.study import WHOLE, Outcome, open_study
from compressor.store import RunStore
from compressor.tasks import get_task
from targets.environment import usable_cpus
from targets.errors import MissingLibraryError, ToolkitError

__all__ = ["InTurn", "Job", "RayWorkers", "Workers", "perform", "share_of_nodes"]

CONNECT_S = 10.0
"""How long a cluster may take to answer."""


class Job(BaseModel):
    """A trial to run, in plain values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: Path
    store: Path
    recipe: dict[str, Any]
    trial: int


def perform(job: Job, progress: Progress) -> Outcome:
    """Run a trial: its recipe, as far as the validation data goes.

    Raises:
        StoreError: The store failed; any other error is an outcome.
    """
    from optuna.trial import Trial

    started = time.monotonic()
    base = validate_document(job.recipe, Path("recipe"), Path.cwd())
    study = open_study(job.study)
    trial = Trial(study, study.get_trials(deepcopy=False)[job.trial]._trial_id)
    accuracies: list[float] = []

    def outcome(state: Any, **more: Any) -> Outcome:
        took = round(time.monotonic() - started, 3)
        return Outcome(state=state, accuracies=tuple(accuracies), duration_s=took, **more)

    try:
        recipe = with_settings(base, trial.params)
        total = num_evaluations(recipe)

        def watch(prepared: Prepared) -> Callable[[int, float], None]:
            before = prepared.original.record.facts["metrics"]["validation_accuracy"]
            enough = 1.0
            allowed = least_drop_allowed(recipe.budget, before)
            if (
                objective_of(recipe.budget) == "speedup"
                and allowed is not None
                and get_task(recipe.task).trains_by_its_measure
            ):
                enough = before - allowed / 100  # more of it is no merit where the fastest wins

            def told(epoch: int, accuracy: float) -> None:
                accuracies.append(accuracy)
                trial.report(min(accuracy, enough), WHOLE * len(accuracies) // total)
                if len(accuracies) < total and trial.should_prune():
                    raise TrainingStoppedError

            return told

        named = recipe.model_copy(update={"name": f"{base.name}, trial {job.trial}"})
        rows = try_on_validation(named, store=RunStore(job.store), progress=progress, watch=watch)
        return outcome("complete", value=judge_trial(rows, recipe))
    except TrainingStoppedError:
        return outcome("pruned")
    except StoreError:
        raise
    except (ToolkitError, MemoryError) as error:
        reason = str(error) or "there was not enough memory"
        return outcome("failed", reason=RunStore(job.store).without_paths(reason))


class Workers(Protocol):
    """Runs trials; a context manager that ends what runs."""

    size: int
    """How many run at a time."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def start(self, job: Job) -> None:
        """Begin a trial."""

    def wait(self) -> tuple[int, Outcome]:
        """Wait until a trial has ended: its number, and how it ended."""


class InTurn:
    """Runs one trial after the other in this process."""

    size = 1

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._jobs: list[Job] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def start(self, job: Job) -> None:
        """See `Workers`."""
        self._jobs.append(job)

    def wait(self) -> tuple[int, Outcome]:
        """See `Workers`."""
        job = self._jobs.pop(0)
        return job.trial, perform(job, self.progress)


class RayWorkers:
    """Runs trials side by side, each in a process of Ray.

    Args:
        size: How many.
        address: Of a running cluster; None starts one on this machine, and ends it.

    Raises:
        MissingLibraryError: Ray is not installed.
    """

    def __init__(self, size: int, address: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingLibraryError.for_extra("ray", "search", "--workers") from error
        self.size = size
        self.address = address
        self._ray = ray
        self._running: dict[Any, int] = {}

    def __enter__(self) -> Self:
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        cpus = max(1, len(usable_cpus()) // self.size)
        with _own_answer_to_sigterm():
            if self.address is None:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                # Without an address Ray would join a cluster that happens to run here.
                self._ray.init(
                    address="local", num_cpus=cpus * self.size, include_dashboard=False, **quiet
                )
            else:
                _check_address(self.address)
                try:
                    self._ray.init(address=self.address, **quiet)
                except (OSError, RuntimeError, ValueError) as error:
                    raise _unreachable(self.address, error) from error
                cpus = self._share_of_cluster()
        gpus = int(self._ray.cluster_resources().get("GPU", 0.0))
        remote = self._ray.remote(
            num_cpus=cpus,
            # As many trials on each GPU: what is left of several cannot be put together.
            num_gpus=1 / math.ceil(self.size / gpus) if gpus else 0,
            max_retries=0,
            scheduling_strategy="SPREAD",
        )
        self._perform = remote(_perform_there)
        return self

    def _share_of_cluster(self) -> int:
        """CPUs of a trial: as many threads Ray lets it use."""
        nodes = [each["Resources"].get("CPU", 0.0) for each in self._ray.nodes() if each["Alive"]]
        return share_of_nodes([int(each) for each in nodes], self.size)

    def __exit__(self, *_: object) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def start(self, job: Job) -> None:
        """See `Workers`."""
        self._running[self._perform.remote(job.model_dump_json())] = job.trial

    def wait(self) -> tuple[int, Outcome]:
        """See `Workers`."""
        [done], _ = self._ray.wait(list(self._running), num_returns=1)
        trial = self._running.pop(done)
        try:
            return trial, Outcome.model_validate_json(self._ray.get(done))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:  # its process is gone
            reason = f"the worker ended: {str(error).strip().splitlines()[0]}"
            return trial, Outcome(state="failed", reason=reason, duration_s=0.0)


def share_of_nodes(nodes: Sequence[int], size: int) -> int:
    """Most CPUs of a trial with which so many run at a time, each on one node; at least 1.

    Args:
        nodes: CPUs of each node.
        size: Trials.
    """
    most = max(1, *nodes, 1)
    fitting = (share for share in range(most, 0, -1) if sum(n // share for n in nodes) >= size)
    return next(fitting, 1)


@contextmanager
def _own_answer_to_sigterm() -> Iterator[None]:
    """Undo that Ray answers SIGTERM itself, and with an exit code of its own."""
    answer = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, answer)


def _perform_there(job: str) -> str:
    """Plain text in and out: what Ray sends is not unpickled into objects of ours."""
    return perform(Job.model_validate_json(job), Silent()).model_dump_json()


def _check_address(address: str) -> None:
    """Refuse a cluster that does not answer: Ray itself would wait for minutes.

    Raises:
        DeviceError: It does not.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # "auto" and the like: Ray looks on this machine
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_S):
            pass
    except (OSError, ValueError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> DeviceError:
    return DeviceError(
        "the Ray cluster cannot be reached",
        where=f"--ray-address {address}",
        given=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
        fix="it wants a token: set RAY_AUTH_MODE=token and, unless it is in ~/.ray/auth_token, "
        "RAY_AUTH_TOKEN"
        if _wants_token(error)
        else "start it with `ray start --head`, and give the address that it prints: host:6379",
    )


def _wants_token(error: BaseException | None) -> bool:
    """Whether what is behind an error is that Ray was not told the token of the cluster."""
    while error is not None:
        if "AuthenticationError" in f"{type(error).__name__}: {error}":  # Ray tells it as text
            return True
        error = error.__cause__ or error.__context__
    return False
