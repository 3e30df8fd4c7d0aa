"""The run store: keys, atomic steps, damage, full disks, and several processes at once."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import PassError, StoreError
from compressor.store import RunRecord, RunStore, StoredStep, default_store, step_key

INPUTS: dict[str, Any] = {"model": "abc", "settings": {"ratio": 0.5}, "seed": 0}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


def make_step(store: RunStore, name: str = "a", *, content: str = "weights") -> StoredStep:
    """Make a step with two files."""

    def make(files: Path, work: Path) -> Mapping[str, Any]:
        (files / "sub").mkdir()
        (files / "model.bin").write_text(content)
        (files / "sub" / "notes.txt").write_text(name)
        return {"metrics": {"accuracy": 0.5}, "notes": [name]}

    return store.step("pass:test", {"name": name}, make)


def refuse(files: Path, work: Path) -> Mapping[str, Any]:
    raise AssertionError("this step was to come from the store")


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# Keys


def test_a_key_depends_on_everything_that_goes_in() -> None:
    keys = [
        step_key("pass:a", INPUTS),
        step_key("pass:b", INPUTS),
        step_key("pass:a", {**INPUTS, "model": "abd"}),
        step_key("pass:a", {**INPUTS, "settings": {"ratio": 0.51}}),
        step_key("pass:a", {**INPUTS, "settings": {"ratio": "0.5"}}),
        step_key("pass:a", {**INPUTS, "seed": None}),
        step_key("pass:a", {**INPUTS, "seed": False}),
        step_key("pass:a", {**INPUTS, "kind": "pass:b"}),
        step_key("pass:a", {"model": "abc"}),
    ]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in keys)


def test_a_key_does_not_depend_on_the_order_of_settings() -> None:
    assert step_key("a", {"x": 1, "y": {"p": 1, "q": 2}}) == step_key(
        "a", {"y": {"q": 2, "p": 1}, "x": 1}
    )


def test_an_input_named_like_the_kind_does_not_hide_it() -> None:
    assert step_key("a", {"kind": "c"}) != step_key("b", {"kind": "c"})


def test_inputs_that_are_no_json_values_are_a_bug() -> None:
    with pytest.raises(TypeError):
        step_key("a", {"path": Path("x")})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=3), json_values)
def test_a_key_survives_a_round_trip_and_notices_every_change(
    inputs: dict[str, Any], value: Any
) -> None:
    assert step_key("a", json.loads(json.dumps(inputs))) == step_key("a", inputs)
    changed = {**inputs, "x": [value]}
    assert step_key("a", changed) != step_key("a", {**inputs, "x": value})


# Making and finding


def test_a_step_is_made_once_and_found_again(store: RunStore) -> None:
    made = make_step(store)
    assert not made.cached
    found = store.step("pass:test", {"name": "a"}, refuse)
    assert found.cached
    assert found.record == made.record
    assert found.folder == made.folder
    assert tree(found.folder) == {"model.bin", "sub/notes.txt"}
    assert found.record.facts == {"metrics": {"accuracy": 0.5}, "notes": ["a"]}
    assert found.record.inputs == {"name": "a"}
    assert found.record.kind == "pass:test"
    assert found.record.key == step_key("pass:test", {"name": "a"})
    assert found.record.duration_s >= 0


def test_other_inputs_make_another_step(store: RunStore) -> None:
    assert make_step(store, "a").folder != make_step(store, "b").folder


def test_an_absent_step_is_none(store: RunStore) -> None:
    assert store.find(step_key("pass:test", {"name": "a"})) is None


def test_the_content_hash_follows_names_and_contents(store: RunStore) -> None:
    first, second = make_step(store, "a"), make_step(store, "b")
    assert first.content_hash != second.content_hash

    def same(files: Path, work: Path) -> Mapping[str, Any]:
        shutil.copytree(first.folder, files, dirs_exist_ok=True)
        return {}

    def renamed(files: Path, work: Path) -> Mapping[str, Any]:
        shutil.copytree(first.folder, files, dirs_exist_ok=True)
        (files / "model.bin").rename(files / "model.onnx")
        return {}

    assert store.step("copy", {}, same).content_hash == first.content_hash
    assert store.step("rename", {}, renamed).content_hash != first.content_hash


def test_facts_that_are_not_numbers_come_back_as_they_were(store: RunStore) -> None:
    def make(files: Path, work: Path) -> Mapping[str, Any]:
        return {"loss": [math.nan, math.inf, -math.inf, 1.5]}

    made = store.step("diverged", {}, make)
    found = store.step("diverged", {}, refuse)
    assert repr(found.record.facts) == repr(made.record.facts)


# Interruptions


def test_a_step_that_fails_half_way_leaves_no_step(store: RunStore) -> None:
    def fail(files: Path, work: Path) -> Mapping[str, Any]:
        (files / "half.bin").write_text("half")
        (work / "checkpoint").write_text("epoch 3")
        raise PassError("diverged")

    with pytest.raises(PassError, match="diverged"):
        store.step("pass:test", {}, fail)
    assert store.find(step_key("pass:test", {})) is None
    assert list(store.steps()) == []


@pytest.mark.parametrize("interruption", [PassError("x"), KeyboardInterrupt(), MemoryError()])
def test_the_next_try_gets_the_work_folder_and_fresh_files(
    store: RunStore, interruption: BaseException
) -> None:
    def fail(files: Path, work: Path) -> Mapping[str, Any]:
        (files / "half.bin").write_text("half")
        (work / "checkpoint").write_text("epoch 3")
        raise interruption

    def resume(files: Path, work: Path) -> Mapping[str, Any]:
        assert list(files.iterdir()) == []
        (files / "whole.bin").write_text((work / "checkpoint").read_text())
        return {}

    with pytest.raises(type(interruption)):
        store.step("pass:test", {}, fail)
    made = store.step("pass:test", {}, resume)
    assert tree(made.folder) == {"whole.bin"}
    assert (made.folder / "whole.bin").read_text() == "epoch 3"
    assert not (made.folder.parent / "work").exists()
    assert not (store.root / "partial" / made.record.key).exists()


def test_the_time_of_all_attempts_counts(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("compressor.store.time", clock)

    def work(seconds: float, *, fails: bool) -> Mapping[str, Any]:
        now[0] += seconds
        if fails:
            raise KeyboardInterrupt
        return {}

    for seconds in (30, 12):
        with pytest.raises(KeyboardInterrupt):
            store.step("a", {}, lambda files, folder, s=seconds: work(s, fails=True))
    made = store.step("a", {}, lambda files, folder: work(5, fails=False))
    assert made.record.duration_s == 47
    assert {path.name for path in made.folder.parent.iterdir()} == {"files", "step.json"}


def test_a_failure_releases_the_lock(store: RunStore) -> None:
    with pytest.raises(ZeroDivisionError):
        store.step("a", {}, lambda files, work: {"x": 1 // 0})
    assert store.step("a", {}, lambda files, work: {}).record.facts == {}


def test_what_a_step_itself_may_not_read_is_no_error_of_the_store(store: RunStore) -> None:
    def fail(files: Path, work: Path) -> Mapping[str, Any]:
        raise PermissionError(13, "Permission denied", "/data/train.csv")

    with pytest.raises(PermissionError):
        store.step("a", {}, fail)


def test_an_interruption_between_record_and_rename_is_made_anew(store: RunStore) -> None:
    made = make_step(store)
    step, partial = made.folder.parent, store.root / "partial" / made.record.key
    partial.parent.mkdir(exist_ok=True)
    step.rename(partial)
    again = make_step(store, content="new")
    assert not again.cached
    assert (again.folder / "model.bin").read_text() == "new"


KILLED = """
import os, signal, sys
from pathlib import Path
from compressor.store import RunStore

