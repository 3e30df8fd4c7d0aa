"""A worker answers, reports errors with their types, and its death is told with its cause."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast, get_args

import numpy as np
import psutil
import pytest

from targets import Bundle, Source, get
from targets.base import Precision
from targets.errors import (
    InputError,
    TargetError,
    ToolkitError,
    UnsupportedModelError,
    WorkerError,
)
from targets.evaluation_pack import EvaluationPack
from targets.feeds import FeedsSpec
from targets.interference import peak_memory_bytes
from targets.preprocessing import AudioPreprocessing, TextPreprocessing
from targets.preprocessing.audio import LogMel
from targets.protocol import ErrorRecord
from targets.signature import Arrays
from targets.worker import Commands
from targets.worker_client import Worker, worker_environment

MakeBundle = Callable[..., Path]
FEEDS = FeedsSpec(
    lengths=(4, 4), num_ids=20, preprocessing=TextPreprocessing(max_length=512, pad_token_id=0)
)


def gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not psutil.pid_exists(pid)


def test_round_gives_one_time_a_run(make_bundle: MakeBundle) -> None:
    with Worker() as worker:
        opened = worker.open(make_bundle(delay_ms=2))
        timed = worker.round(FEEDS, num_runs=7)
    assert opened.load_time_ms > 0
    assert len(timed.round.run_ns) == 7
    assert min(timed.round.run_ns) >= 2e6
    assert 0 < timed.round.cpu_ns < 2 * sum(timed.round.run_ns)


def test_peak_memory_is_that_of_the_worker_and_not_of_a_large_parent(
    make_bundle: MakeBundle,
) -> None:
    ballast = np.ones(40_000_000)  # 320 MB resident
    with Worker() as worker:
        opened = worker.open(make_bundle())
    assert 20e6 < opened.peak_memory_bytes < 200e6 < ballast.nbytes


def test_peak_memory_can_be_that_of_a_large_child_that_has_ended() -> None:
    here = peak_memory_bytes()
    script = f"ballast = b'1' * {here + 100_000_000}"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert peak_memory_bytes() < here + 50_000_000
    assert peak_memory_bytes(with_children=True) > here + 100_000_000


def test_predict_gives_outputs_in_the_order_of_the_pack(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    rows = [[1, 2], [3], [4, 5, 6], [7]]
    pack = EvaluationPack.from_rows(
        {"input_ids": rows},
        [0, 1, 0, 1],
        preprocessing=TextPreprocessing(max_length=512, pad_token_id=9),
    )
    pack.save(tmp_path / "pack.safetensors")
    with Worker() as worker:
        worker.open(make_bundle())
        outputs = worker.predict(tmp_path / "pack.safetensors", batch_size=3)
    assert outputs["logits"][:, 0].tolist() == [3, 3, 15, 7]
    assert outputs["tokens"].tolist() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("runs_alone", "given", "sizes"),
    [(False, None, [2, 2]), (True, None, [1] * 4), (True, 3, [3, 1]), (False, 3, [3, 1])],
)
def test_rows_run_alone_where_they_are_to(
    make_bundle: MakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runs_alone: bool,
    given: int | None,
    sizes: list[int],
) -> None:
    rows = [[1, 2], [3], [4, 5, 6], [7]]
    preprocessing = TextPreprocessing(max_length=512, pad_token_id=9)
    pack = EvaluationPack.from_rows({"input_ids": rows}, [0] * 4, preprocessing=preprocessing)
    pack.save(tmp_path / "pack.safetensors")
    bundle = make_bundle()
    found: list[int] = []
    monkeypatch.setattr("targets.registry.BATCH_SIZE", 2)
    monkeypatch.setattr(type(get("fake")), "runs_alone", lambda target, bundle: runs_alone)
    commands = Commands()
    commands.open(bundle=str(bundle), threads=1, options={})
    session = commands._opened()
    run = session.run

    def noted(feeds: Arrays) -> Arrays:
        found.append(len(feeds["input_ids"]))
        return run(feeds)

    monkeypatch.setattr(session, "run", noted)
    commands.predict(
        pack=str(tmp_path / "pack.safetensors"),
        outputs=str(tmp_path / "outputs.safetensors"),
        batch_size=given,
    )
    assert found == sizes


@pytest.mark.parametrize("precision", get_args(Precision))
def test_scales_of_run_time_are_those_of_single_rows(precision: Precision) -> None:
    preprocessing = TextPreprocessing(max_length=8, pad_token_id=0)
    manifest = SimpleNamespace(precision=precision, options={}, preprocessing=preprocessing)
    alone = get("onnxruntime").runs_alone(cast("Bundle", SimpleNamespace(manifest=manifest)))
    assert alone == (precision == "int8-dynamic")


@pytest.mark.parametrize("step", [None, 1600])
def test_recordings_run_alone_where_a_batch_has_the_window_of_the_longest(
    step: int | None,
) -> None:
    preprocessing = AudioPreprocessing(max_samples=16_000, log_mel=LogMel(window=16_000, step=step))
    manifest = SimpleNamespace(precision="fp32", options={}, preprocessing=preprocessing)
    alone = get("onnxruntime").runs_alone(cast("Bundle", SimpleNamespace(manifest=manifest)))
    assert alone == (step is not None)


def test_each_request_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the warm-up is over before it would be their turn."""
    counts = [0] * 30

    def request(place: int) -> Callable[[], None]:
        def run() -> None:
            counts[place] += 1
            time.sleep(0.05)

        return run

    commands = Commands()
    made = [request(place) for place in range(len(counts))]
    monkeypatch.setattr(commands, "_made", lambda workload: made)
    warm = commands.warm_up(workload={})
    assert min(counts) >= 1
    assert sum(counts) - len(counts) == len(warm["run_ns"])
    assert warm["num_requests"] == len(counts)


