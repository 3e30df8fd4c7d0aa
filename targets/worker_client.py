"""The parent's end of a worker process: start it, command it, tell how it died."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from pydantic import BaseModel, ConfigDict
from safetensors.numpy import load_file

import targets
from targets.base import Lowered, Source, Target
from targets.errors import WorkerError
from targets.load_result import LoadResult
from targets.load_scenario import LoadSettings
from targets.measurement import Round
from targets.protocol import ErrorRecord, decode, encode, source_to_json
from targets.scratch import ScratchFolder
from targets.signature import Arrays
from targets.workloads import Workload

__all__ = ["Opened", "Timed", "WarmedUp", "Worker", "worker_environment"]

STDERR_LINES = 30
EXIT_S = 5.0
_AFTER_CRASH = "try another version of the runtime; what it printed last is above"
_AFTER_SIGNAL: dict[int, str] = {
    signal.SIGKILL: "memory has probably run out: use a smaller batch, or free memory",
    signal.SIGTERM: "somebody ended it: run again",
    signal.SIGINT: "somebody ended it: run again",
}
# Queries that arrive faster than they are answered are still answered, which takes longer.
LOAD_TIMES = 10

# Each of these, inherited, would pin or multiply the threads of a worker behind the caller's back.
THREAD_PLACEMENT = (
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_HW_SUBSET",
    "OMP_PLACES",
    "OMP_PROC_BIND",
    "OMP_THREAD_LIMIT",
)
THREAD_COUNTS = (
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class Opened(BaseModel):
    """What opening a bundle cost."""

    model_config = ConfigDict(frozen=True)

    load_time_ms: float
    peak_memory_bytes: int


class WarmedUp(BaseModel):
    """What a warm-up found."""

    model_config = ConfigDict(frozen=True)

    run_ns: tuple[int, ...]
    """Wall time of each run, in nanoseconds."""
    num_requests: int
    """Different requests of the workload."""


class Timed(BaseModel):
    """One round, and the largest memory of the process up to its end."""

    model_config = ConfigDict(frozen=True)

    round: Round
    peak_memory_bytes: int

    def after(self, reference_ns: int, wakeup_ns: int | None) -> Timed:
        """The same, with what the machine's own speed was just before; see `targets.machine_speed`.

        Args:
            reference_ns: Time of the fixed work.
            wakeup_ns: Time to wake a thread, if that was measured.
        """
        speed = {"reference_ns": reference_ns, "wakeup_ns": wakeup_ns}
        measured = self.round.model_copy(update=speed)
        return self.model_copy(update={"round": measured})


class Worker:
    """A process that runs one target; a context manager that ends it.

    Args:
        threads: CPU threads of the target.
        python: The interpreter; another one brings another set of installed runtimes.
        env: Environment variables on top of those of this process.
        cwd: Its working directory.
        timeout_s: Longest wait for the answer to one command, or for the next sign of life.

    Raises:
        WorkerError: The process cannot be started. Every method raises it when the process dies or
            does not answer in time, and any other `ToolkitError` that the worker raised.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        python: str | Path = sys.executable,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        self.threads = threads
        self.timeout_s = timeout_s
        self._files = ScratchFolder("worker")
        self._pending = b""
        self._death: WorkerError | None = None
        command = [str(python), "-P", "-m", "targets.worker", str(self._files.path)]
        self._process = self._start(command, env or {}, cwd)
        # The commands in and the answers out; both are pipes, so neither is None.
        self._stdin = cast(IO[bytes], self._process.stdin)
        self._stdout = cast(IO[bytes], self._process.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(kindly=error is None)

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def lower(self, target: Target, source: Source, folder: Path) -> Lowered:
        """Check a model against a target, then lower it into ``folder``; see `Target.lower`."""
        answer = self._ask(
            "lower",
            target=target.name,
            settings=target.settings(),
            source=source_to_json(source),
            folder=str(folder),
        )
        return Lowered(
            model=answer["model"],
            options=answer["options"],
            notes=tuple(answer["notes"]),
            cpu_features=tuple(answer["cpu_features"]),
            encoder=answer["encoder"],
        )

    def open(self, bundle: Path, *, options: Mapping[str, Any] | None = None) -> Opened:
        """Load a bundle in place of the open one, with ``options`` on top of its own."""
        answer = self._ask(
            "open", bundle=str(bundle), threads=self.threads, options=dict(options or {})
        )
        return Opened.model_validate(answer)

    def predict(self, pack: Path, *, batch_size: int | None = None) -> Arrays:
        """Run a saved evaluation pack on the open bundle.

        Args:
            pack: The file.
            batch_size: Rows that run at a time; None for several, or one where
                `Target.runs_alone`.

        Returns:
            The outputs in the order of the pack; see `EvaluationPack.restore`.
        """
        outputs = self._files.path / "outputs.safetensors"
        self._ask("predict", pack=str(pack), outputs=str(outputs), batch_size=batch_size)
        arrays: Arrays = dict(load_file(outputs))
        outputs.unlink()
        return arrays

    def warm_up(self, workload: Workload) -> WarmedUp:
        """Run until the times are stable."""
        answer = self._ask("warm_up", workload=workload.model_dump(mode="json"))
        return WarmedUp.model_validate(answer)

    def round(self, workload: Workload, *, num_runs: int, settle_runs: int = 1) -> Timed:
        """Time ``num_runs`` runs in a row, after ``settle_runs`` that bring the caches back.

        A workload of several requests takes them in turn.
        """
        answer = self._ask(
            "round",
            workload=workload.model_dump(mode="json"),
            num_runs=num_runs,
            settle_runs=settle_runs,
        )
        return Timed.model_validate(answer)

    def run_load(self, pack: Path, settings: LoadSettings, logs: Path) -> LoadResult:
        """Run a load scenario on the samples of a saved pack; see `targets.loadgen.run_load`.

        Args:
            pack: The file.
            settings: The scenario.
            logs: A folder for LoadGen's own logs; made if it is absent.
        """
        logs.mkdir(parents=True, exist_ok=True)
        answer = self._ask(
            "run_load",
            timeout_s=self.timeout_s + LOAD_TIMES * settings.expected_s,
            pack=str(pack),
            settings=settings.model_dump(mode="json"),
            logs=str(logs),
        )
        return LoadResult.model_validate(answer)

    def close(self, *, kindly: bool = True) -> None:
        """End the process. ``kindly`` lets it free its model first."""
        if self.is_alive and kindly:
            with contextlib.suppress(WorkerError):
                self._ask("close", timeout_s=EXIT_S)
        self._kill()
        self._files.remove()

    def _start(
        self, command: list[str], env: Mapping[str, str], cwd: Path | None
    ) -> subprocess.Popen[bytes]:
        # -P in the command: the working directory is not a place to import modules from.
        try:
            with (self._files.path / "stderr").open("wb") as stderr:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=worker_environment(self.threads, env),
                    cwd=cwd,
                    start_new_session=True,
                )
        except OSError as error:
            self._files.remove()
            raise WorkerError(
                "the process of a target cannot be started",
                where=command[0],
                given=error,
                fix="pass the path of a Python interpreter with this package installed",
            ) from error

    def _ask(self, command: str, *, timeout_s: float | None = None, **arguments: Any) -> Any:
        """Send a command and wait for its result.

        Raises:
            ToolkitError: What the worker raised.
            WorkerError: The process died, or did not answer in time.
        """
        if self._death is not None:
            raise self._death
        wait_s = timeout_s or self.timeout_s
        try:
            self._stdin.write(encode({"command": command, **arguments}))
            self._stdin.flush()
            while "at_work" in (answer := decode(self._read_line(command, wait_s))):
                pass
        except (BrokenPipeError, EOFError) as error:
            self._death = self._explain_death(command)
            raise self._death from error
        if "error" in answer:
            failure = ErrorRecord.model_validate(answer["error"]).to_error()
            if isinstance(failure, WorkerError) and failure.given is None:
                failure.given = self._stderr_tail()
            raise failure
        return answer["result"]

    def _read_line(self, command: str, wait_s: float) -> bytes:
        deadline = time.monotonic() + wait_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(deadline - time.monotonic(), 0.0)):
                    self._kill()
                    self._death = WorkerError(
                        "the process of a target did not answer in time and was ended",
                        where=f"command {command}",
                        given=self._stderr_tail(),
                        fix="allow it more time, or try a smaller model",
                    )
                    raise self._death
                chunk = os.read(self._stdout.fileno(), 1 << 20)
                if not chunk:
                    raise EOFError
                self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _explain_death(self, command: str) -> WorkerError:
        try:
            code = self._process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            code = None
        self._kill()
        if code is None:
            what, fix = "the process of a target closed its output and hung", _AFTER_CRASH
        elif code < 0:
            what = f"the process of a target was ended by {_signal_name(-code)}"
            fix = _AFTER_SIGNAL.get(
                -code, "the runtime crashed on this model: try another version of it"
            )
        else:
            what, fix = f"the process of a target ended with exit code {code}", _AFTER_CRASH
        return WorkerError(what, where=f"command {command}", given=self._stderr_tail(), fix=fix)

    def _stderr_tail(self) -> str | None:
        path = self._files.path / "stderr"
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return None
        return "\n".join(lines[-STDERR_LINES:]) or None

    def _kill(self) -> None:
        if self.is_alive:
            # It leads a process group of its own, which holds whatever it started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._stdin, self._stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def worker_environment(threads: int, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: this process's, with the thread settings made explicit."""
    env = {name: value for name, value in os.environ.items() if name not in THREAD_PLACEMENT}
    env.update(dict.fromkeys(THREAD_COUNTS, str(threads)))
    env.update(extra)
    root = Path(targets.__file__).parent.parent
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    if root.resolve() not in installed:
        # Run from a checkout: the worker has to find the same code.
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (env.get("PYTHONPATH"), str(root))))
    return env


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