def make(files, work):
    (files / "a.bin").write_bytes(b"half")
    (work / "checkpoint").write_text("epoch 3")
    os.kill(os.getpid(), signal.SIGKILL)

RunStore(Path(sys.argv[1])).step("pass:test", {}, make)
"""


def test_a_killed_process_leaves_its_work_and_no_lock(store: RunStore) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(store.root)], check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL

    def resume(files: Path, work: Path) -> Mapping[str, Any]:
        assert list(files.iterdir()) == []
        return {"from": (work / "checkpoint").read_text()}

    start = time.monotonic()
    assert store.step("pass:test", {}, resume).record.facts == {"from": "epoch 3"}
    assert time.monotonic() - start < 5


# Damage


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.bin", "sub/notes.txt"])
@pytest.mark.parametrize("how", ["changed", "missing", "cut"])
def test_a_damaged_file_is_named_with_the_command_that_mends_it(
    store: RunStore, name: str, how: str
) -> None:
    made = make_step(store)
    path = made.folder / name
    if how == "changed":
        damage(path)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(StoreError) as caught:
        make_step(store)
    error = caught.value
    assert error.exit_code == 8
    assert error.what == "a finished step in the store was damaged"
    assert error.where == str(path)
    assert error.given == ("missing" if how == "missing" else "contents differ from their hash")
    key = made.record.key[:12]
    assert f"`compressor runs remove {key} --store {store.root}`" in str(error.fix)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "x"}', "\x00"])
def test_a_damaged_record_is_named_with_the_command_that_mends_it(
    store: RunStore, content: str
) -> None:
    made = make_step(store)
    path = made.folder.parent / "step.json"
    path.write_text(content)
    with pytest.raises(StoreError, match="the record of a finished step was damaged") as caught:
        make_step(store)
    assert caught.value.where == str(path)
    assert f"compressor runs remove {made.record.key[:12]} " in str(caught.value.fix)
    assert list(store.steps()) == []


def test_the_mending_command_names_no_default_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPRESSOR_STORE", str(tmp_path / "a store"))
    for store, option in (
        (RunStore(default_store()), ""),
        (RunStore(tmp_path / "other one"), f" --store '{tmp_path}/other one'"),
    ):
        made = make_step(store)
        (made.folder / "model.bin").unlink()
        with pytest.raises(StoreError) as caught:
            make_step(store)
        assert f"remove {made.record.key[:12]}{option}`" in str(caught.value.fix)


def test_a_removed_step_is_made_anew(store: RunStore) -> None:
    made = make_step(store)
    damage(made.folder / "model.bin")
    assert store.remove(made.record.key[:12]) == [made.record.key]
    again = make_step(store)
    assert not again.cached
    assert again.content_hash == made.content_hash


def test_a_step_without_its_record_is_made_anew(store: RunStore) -> None:
    made = make_step(store)
    (made.folder.parent / "step.json").unlink()
    again = make_step(store, content="new")
    assert not again.cached
    assert (again.folder / "model.bin").read_text() == "new"


# Removing


def test_remove_takes_a_prefix_and_partial_steps(store: RunStore) -> None:
    made, other = make_step(store, "a"), make_step(store, "b")
    partial = store.root / "partial" / made.record.key
    (partial / "work").mkdir(parents=True)
    assert store.remove(made.record.key) == [made.record.key]
    assert not made.folder.exists()
    assert not partial.exists()
    assert other.folder.exists()


def test_remove_takes_one_step_at_a_time(store: RunStore) -> None:
    keys = [make_step(store, str(place)).record.key for place in range(20)]
    shared = next(key[0] for key in keys if sum(each[0] == key[0] for each in keys) > 1)
    with pytest.raises(StoreError, match="several steps begin like this"):
        store.remove(shared)
    assert sorted(each.key for each in store.steps()) == sorted(keys)


@pytest.mark.parametrize("prefix", ["", "*", "?", "../", "../../", "/", "zz", "[0-9a-f]"])
def test_remove_takes_no_patterns_and_leaves_the_store_alone(store: RunStore, prefix: str) -> None:
    made = make_step(store)
    outside = store.root.parent / "precious.txt"
    outside.write_text("precious")
    assert store.remove(prefix) == []
    assert (made.folder / "model.bin").is_file()
    assert outside.is_file()


def test_remove_of_nothing_in_a_store_that_is_not_there(store: RunStore) -> None:
    assert store.remove("ab") == []
    assert store.prune(0) == (0, 0)
    assert store.runs() == []
    assert list(store.steps()) == []


def run_record(run: str, *steps: StoredStep) -> RunRecord:
    keys = tuple(step.record.key for step in steps)
    return RunRecord(run=run, name="r", started=run, status="finished", steps=keys)


def test_prune_keeps_what_the_newest_runs_use(store: RunStore) -> None:
    a, b, c, unused = (make_step(store, name) for name in "abcd")
    store.write_run(run_record("1", a, b))
    store.write_run(run_record("2", b, c))
    store.write_run(run_record("3", c))
    size = sum(each.size_bytes for step in (a, unused) for each in step.record.files.values())
    count, freed = store.prune(2)
    assert count == 2
    assert freed > size  # with the records of the steps
    assert [run.run for run in store.runs()] == ["3", "2"]
    assert {record.key for record in store.steps()} == {b.record.key, c.record.key}
    assert store.prune(2) == (0, 0)
    assert store.prune(0)[0] == 2
    assert store.runs() == []


def test_prune_removes_partial_steps_of_old_runs(store: RunStore) -> None:
    with pytest.raises(PassError):
        store.step("a", {}, lambda files, work: (_ for _ in ()).throw(PassError("x")))
    partial = store.root / "partial" / step_key("a", {})
    assert partial.is_dir()
    assert store.prune(1)[0] == 0
    assert not partial.exists()


def test_what_is_being_made_is_neither_pruned_nor_removed(store: RunStore) -> None:
    key = step_key("a", {})

    def make(files: Path, work: Path) -> Mapping[str, Any]:
        (files / "x").write_text("x")
        assert store.prune(0) == (0, 0)
        with pytest.raises(StoreError, match="another run is making this step") as caught:
            store.remove(key[:8])
        assert "wait for it to end" in str(caught.value.fix)
        assert store.remove("zz") == []
        return {}

    assert tree(store.step("a", {}, make).folder) == {"x"}


def test_an_interrupted_removal_leaves_no_damaged_step(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_step(store)

    def interrupt(path: Path) -> None:
        (Path(path) / "files" / "model.bin").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.remove(made.record.key)
    assert not make_step(store).cached


# Runs


def test_runs_are_listed_newest_first_and_replaced_by_name(store: RunStore) -> None:
    for name in ("20250101T000000-a", "20250103T000000-a", "20250102T000000-b"):
        store.write_run(run_record(name))
    store.write_run(run_record("20250102T000000-b").model_copy(update={"status": "failed: x"}))
    (store.root / "runs" / "20260101.json").write_text("{")
    runs = store.runs()
    assert [run.run[:8] for run in runs] == ["20250103", "20250102", "20250101"]
    assert [run.status for run in runs] == ["finished", "failed: x", "finished"]
    assert not list((store.root / "runs").glob("*.tmp"))


def test_the_default_store_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSOR_STORE", "/a/b")
    assert default_store() == Path("/a/b")
    monkeypatch.delenv("COMPRESSOR_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_store() == Path("/cache/compressor/store")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_store() == Path("/home/me/.cache/compressor/store")


# What the file system refuses


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("needs root and mount, to mount a small file system")
    command = [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_finished_steps_are_kept(small_disk: Path) -> None:
    store = RunStore(small_disk / "store")
    kept = make_step(store)

    def fill(files: Path, work: Path) -> Mapping[str, Any]:
        (work / "checkpoint").write_text("epoch 3")
        (files / "big.bin").write_bytes(bytes(2_000_000))
        return {}

    with pytest.raises(StoreError) as caught:
        store.step("big", {}, fill)
    error = caught.value
    assert error.what == "the disk is full"
    assert error.where == str(store.root)
    assert re.fullmatch(r"\d+ MB free", str(error.given))
    assert "runs prune" in str(error.fix)
    assert store.step("pass:test", {"name": "a"}, refuse).record == kept.record

    def smaller(files: Path, work: Path) -> Mapping[str, Any]:
        return {"from": (work / "checkpoint").read_text()}

    assert store.step("big", {}, smaller).record.facts == {"from": "epoch 3"}


def test_a_disk_that_fills_up_while_the_record_is_written(small_disk: Path) -> None:
    store = RunStore(small_disk / "store")
    rest = small_disk / "rest.bin"

    def fill(files: Path, work: Path) -> Mapping[str, Any]:
        rest.write_bytes(bytes(shutil.disk_usage(small_disk).free))
        return {}

    with pytest.raises(StoreError, match="the disk is full"):
        store.step("a", {}, fill)
    assert store.find(step_key("a", {})) is None
    rest.unlink()
    assert store.step("a", {}, lambda files, work: {"x": 1}).record.facts == {"x": 1}


def test_a_full_disk_is_known_by_the_words_of_other_libraries(store: RunStore) -> None:
    def fail(files: Path, work: Path) -> Mapping[str, Any]:
        try:
            raise RuntimeError("Error while serializing: No space left on device (os error 28)")
        except RuntimeError as error:
            raise PassError("the pass failed") from error

    with pytest.raises(StoreError, match="the disk is full") as caught:
        store.step("a", {}, fail)
    assert isinstance(caught.value.__cause__, PassError)


def test_a_store_that_cannot_be_written_names_the_way_out(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    store = RunStore(file / "store")
    for use in (
        lambda: make_step(store),
        lambda: store.write_run(run_record("1")),
    ):
        with pytest.raises(StoreError) as caught:
            use()
        assert caught.value.what == "the run store cannot be read or written"
        assert caught.value.where == str(store.root)
        assert "--store or set COMPRESSOR_STORE" in str(caught.value.fix)
    assert store.runs() == []
    assert list(store.steps()) == []


def test_a_read_only_file_system_is_an_error_of_the_store(small_disk: Path) -> None:
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True, capture_output=True)
    with pytest.raises(StoreError, match="cannot be read or written") as caught:
        make_step(RunStore(small_disk / "store"))
    assert "Read-only file system" in str(caught.value.given)


# Several processes

RACE = """
import sys, time
from pathlib import Path
from compressor.store import RunStore