def test_lower_returns_what_the_target_wrote(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = Bundle.open(make_bundle())
    source = Source(tmp_path, bundle.manifest.signature, "int8", {"batch": (1, 2, 8)}, "fill-mask")
    with Worker() as worker:
        lowered = worker.lower(get("fake"), source, tmp_path)
    assert lowered.model == "model.bin"
    assert lowered.options == {
        "precision": "int8",
        "ranges": {"batch": [1, 2, 8]},
        "task": "fill-mask",
    }
    assert lowered.notes == ("a note",)
    assert (tmp_path / "model.bin").read_bytes() == b"fake"


def test_what_a_target_prints_does_not_disturb_the_protocol(make_bundle: MakeBundle) -> None:
    with Worker() as worker:
        worker.open(make_bundle(fault="print"))
        assert len(worker.round(FEEDS, num_runs=1).round.run_ns) == 1


def test_error_comes_back_as_the_same_class_with_all_its_parts(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    source = Source(tmp_path, Bundle.open(make_bundle()).manifest.signature)
    with Worker() as worker, pytest.raises(UnsupportedModelError) as caught:
        worker.lower(get("fake", fault="requires"), source, tmp_path)
    error = caught.value
    assert type(error) is UnsupportedModelError
    assert (error.what, error.where, error.given, error.fix) == (
        "no",
        "node 7",
        "Foo",
        "leave Foo out",
    )


def test_worker_goes_on_after_an_error(make_bundle: MakeBundle) -> None:
    with Worker() as worker:
        with pytest.raises(TargetError, match="the runtime refused it"):
            worker.open(make_bundle("bad", fault="load"))
        worker.open(make_bundle("good"))
        assert worker.round(FEEDS, num_runs=1)


def test_bug_in_a_target_names_the_exception_and_shows_its_traceback(
    make_bundle: MakeBundle,
) -> None:
    with Worker() as worker:
        worker.open(make_bundle(fault="python"))
        with pytest.raises(WorkerError, match="KeyError: 'a bug'") as caught:
            worker.round(FEEDS, num_runs=1)
    assert "fake_target.py" in str(caught.value.given)


def test_command_before_open_says_so() -> None:
    with Worker() as worker, pytest.raises(WorkerError, match="no bundle is open"):
        worker.round(FEEDS, num_runs=1)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [("crash", "SIGSEGV"), ("killed", "SIGKILL"), ("exit", "exit code 3")],
)
def test_death_names_its_cause(make_bundle: MakeBundle, fault: str, cause: str) -> None:
    with Worker() as worker:
        worker.open(make_bundle(fault=fault))
        with pytest.raises(WorkerError, match=cause) as caught:
            worker.round(FEEDS, num_runs=1)
        assert caught.value.where == "command round"
        assert not worker.is_alive


def test_native_crash_shows_where_python_was(make_bundle: MakeBundle) -> None:
    with Worker() as worker:
        worker.open(make_bundle(fault="crash"))
        with pytest.raises(WorkerError) as caught:
            worker.round(FEEDS, num_runs=1)
    assert "Segmentation fault" in str(caught.value.given)
    assert "another version" in str(caught.value.fix)


def test_killed_from_outside_in_the_middle_of_a_run(make_bundle: MakeBundle) -> None:
    with Worker() as worker:
        worker.open(make_bundle(fault="hang"))
        killer = threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(WorkerError, match="SIGKILL") as caught:
            worker.round(FEEDS, num_runs=1)
        killer.join()
    assert "memory" in str(caught.value.fix)


def test_no_more_rows_run_than_a_session_takes(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessing = TextPreprocessing(max_length=512, pad_token_id=9)
    rows = {"input_ids": [[number] for number in range(1, 8)]}
    pack = EvaluationPack.from_rows(rows, [0] * 7, preprocessing=preprocessing)
    pack.save(tmp_path / "pack.safetensors")
    commands = Commands()
    commands.open(bundle=str(make_bundle()), threads=1, options={})
    session = commands._opened()
    session.max_batch = 3
    sizes: list[int] = []
    run = session.run

    def noted(feeds: Arrays) -> Arrays:
        sizes.append(len(feeds["input_ids"]))
        return run(feeds)

    monkeypatch.setattr(session, "run", noted)
    files = {name: str(tmp_path / f"{name}.safetensors") for name in ("pack", "outputs")}
    commands.predict(**files, batch_size=None)
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize(
    ("fault", "cause"), [("exit", "exit code 3"), ("hang", "did not answer in time")]
)
def test_command_after_death_still_says_what_happened(
    make_bundle: MakeBundle, fault: str, cause: str
) -> None:
    with Worker() as worker:
        worker.open(make_bundle(fault=fault))
        worker.timeout_s = 1.5
        for _ in range(2):
            with pytest.raises(WorkerError, match=cause):
                worker.round(FEEDS, num_runs=1)


def test_no_answer_in_time_ends_the_process(make_bundle: MakeBundle) -> None:
    with Worker() as worker:
        worker.open(make_bundle(fault="hang"))
        worker.timeout_s = 1.5
        with pytest.raises(WorkerError, match="did not answer in time"):
            worker.round(FEEDS, num_runs=1)
        assert gone(worker.pid)


def test_a_split_may_take_longer_than_the_wait_for_a_sign_of_life(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    preprocessing = TextPreprocessing(max_length=512, pad_token_id=9)
    pack = EvaluationPack.from_rows(
        {"input_ids": [[1], [2], [3], [4]]}, [0] * 4, preprocessing=preprocessing
    )
    pack.save(tmp_path / "pack.safetensors")
    with Worker() as worker:
        worker.open(make_bundle(delay_ms=1100))
        worker.timeout_s = 2.5
        outputs = worker.predict(tmp_path / "pack.safetensors", batch_size=1)
        assert outputs["tokens"].tolist() == [1, 2, 3, 4]
        assert worker.round(FEEDS, num_runs=1).round.run_ns  # its answer is not one of before


def test_leaving_the_context_ends_the_process(make_bundle: MakeBundle) -> None:
    with Worker() as worker:
        worker.open(make_bundle())
        pid = worker.pid
    assert gone(pid)


def test_error_in_the_parent_ends_the_process_at_once(make_bundle: MakeBundle) -> None:
    with pytest.raises(ZeroDivisionError), Worker() as worker:  # noqa: PT012
        worker.open(make_bundle())
        pid = worker.pid
        raise ZeroDivisionError
    assert gone(pid)


def test_worker_leaves_nothing_when_its_parent_is_killed_in_the_middle_of_a_run(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    script = f"""
import threading
from pathlib import Path
from targets.feeds import FeedsSpec
from targets.worker_client import Worker
from targets.preprocessing import TextPreprocessing
worker = Worker()
worker.open(Path({str(make_bundle(fault="hang"))!r}))
print(worker.pid, flush=True)
text = TextPreprocessing(max_length=512, pad_token_id=0)
worker.round(FeedsSpec(lengths=(4,), num_ids=20, preprocessing=text), num_runs=1)
"""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.2)
    assert psutil.pid_exists(pid)
    assert list(temporary.iterdir())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(pid)
    assert list(temporary.iterdir()) == []


def test_interpreter_that_is_not_there() -> None:
    with pytest.raises(WorkerError, match="cannot be started") as caught:
        Worker(python="/nowhere/python")
    assert caught.value.where == "/nowhere/python"


def test_working_directory_is_not_a_place_to_import_from(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError('not me')")
    with Worker(cwd=tmp_path) as worker, pytest.raises(WorkerError, match="no bundle is open"):
        worker.round(FEEDS, num_runs=1)


def test_worker_imports_no_torch(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "site" / "torch.py").write_text("raise RuntimeError('imported')")
    with Worker() as worker:
        worker.open(make_bundle())
        assert worker.round(FEEDS, num_runs=1)


def test_environment_states_the_threads_and_drops_their_placement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    monkeypatch.setenv("UNRELATED", "kept")
    env = worker_environment(3, {"EXTRA": "1"})
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "3"
    assert "OMP_PROC_BIND" not in env
    assert (env["UNRELATED"], env["EXTRA"]) == ("kept", "1")


@pytest.mark.parametrize("cls", [ToolkitError, InputError, UnsupportedModelError])
def test_error_record_round_trip(cls: type[ToolkitError]) -> None:
    error = cls("what", where="where", given=3, fix=None)
    record = ErrorRecord.model_validate_json(ErrorRecord.of(error).model_dump_json())
    again = record.to_error()
    assert type(again) is cls
    assert str(again) == str(error) == str(record)


def test_error_record_of_a_class_unknown_here_becomes_a_worker_error() -> None:
    assert type(ErrorRecord(type="Elsewhere", what="no").to_error()) is WorkerError
