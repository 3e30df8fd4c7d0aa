"""A short soak: what `scripts/soak` does at length, on a store that is finished but for a part."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak.job import Job, Place, bundles
from benchmarks.soak.ledger import Ledger
from benchmarks.soak.trials import Trials, flip_bit
from compressor.data import DataSpec, data_fingerprint
from compressor.store import RunStore
from targets.bundle import Bundle
from targets.provenance import checkpoint_hashes


@pytest.fixture
def copied(finished, tmp_path) -> Place:
    """The finished run, to be damaged."""
    place = Place(tmp_path / "copied")
    shutil.copytree(finished.store, place.store.root)
    shutil.copytree(finished.output, place.output)
    return place


def key_of(place: Place, kind: str) -> str:
    return next(record.key for record in place.store.steps() if record.kind == kind)


@pytest.mark.slow
def test_runs_that_are_ended_at_random_moments_lose_nothing(finished, home, copied, tmp_path):
    copied.store.remove(key_of(copied, "pass:distill"))
    shutil.rmtree(copied.output)
    ledger = Ledger(seed=1)
    trials = Trials(Job(home, ()), tmp_path, ledger)
    trials.expected = bundles(Place(finished.output.parent))
    trials.seconds, trials.changes = 6.0, 40
    trials.end_at_random([signal.SIGKILL, signal.SIGTERM], like=copied)
    assert ledger.failures == []
    assert ledger.injected == {"SIGKILL": 1, "SIGTERM": 1}
    assert ledger.bytes_lost == 0
    assert ledger.steps_checked > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step.json", "files/model.onnx"])
def test_a_flipped_bit_is_named_and_mended_by_the_command_of_the_message(
    finished, home, copied, compressor: Any, name
):
    key = key_of(copied, "pass:quantize")
    path = copied.store.root / "steps" / key / name
    path.chmod(0o600)
    generator = Trials(Job(home, ()), copied.folder, Ledger(seed=3)).generator
    flip_bit(path, generator)
    arguments = ("run", home / "recipe.yaml", "--output", copied.output)
    outcome = compressor(*arguments, "--store", copied.store.root)
    assert outcome.code == 8
    assert f"where: {path}" in outcome.err
    [command] = re.findall("`compressor (runs remove .*?)`", " ".join(outcome.err.split()))
    assert compressor(*shlex.split(command)).out == f"removed {key}\n"
    outcome = compressor(*arguments, "--store", copied.store.root)
    assert outcome.code == 0, outcome.err
    assert bundles(copied) == bundles(Place(finished.output.parent))


def test_one_byte_under_the_same_name_size_and_time_is_another_input(home, tmp_path):
    copy = tmp_path / "home"
    shutil.copytree(home, copy)

    def known() -> tuple[str, dict[str, str]]:
        data = {name: copy / f"{name}.csv" for name in ("train", "validation", "test")}
        return data_fingerprint(DataSpec(**data)), checkpoint_hashes(copy / "model")

    seen = [known()]
    for name in ("train.csv", "validation.csv", "test.csv", "model/model.safetensors"):
        path = copy / name
        content, status = path.read_bytes(), path.stat()
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        after = path.stat()
        assert (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
        assert known() not in seen
        seen.append(known())


def test_the_next_run_mends_the_output_and_leaves_alone_what_is_whole(
    home, copied, compressor: Any
):
    folders = sorted(copied.output.glob("bundles/*"))
    damaged, stranger, whole = folders[0], folders[1], folders[2]
    expected = bundles(copied)
    model = Bundle.open(damaged).model_path
    model.write_bytes(model.read_bytes()[:-1])
    (stranger / "note.txt").write_text("not of the bundle")
    (copied.output / "bundles" / ".gone.partial").mkdir()
    (copied.output / "bundles" / ".gone.partial" / "model.onnx").write_bytes(b"half")
    (copied.output / ".report.json.1.tmp").write_text("half")
    script = next(copied.output.glob("hand_over/*/build_engine.py"))
    handed = script.read_text()
    script.write_text("changed")
    left = {path: path.stat().st_ino for path in whole.iterdir()}
    outcome = compressor(
        "run", home / "recipe.yaml", "--output", copied.output, "--store", copied.store.root
    )
    assert outcome.code == 0, outcome.err
    assert bundles(copied) == expected
    assert not (stranger / "note.txt").exists()
    assert {path: path.stat().st_ino for path in whole.iterdir()} == left
    assert [str(path) for path in copied.output.rglob(".*")] == []
    assert script.read_text() == handed


def test_a_run_waits_for_another_that_writes_into_its_output(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    with store.writing_to(tmp_path / "out"):
        with store.writing_to(tmp_path / "other"):
            pass
        [held, _] = sorted((store.root / "locks").iterdir(), key=lambda path: path.stat().st_ino)
        with store._locked_now(held.name) as free:
            assert not free