def make(files, work):
    with open(sys.argv[2], "a") as stream:
        stream.write("made\\n")
    time.sleep(0.5)
    (files / "a.bin").write_bytes(b"x" * 1000)
    return {"x": 1}

print("ready", flush=True)
sys.stdin.readline()
step = RunStore(Path(sys.argv[1])).step("pass:test", {}, make)
print(step.cached, len((step.folder / "a.bin").read_bytes()))
"""


def test_of_processes_that_need_one_step_one_makes_it_and_the_others_wait(
    store: RunStore, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(store.root), str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = sorted(process.communicate(timeout=30)[0].strip() for process in processes)
    assert outputs == ["False 1000", "True 1000", "True 1000"]
    assert log.read_text() == "made\n"
    assert all(process.returncode == 0 for process in processes)


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from compressor.store import RunStore

store = RunStore(Path(sys.argv[1]))
with store.run("mine", Path("out")):
    store.step("pass:test", {}, lambda files, work: {})
    print(store.runs()[0].status, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_is_not_listed_as_running(store: RunStore) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, str(store.root)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "running\n")
    (run,) = store.runs()
    assert (run.name, run.status, run.output) == ("mine", "killed", "out")
    assert len(run.steps) == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(143), "interrupted"),
        (PassError("the loss is NaN"), "failed: the loss is NaN"),
        (ZeroDivisionError("x"), "failed: ZeroDivisionError"),
    ],
)
def test_a_run_records_how_it_ended(store: RunStore, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), store.run("mine", Path("out")):
        raise error
    with store.run("next", Path("out")):
        pass
    assert {run.name: run.status for run in store.runs()} == {"mine": status, "next": "finished"}


def test_a_run_that_goes_on_is_not_pruned(store: RunStore) -> None:
    with store.run("mine", Path("out")):
        make_step(store)
        assert store.prune(0) == (0, 0)
        assert [run.status for run in store.runs()] == ["running"]
        assert make_step(store).cached
    assert store.prune(0)[0] == 1
    assert store.runs() == []


def test_what_an_interrupted_run_had_begun_stays_with_its_record(store: RunStore) -> None:
    """The first step of a chain is finished, and the second has a checkpoint of its training."""

    def interrupted(files: Path, work: Path) -> Mapping[str, Any]:
        (work / "checkpoint").write_text("epoch 3")
        raise KeyboardInterrupt

    def resume(files: Path, work: Path) -> Mapping[str, Any]:
        return {"found": (work / "checkpoint").read_text()}

    def train() -> None:
        with store.run("mine", Path("out")):
            make_step(store)
            store.step("pass:distill", {}, interrupted)

    make_step(store, "of nobody")
    with pytest.raises(KeyboardInterrupt):
        train()
    assert store.prune(1)[0] == 1
    assert make_step(store).cached
    assert store.step("pass:distill", {}, resume).record.facts == {"found": "epoch 3"}


def test_what_a_run_uses_while_others_are_pruned_stays(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at again before each step goes."""
    make_step(store)
    other = RunStore(store.root)
    with ExitStack() as stack:
        listed = RunStore._step_folders

        def begin_a_run(self: RunStore, prefix: str) -> list[Path]:
            stack.enter_context(other.run("late", Path("out")))
            assert make_step(other).cached
            return listed(self, prefix)

        monkeypatch.setattr(RunStore, "_step_folders", begin_a_run)
        assert store.prune(0) == (0, 0)


