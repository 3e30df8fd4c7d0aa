"""The run store: finished steps by what went into them, and where to go on after an interruption.

A step's key is the sha256 of everything that determines its result. Its folder appears under
``steps/`` in one atomic rename, complete and with the hash of every file, or not at all; until
then its files live under ``partial/``, where an interrupted step finds them again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from compressor import interruption
from compressor.errors import StoreError
from compressor.storage import (
    full_disk,
    record_files,
    records_of,
    storage_errors,
    sync_folder,
    write_atomically,
)
from targets.bundle import FileRecord
from targets.errors import ToolkitError

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["RunRecord", "RunStore", "StepRecord", "StoredStep", "default_store", "step_key"]

RECORD = "step.json"
FILES = "files"
WORK = "work"
ELAPSED = "elapsed_s"
STEPS = "steps"
PARTIAL = "partial"
_ATTEMPT = "files-"
RUNS = "runs"
LOCKS = "locks"
RUNNING = "running"
INTERRUPTED = "interrupted"
KILLED = "killed"
STORE_VERSION = 2  # goes up when a store is read in another way: older steps are not found then


class StepRecord(BaseModel):
    """What is known of a finished step."""

    # A diverged loss is NaN, and has to come back as that.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    key: str
    kind: str
    """What made it, such as ``pass:distill`` or ``lower:openvino``."""
    inputs: dict[str, Any]
    """Everything the key was made from."""
    created: str
    duration_s: float
    facts: dict[str, Any]
    """What the step found out: metrics, notes, shapes. JSON values only."""
    files: dict[str, FileRecord]
    digest: str = ""
    """The sha256 over all of the above, so that a damaged record is known."""

    def sealed(self) -> StepRecord:
        """The same, as it is read again, with its digest."""
        read = StepRecord.model_validate_json(self.model_dump_json())
        return read.model_copy(update={"digest": read.found_digest()})

    def found_digest(self) -> str:
        """What the digest has to be."""
        return hashlib.sha256(self.model_dump_json(exclude={"digest"}).encode()).hexdigest()


@dataclass(frozen=True)
class StoredStep:
    """A finished step on disk.

    Attributes:
        record: What is known of it.
        folder: Its files; read only by convention.
        cached: Whether it was there before it was asked for.
    """

    record: StepRecord
    folder: Path
    cached: bool

    @property
    def content_hash(self) -> str:
        """The sha256 over all files, names included: what the next step's key builds on."""
        lines = [f"{name} {record.sha256}" for name, record in sorted(self.record.files.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class RunRecord(BaseModel):
    """One run of a recipe: which steps it used, and how it ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    name: str
    started: str
    status: str
    steps: tuple[str, ...] = ()
    output: str = ""


def default_store() -> Path:
    """``$COMPRESSOR_STORE``, or a folder in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("COMPRESSOR_STORE") or Path(cache) / "compressor" / "store")


def step_key(kind: str, inputs: Mapping[str, Any]) -> str:
    """The sha256 of what a step is made from, in hex.

    Raises:
        TypeError: The inputs hold something other than JSON values.
    """
    text = json.dumps([STORE_VERSION, kind, inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class RunStore:
    """Finished steps, by key.

    Args:
        root: Folder of the store; made when first written to.

    Raises:
        StoreError: From any method: the disk is full, the folder cannot be written, or a finished
            step was damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._note: Callable[[str], None] | None = None  # that the present run uses a step

    def step(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path, Path], Mapping[str, Any]],
    ) -> StoredStep:
        """Return the finished step with these inputs, making it first where it is absent.

        Args:
            kind: What makes it.
            inputs: Everything that determines its result; JSON values only.
            make: Called with (folder for the result, folder that survives an interruption);
                returns the facts to record.
        """
        interruption.leave_if_asked()
        key = step_key(kind, inputs)
        if self._note is not None:
            self._note(key)  # before it is there: what an interruption leaves of it is kept as well
        found = self.find(key)
        if found is not None:
            return found
        with self._locked(key):
            found = self.find(key)  # another run may have made it while this one waited
            if found is not None:
                return found
            return self._make(key, kind, inputs, make)

    def is_finished(self, key: str) -> bool:
        """Whether there is a step with a key; its files are not checked."""
        return self._step_folder(key).is_dir()

    def work_folder(self, key: str) -> Path:
        """What survives an interruption of the step with a key lies there."""
        return self.root / PARTIAL / key / WORK

    def find(self, key: str) -> StoredStep | None:
        """The finished step with a key, every file checked against its hash, or None."""
        folder = self._step_folder(key)
        if not (folder / RECORD).is_file():
            return None
        record = self._read_record(folder / RECORD)
        with storage_errors(self.root):
            found = records_of(folder / FILES, record.files)
        for name, expected in record.files.items():
            if found[name] != expected:
                raise StoreError(
                    "a finished step in the store was damaged",
                    where=folder / FILES / name,
                    given="missing" if found[name] is None else "contents differ from their hash",
                    fix=self._mend(key),
                )
        return StoredStep(record, folder / FILES, cached=True)

    def remove(self, prefix: str) -> list[str]:
        """Remove the step whose key starts with ``prefix``, finished or partial.

        Returns:
            Its key; empty where there is none.

        Raises:
            StoreError: Also where several keys start so, or another run is making the step; nothing
                is removed then.
        """
        found = self._step_folders(prefix) if prefix else []
        keys = sorted({folder.name for folder in found})
        if len(keys) > 1:
            raise StoreError(
                "several steps begin like this",
                where=self.root,
                given=f"{prefix}: {', '.join(key[:12] for key in keys[:3])}, {len(keys)} in all",
                fix="name more of the key; `compressor runs show RUN` names the steps of a run",
            )
        for key in keys:
            with self._locked_now(key) as free:
                if not free:
                    raise StoreError(
                        "another run is making this step",
                        where=self.root / PARTIAL / key,
                        fix="wait for it to end, or stop it",
                    )
                for folder in found:
                    self._remove_folder(folder)
        return keys

    def without_paths(self, text: str) -> str:
        """A text in which files of steps are named relative to their step.

        Where a step lies in the store helps no reader of a report.
        """
        root, step = re.escape(str(self.root)), rf"({STEPS}|{PARTIAL})/[0-9a-f]+"
        pattern = rf"{root}/{step}/({FILES}|{_ATTEMPT}[0-9a-f]+|{WORK})/"
        return re.sub(pattern, "", text)

    def steps(self) -> Iterator[StepRecord]:
        """All finished steps whose record can be read, the oldest first."""
        records = []
        for path in (self.root / STEPS).glob(f"*/{RECORD}"):
            try:
                records.append(self._read_record(path))
            except StoreError:
                continue  # `find` names a damaged record when it is needed
        return iter(sorted(records, key=lambda record: record.created))

    @contextmanager
    def run(self, name: str, output: Path) -> Iterator[None]:
        """Keep a record of a run, however it ends: all steps that are asked for within it are its
        own, finished or not."""
        started = datetime.now(UTC)
        run = f"{started:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        keys: dict[str, None] = {}

        def write(status: str) -> None:
            self.write_run(
                RunRecord(
                    run=run,
                    name=name,
                    started=started.isoformat(timespec="seconds"),
                    status=status,
                    steps=tuple(keys),
                    output=str(output),
                )
            )

        def note(key: str) -> None:
            if key not in keys:
                keys[key] = None
                write(RUNNING)

        self._remove_half_records()
        with self._locked(run):
            write(RUNNING)
            outer, self._note = self._note, note
            try:
                yield
            except BaseException as error:
                with suppress(StoreError):  # the store may be what failed
                    write(_ending(error))
                raise
            finally:
                self._note = outer
            write("finished")

    def write_run(self, record: RunRecord) -> None:
        """Write or replace the record of a run."""
        with storage_errors(self.root):
            path = self.root / RUNS / f"{record.run}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            # A run goes on without waiting for the disk: its record says what it used, no more.
            durable = record.status != RUNNING
            write_atomically(path, record.model_dump_json(indent=2), durable=durable)

    def runs(self) -> list[RunRecord]:
        """All runs, the newest first."""
        records = []
        for path in sorted((self.root / RUNS).glob("*.json"), reverse=True):
            record = _read_run(path)
            if record is None:
                continue
            if record.status == RUNNING and self._is_free(record.run):
                record = record.model_copy(update={"status": KILLED})
            records.append(record)
        return records

    @contextmanager
    def writing_to(self, output: Path) -> Iterator[None]:
        """Hold an output folder; waits for another run of this store that writes there."""
        with self._locked(f"output-{step_key('output', {'path': str(output.absolute())})}"):
            yield

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Be the only run of this store that measures on this machine; waits for others."""
        with self._locked(f"measuring-{platform.node() or 'here'}"):
            yield

    def prune(self, keep_runs: int) -> tuple[int, int]:
        """Forget all but the newest runs, and remove the steps that none of them used.

        Runs that go on at the moment, and what they use, are left alone; so is what an unfinished
        run that stays had begun.

        Returns:
            (number of steps removed, bytes freed).
        """
        runs = self.runs()
        staying = [
            run for place, run in enumerate(runs) if place < keep_runs or run.status == RUNNING
        ]
        kept = {key for run in staying for key in run.steps}
        ended = {run.run for run in runs if run.status != RUNNING}
        with storage_errors(self.root):
            for run in runs:
                if run not in staying:
                    (self.root / RUNS / f"{run.run}.json").unlink(missing_ok=True)
                    (self.root / LOCKS / run.run).unlink(missing_ok=True)
        count = size = 0
        for folder in self._step_folders(""):
            if folder.name in kept:
                continue
            with self._locked_now(folder.name) as free:
                if not free:
                    continue
                found = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
                if folder.name in self._keys_but_of(ended):  # last: it may have come just now
                    continue
                self._remove_folder(folder)
                count, size = count + (folder.parent.name == STEPS), size + found
        return count, size

    def _keys_but_of(self, ended: Collection[str]) -> set[str]:
        """The steps of the runs that go on, or that ended since others had."""
        paths = (self.root / RUNS).glob("*.json")
        records = (_read_run(path) for path in paths if path.stem not in ended)
        return {key for record in records if record is not None for key in record.steps}

    def _step_folder(self, key: str) -> Path:
        return self.root / STEPS / key

    def _step_folders(self, prefix: str) -> list[Path]:
        """Folders of the finished and partial steps whose key starts with ``prefix``."""
        return [
            folder
            for parent in (self.root / STEPS, self.root / PARTIAL)
            if parent.is_dir()
            for folder in sorted(parent.iterdir())
            if folder.name.startswith(prefix) and folder.is_dir()
        ]

    def _read_record(self, path: Path) -> StepRecord:
        key = path.parent.name
        try:
            record = StepRecord.model_validate_json(path.read_bytes())
            if record.digest != record.found_digest() or record.key != key:
                raise ValueError("contents differ from their hash")
        except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
            raise StoreError(
                "the record of a finished step was damaged",
                where=path,
                given=str(error).splitlines()[0],
                fix=self._mend(key),
            ) from error
        return record

    def _remove_half_records(self) -> None:
        """Remove what runs left that were killed while they wrote their record."""
        for path in (self.root / RUNS).glob("*.json.tmp"):
            if self._is_free(path.name.removesuffix(".json.tmp")):
                with storage_errors(self.root):
                    path.unlink(missing_ok=True)

    def _remove_folder(self, folder: Path) -> None:
        with storage_errors(self.root):
            # Without its record a step does not exist, so an interruption leaves no damaged one.
            (folder / RECORD).unlink(missing_ok=True)
            shutil.rmtree(folder)

    def _mend(self, key: str) -> str:
        """What to do about a damaged step."""
        command = self.remove_command(key)
        return f"remove it with `{command}` and run again: only this step is made anew"

    def remove_command(self, key: str) -> str:
        """What removes a step of this store, for a message."""
        store = "" if self.root == default_store() else f" --store {shlex.quote(str(self.root))}"
        return f"compressor runs remove {key[:12]}{store}"

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Hold the lock of a step; waits for whoever is making it."""
        lock = self._lock(key)
        with storage_errors(self.root):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _locked_now(self, key: str) -> Iterator[bool]:
        """Hold the lock of a step where nobody else does; tells whether it was free."""
        from filelock import Timeout

        lock = self._lock(key)
        with storage_errors(self.root), suppress(Timeout):
            lock.acquire(timeout=0)
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def _is_free(self, key: str) -> bool:
        """Whether nobody holds a lock: its holder ended, perhaps without a word."""
        if not (self.root / LOCKS / key).exists():
            return True
        with self._locked_now(key) as free:
            return free

    def _lock(self, key: str) -> BaseFileLock:
        from filelock import FileLock

        with storage_errors(self.root):
            folder = self.root / LOCKS
            folder.mkdir(parents=True, exist_ok=True)
            return FileLock(folder / key)

    def _make(
        self,
        key: str,
        kind: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path, Path], Mapping[str, Any]],
    ) -> StoredStep:
        partial = self.root / PARTIAL / key
        # The worker of a run that was just killed may still write: never into what is made now.
        files = partial / f"{_ATTEMPT}{uuid.uuid4().hex}"
        with storage_errors(self.root):
            _remove_attempts(partial)  # a half-written result is worth nothing
            files.mkdir(parents=True)
            (partial / WORK).mkdir(exist_ok=True)
        before, started = _earlier_s(partial), time.monotonic()

        def elapsed_s() -> float:
            """Of all attempts: what one has finished, the next need not do again."""
            return round(before + time.monotonic() - started, 3)

        try:
            with full_disk(self.root):
                facts = make(files, partial / WORK)
                # What was made around a swallowed interruption may be anything.
                interruption.leave_if_asked()
        except BaseException:
            with suppress(OSError):
                (partial / ELAPSED).write_text(str(elapsed_s()))
            raise
        with storage_errors(self.root):
            record = StepRecord(
                key=key,
                kind=kind,
                inputs=dict(inputs),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                duration_s=elapsed_s(),
                facts=dict(facts),
                files=record_files(files),
            ).sealed()
            os.rename(files, partial / FILES)
            write_atomically(partial / RECORD, record.model_dump_json(indent=2))
            _remove_attempts(partial, but=FILES)
            shutil.rmtree(partial / WORK)
            (partial / ELAPSED).unlink(missing_ok=True)
            target = self._step_folder(key)
            target.parent.mkdir(exist_ok=True)
            if target.exists():  # without a record, or `find` would have returned it
                shutil.rmtree(target)
            os.rename(partial, target)
            sync_folder(target.parent)
        return StoredStep(record, target / FILES, cached=False)


def _read_run(path: Path) -> RunRecord | None:
    """The record of a run; None of one that was cut off while it was written."""
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _earlier_s(partial: Path) -> float:
    """How long earlier attempts at a step took that did not end, in seconds."""
    try:
        return float((partial / ELAPSED).read_text())
    except (OSError, ValueError):
        return 0.0


def _ending(error: BaseException) -> str:
    """How a run ended: an error after an interruption is what a library made of it."""
    if isinstance(error, KeyboardInterrupt | SystemExit) or interruption.asked() is not None:
        return INTERRUPTED
    return f"failed: {error.what if isinstance(error, ToolkitError) else type(error).__name__}"


def _remove_attempts(partial: Path, *, but: str = "") -> None:
    """Remove the half-written results of a step, as far as nobody writes there any more."""
    for folder in partial.glob(f"{FILES}*"):
        if folder.name != but:
            shutil.rmtree(folder, ignore_errors=True)
