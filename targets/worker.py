"""A process that runs one target for its parent: ``python -m targets.worker [FOLDER]``.

Reads commands as JSON lines from stdin and answers each with one JSON line on stdout; before the
answer to a long one come lines that tell that it is still at work. A process of its own keeps apart
what must not mix: the threads of two runtimes, their memory, native crashes.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import gc
import itertools
import os
import queue
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from targets.base import Session
from targets.bundle import Bundle
from targets.errors import ToolkitError, WorkerError
from targets.evaluation_pack import EvaluationPack
from targets.interference import CpuSample, peak_memory_bytes, round_between
from targets.measurement import warm_up_until_stable
from targets.protocol import ErrorRecord, decode, encode, source_from_json
from targets.registry import get, open_session, usual_batch_size
from targets.workloads import Request, Workload, requests

__all__ = ["Commands", "serve"]

SIGN_OF_LIFE_S = 1.0
"""Seconds between two lines that tell that a command is still at work."""
WORKLOAD: TypeAdapter[Workload] = TypeAdapter(Workload)


class Commands:
    """What a worker can be asked to do: one method a command, JSON values in and out.

    Args:
        still_at_work: Called now and then during a command that takes long, as a sign of life.
    """

    def __init__(self, still_at_work: Callable[[], object] = lambda: None) -> None:
        self._still_at_work = still_at_work
        self._session: Session | None = None
        self._bundle: Bundle | None = None
        self._requests: dict[Workload, list[Request]] = {}
        self._threads = 1

    def lower(
        self, *, target: str, settings: dict[str, Any], source: dict[str, Any], folder: str
    ) -> dict[str, Any]:
        """Check a model against a target and write it in the target's form."""
        lowering = get(target, **settings)
        model = source_from_json(source)
        lowering.check(model)
        return dataclasses.asdict(lowering.lower(model, Path(folder)))

    def open(self, *, bundle: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        """Load a bundle in place of the open one.

        Measures the load with the import of the runtime's library in it.
        """
        self.close()
        opened = Bundle.open(bundle).with_options(options)
        start = time.perf_counter()
        self._session = open_session(opened, threads=threads)
        self._threads = threads
        load_time_s = time.perf_counter() - start
        self._bundle = opened
        self._requests.clear()
        return {"load_time_ms": load_time_s * 1e3, "peak_memory_bytes": peak_memory_bytes()}

    def predict(self, *, pack: str, outputs: str, batch_size: int | None) -> dict[str, Any]:
        """Let the model answer an evaluation pack; see `Answers.open`.

        Writes the outputs in the order of the pack, as safetensors.
        """
        from safetensors.numpy import save_file

        session, bundle = self._opened(), self._bundle
        assert bundle is not None
        samples = EvaluationPack.load(Path(pack))
        meaning = bundle.manifest.answers
        if batch_size is None:
            batch_size = usual_batch_size(bundle)
        answer = meaning.open(bundle.folder)
        answers = []
        rows = session.batch_size(min(batch_size, meaning.rows_at_once))
        for batch in samples.batches(rows, session.signature):
            answers.append((batch, answer(session, batch.feeds)))
            self._still_at_work()
        save_file(samples.restore(answers, session.signature), outputs)
        return {"num_samples": len(samples)}

    def warm_up(self, *, workload: dict[str, Any]) -> dict[str, Any]:
        """Run until the times are stable."""
        made = self._made(workload)
        if len(made) > 1:  # each once: a runtime may compile something for its length
            for each in made:
                each()
        turns = itertools.cycle(made)
        times = warm_up_until_stable(lambda: next(turns)(), time.perf_counter_ns)
        return {"run_ns": times, "num_requests": len(made)}

    def round(self, *, workload: dict[str, Any], num_runs: int, settle_runs: int) -> dict[str, Any]:
        """Time ``num_runs`` runs, after some that are not timed."""
        made = self._made(workload)
        gc.collect()  # first: it walks through all memory, which the runs then bring back
        gc.disable()
        try:
            for index in range(settle_runs):
                made[index % len(made)]()
            before = CpuSample.take()
            times = _time_runs(made, num_runs)
            after = CpuSample.take()
        finally:
            gc.enable()
        return {
            "round": round_between(before, after, times).model_dump(mode="json"),
            "peak_memory_bytes": peak_memory_bytes(),
        }

    def run_load(self, *, pack: str, settings: dict[str, Any], logs: str) -> dict[str, Any]:
        """Run a load scenario on the samples of a pack; LoadGen's logs go into a folder."""
        from targets import loadgen
        from targets.load_scenario import LoadSettings

        result = loadgen.run_load(
            self._opened(),
            EvaluationPack.load(Path(pack)),
            LoadSettings.model_validate(settings),
            Path(logs),
            threads=self._threads,
        )
        return result.model_dump(mode="json")

    def close(self) -> dict[str, Any]:
        """Free the model."""
        if self._session is not None:
            self._session.close()
            self._session = None
        return {}

    def _opened(self) -> Session:
        if self._session is None:
            raise WorkerError("no bundle is open in this worker", fix="send the command open first")
        return self._session

    def _made(self, workload: dict[str, Any]) -> list[Request]:
        spec = WORKLOAD.validate_python(workload)
        if spec not in self._requests:
            session = self._opened()
            assert self._bundle is not None
            self._requests[spec] = requests(spec, session, self._bundle)
        return self._requests[spec]


def serve(commands_in: BinaryIO, answers: BinaryIO, folder: str | None = None) -> None:
    """Answer commands until ``close`` comes; leaves the process at once when the parent is gone.

    Args:
        commands_in: A JSON line each.
        answers: A JSON line each, after lines ``{"at_work": true}`` where it takes long.
        folder: The parent's temporary files, which go with the process where the parent was ended.
    """
    last_sign = time.monotonic()

    def still_at_work() -> None:
        nonlocal last_sign
        if time.monotonic() - last_sign >= SIGN_OF_LIFE_S:
            answers.write(encode({"at_work": True}))
            answers.flush()
            last_sign = time.monotonic()

    commands = Commands(still_at_work)
    table: dict[str, Callable[..., dict[str, Any]]] = {
        method.__name__: method
        for method in (
            commands.lower,
            commands.open,
            commands.predict,
            commands.warm_up,
            commands.round,
            commands.run_load,
            commands.close,
        )
    }
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    receive = threading.Thread(target=_receive, args=(commands_in, inbox, folder), daemon=True)
    receive.start()
    name = ""
    while name != "close":
        message = decode(inbox.get())
        name = message.pop("command")
        answers.write(_answer(table[name], message))
        answers.flush()


def _answer(command: Callable[..., dict[str, Any]], arguments: dict[str, Any]) -> bytes:
    try:
        return encode({"result": command(**arguments)})
    except ToolkitError as error:
        return encode({"error": ErrorRecord.of(error).model_dump()})
    except Exception as error:  # whatever a target raises is the parent's to judge
        traceback.print_exc()
        sys.stderr.flush()
        return encode({"error": ErrorRecord.of(error).model_dump()})


def _receive(commands_in: BinaryIO, inbox: queue.SimpleQueue[bytes], folder: str | None) -> None:
    for line in commands_in:
        inbox.put(line)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    # The pipe ends when the parent does, even while the main thread is deep in native code.
    os._exit(0)


def _time_runs(made: Sequence[Request], num_runs: int) -> tuple[int, ...]:
    clock = time.perf_counter_ns
    times = []
    for run in itertools.islice(itertools.cycle(made), num_runs):
        start = clock()
        run()
        times.append(clock() - start)
    return tuple(times)


def _main() -> None:
    faulthandler.enable(all_threads=False)
    # Native libraries print to fd 1, and their children read fd 0: keep both off the protocol.
    commands_in, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    serve(commands_in, answers, *sys.argv[1:2])
    # Runtimes have crashed while the interpreter takes itself apart; nothing is left to save.
    os._exit(0)


if __name__ == "__main__":
    _main()