def test_steps_belong_to_the_innermost_run(store: RunStore) -> None:
    with store.run("outer", Path("out")):
        first = make_step(store, "a")
        with store.run("inner", Path("out")):
            second = make_step(store, "b")
        third = make_step(store, "c")
    make_step(store, "d")
    steps = {run.name: list(run.steps) for run in store.runs()}
    assert steps == {
        "outer": [first.record.key, third.record.key],
        "inner": [second.record.key],
    }


def test_every_bit_of_a_record_counts(store: RunStore) -> None:
    made = make_step(store)
    path = made.folder.parent / "step.json"
    content = path.read_bytes()
    generator = random.Random(0)
    unread = 0
    for place in generator.sample(range(len(content)), 150):
        changed = bytearray(content)
        changed[place] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        with suppress(StoreError):
            found = store.find(made.record.key)
            assert found is not None
            assert found.record == made.record  # only white space changed
            unread -= 1
        unread += 1
    assert unread > 100
    path.write_bytes(content)
    assert store.find(made.record.key) is not None


def test_a_record_under_another_key_is_damaged(store: RunStore) -> None:
    made = make_step(store)
    other = step_key("pass:test", {"name": "b"})
    made.folder.parent.rename(store.root / "steps" / other)
    with pytest.raises(StoreError, match="the record of a finished step was damaged"):
        store.find(other)


def test_what_an_ended_run_still_writes_gets_into_no_step(store: RunStore) -> None:
    """Its worker may live on for a moment, deep in native code."""
    folders: list[Path] = []

    def killed(files: Path, work: Path) -> Mapping[str, Any]:
        folders.append(files)
        (files / "half.bin").write_text("half")
        raise KeyboardInterrupt

    def resume(files: Path, work: Path) -> Mapping[str, Any]:
        (files / "whole.bin").write_text("whole")
        with pytest.raises(FileNotFoundError):
            (folders[0] / "late.bin").write_text("late")
        folders[0].mkdir()  # even so
        (folders[0] / "late.bin").write_text("late")
        return {}

    with pytest.raises(KeyboardInterrupt):
        store.step("a", {}, killed)
    made = store.step("a", {}, resume)
    assert tree(made.folder.parent) == {"step.json", "files/whole.bin"}


def test_a_path_below_an_attempt_is_kept_out_of_texts(store: RunStore) -> None:
    def make(files: Path, work: Path) -> Mapping[str, Any]:
        return {"told": store.without_paths(f"{files}/model.onnx and {work}/epoch")}

    assert store.step("a", {}, make).record.facts == {"told": "model.onnx and epoch"}


def test_the_half_written_record_of_a_killed_run_goes_with_the_next(store: RunStore) -> None:
    with store.run("mine", Path("out")):
        half = store.root / "runs" / "20260101T000000-abcdef.json.tmp"
        half.write_text("{")
        own = store.root / "runs" / f"{store.runs()[0].run}.json.tmp"
        own.write_text("{")
        with store.run("next", Path("out")):
            assert not half.exists()
            assert own.exists()  # its run goes on
