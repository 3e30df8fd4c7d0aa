"""`compressor search` on a small model: trials, what they may look at, and how a search goes on."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import BudgetError, DeviceError, RecipeError, StoreError
from compressor.passes.trim_vocabulary import TrimVocabulary
from compressor.progress import Silent
from compressor.recipe import Recipe, load_recipe
from compressor.recipe.write import write_recipe
from compressor.search.objective import objective_of
from compressor.search.space import Range, Space
from compressor.search.study import (
    BUDGET,
    UNKNOWN_SHORTFALL,
    WHOLE,
    Outcome,
    TrialRecord,
    open_study,
)
from compressor.search.trials import Trials, search_settings
from compressor.search.workers import Job, perform
from compressor.store import RunStore
from targets.errors import MissingLibraryError

EPOCHS = 4
SPACE: Space = {
    "passes.0.ratio": Range(low=0.25, high=0.75),
    "passes.1.learning_rate": Range(low=1e-4, high=1, log=True),
}
LEARNS = {"passes.0.ratio": 0.5, "passes.1.learning_rate": 3e-3}
RUINS = {"passes.0.ratio": 0.75, "passes.1.learning_rate": 0.5}
RUINS_TOO = {"passes.0.ratio": 0.75, "passes.1.learning_rate": 0.9}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """One for all tests: what equal trials make is made once."""
    return RunStore(tmp_path_factory.mktemp("search") / "store")


@pytest.fixture
def recipe(home: Path, tmp_path: Path) -> Recipe:
    """Prunes and trains; too high a learning rate ruins the model."""
    text = f"""
model: {home}/model
data: {{train: {home}/train.csv, validation: {home}/validation.csv, test: {home}/test.csv}}
passes:
  - {{pass: prune, ratio: 0.5, importance: random}}
  - {{pass: finetune, epochs: {EPOCHS}, batch_size: 16}}
  - export
targets: [onnxruntime]
budget: {{max_accuracy_drop: 10}}
benchmark: {{rounds: 2, min_round_s: 0.001, pause_s: 0, sequence_length: 16, batch_sizes: [1]}}
output: out
"""
    path = tmp_path / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def search(recipe: Recipe, store: RunStore, num_trials: int, **more: Any) -> Trials:
    arguments = {"study": recipe.output / "study.journal", "progress": Silent(), "space": SPACE}
    return search_settings(recipe, store=store, num_trials=num_trials, **(arguments | more))


def propose(recipe: Recipe, *settings: dict[str, float]) -> None:
    """Have these settings tried first."""
    path = recipe.output / "study.journal"
    path.parent.mkdir(parents=True, exist_ok=True)
    study = open_study(path)
    for each in settings:
        study.enqueue_trial(each)


def settings_of(found: Trials) -> list[dict[str, Any]]:
    """Of the trials that count, in order."""
    return [each.settings for each in found.trials if each.outcome is not None]


def test_the_best_keeps_the_budget_and_a_hopeless_trial_stops_early(
    recipe: Recipe, store: RunStore
) -> None:
    propose(recipe, RUINS, LEARNS, RUINS_TOO)
    found = search(recipe, store, 3)
    missed, kept, stopped = found.trials
    assert found.objective == "speedup"
    assert missed.value is not None
    assert missed.value.shortfall > 0
    assert missed.value.drop_points > 10
    assert kept.value is not None
    assert kept.value.shortfall == 0
    assert found.best == kept
    assert found.recipe(recipe).passes[1].settings()["learning_rate"] == 3e-3

    assert len(kept.outcome.accuracies) == EPOCHS  # type: ignore[union-attr]
    assert stopped.state == "pruned"
    assert stopped.outcome is not None
    assert len(stopped.outcome.accuracies) == EPOCHS // 4
    rates = [each.inputs["settings"]["learning_rate"] for each in trainings(store)]
    assert set(rates) >= {0.5, 3e-3}
    assert 0.9 not in rates
    assert list((store.root / "partial").iterdir()) == []  # checkpoints are large

    # The library that proposes takes the budget into account as well.
    study = open_study(recipe.output / "study.journal")
    assert study.best_trial.number == kept.number
    missing = [study.trials[each.number].constraints[BUDGET] for each in (missed, stopped)]
    assert missing == [missed.value.shortfall, UNKNOWN_SHORTFALL]
    # Trials are compared at the same part of their training, however long it is.
    steps = [WHOLE * epoch // EPOCHS for epoch in range(1, EPOCHS + 1)]
    assert list(study.trials[kept.number].intermediate_values) == steps


def trainings(store: RunStore) -> list[Any]:
    return [each for each in store.steps() if each.kind == "pass:finetune"]


def test_where_more_accuracy_is_no_merit_nothing_is_stopped_for_having_less(
    recipe: Recipe, store: RunStore
) -> None:
    loose = recipe.model_copy(
        update={"budget": recipe.budget.model_copy(update={"max_accuracy_drop": 100.0})}
    )
    propose(loose, LEARNS, RUINS)
    found = search(loose, store, 2)  # its trainings are in the store, and tell all the same
    assert [each.state for each in found.trials] == ["complete", "complete"]
    assert [len(each.outcome.accuracies) for each in found.trials if each.outcome] == [EPOCHS] * 2


def test_trials_do_not_look_at_the_test_data(
    recipe: Recipe, home: Path, tmp_path: Path, store: RunStore
) -> None:
    own = RunStore(tmp_path / "store")
    propose(recipe, RUINS, LEARNS)
    found = search(recipe, own, 2)
    assert own.runs()
    looked = [path for path in own.root.rglob("*") if "test" in path.name]
    assert looked == []
    for step in own.steps():
        if step.kind == "evaluate":
            outputs = own.root / "steps" / step.key / "files" / "outputs.safetensors"
            assert b"validation" in outputs.read_bytes()
            assert b"test" not in outputs.read_bytes()

    with (home / "test.csv").open(encoding="utf-8", newline="") as stream:
        head, *rows = csv.reader(stream)
    labels = [label for _, label in rows]
    random.Random(0).shuffle(labels)
    with (tmp_path / "test.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([head, *zip([row[0] for row in rows], labels, strict=True)])
    data = recipe.data.model_copy(update={"test": tmp_path / "test.csv"})
    other = recipe.model_copy(update={"data": data, "output": tmp_path / "other"})
    propose(other, RUINS, LEARNS)
    again = search(other, RunStore(tmp_path / "store"), 2)
    assert [each.outcome and each.outcome.accuracies for each in again.trials] == [
        each.outcome and each.outcome.accuracies for each in found.trials
    ]
    assert again.best is not None
    assert found.best is not None
    assert again.best.number == found.best.number


def test_the_same_seed_proposes_the_same(recipe: Recipe, tmp_path: Path, store: RunStore) -> None:
    first = search(recipe, store, 2)
    again = search(recipe, store, 2, study=tmp_path / "again.journal")
    assert settings_of(again) == settings_of(first)
    assert len({json.dumps(each) for each in settings_of(first)}) == 2
    more = search(recipe, store, 3)  # goes on
    assert settings_of(more)[:2] == settings_of(first)
    assert len(more.trials) == 3
    at_once = search(recipe, store, 3, study=tmp_path / "at once.journal")
    assert settings_of(at_once) == settings_of(more)


def test_another_seed_proposes_something_else(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: RunStore
) -> None:
    monkeypatch.setattr("compressor.search.workers.perform", lambda *_: failed())
    first = search(recipe, store, 2)
    other = recipe.model_copy(update={"seed": 1, "output": tmp_path / "other"})
    assert settings_of(search(other, store, 2)) != settings_of(first)


def failed(reason: str = "it was made to fail") -> Outcome:
    return Outcome(state="failed", reason=reason, duration_s=0.0)


KILLED = """
import sys
import tempfile
from pathlib import Path
from compressor.progress import Silent
from compressor.recipe import load_recipe
from compressor.search.space import read_space
from compressor.search.trials import search_settings
from compressor.store import RunStore
recipe, space, store = map(Path, sys.argv[1:])
loaded = load_recipe(recipe)
search_settings(
    loaded, read_space(space, loaded), num_trials=3, study=loaded.output / "study.journal",
    store=RunStore(store), progress=Silent(),
)
"""


@pytest.mark.slow
def test_after_a_kill_the_search_goes_on_to_the_same_trials_and_no_more(
    recipe: Recipe, tmp_path: Path, store: RunStore
) -> None:
    whole = search(recipe, store, 3, study=tmp_path / "whole.journal")
    killed = recipe.model_copy(update={"output": tmp_path / "killed"})
    write_recipe(killed, tmp_path / "killed.yaml")
    lines = [f"{name}: {each.model_dump_json()}" for name, each in SPACE.items()]
    (tmp_path / "space.yaml").write_text("\n".join(lines), encoding="utf-8")
    own = tmp_path / "own"  # in the other store there would be nothing left to do
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "killed.yaml", tmp_path / "space.yaml", own]
    )
    path = killed.output / "trials.json"
    deadline = time.monotonic() + 300
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)  # into the second trial
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with (killed.output / "study.journal").open("ab") as stream:
        stream.write(b'{"op_code": 5, "wor')  # a line that was written half

    found = search(killed, RunStore(own), 3)
    states = [each.state for each in found.trials]
    assert states.count("interrupted") == 1
    assert len(states) == 4
    assert settings_of(found) == settings_of(whole)
    assert [each.outcome and each.outcome.accuracies for each in found.trials if each.outcome] == [
        each.outcome and each.outcome.accuracies for each in whole.trials
    ]
    assert search(killed, RunStore(own), 3).trials == found.trials  # nothing is left to do
    assert json.loads(path.read_text())["trials"][-1]["state"] == states[-1]


def test_ctrl_c_leaves_what_was_found(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, store: RunStore
) -> None:
    calls: list[int] = []

    def interrupted(job: Job, progress: object) -> Outcome:
        calls.append(job.trial)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return failed()

    monkeypatch.setattr("compressor.search.workers.perform", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(recipe, store, 3)
    written = json.loads((recipe.output / "trials.json").read_text())
    assert [each["state"] for each in written["trials"]] == ["failed", "running"]
    found = search(recipe, store, 3)
    assert [each.state for each in found.trials] == ["failed", "interrupted", "failed", "failed"]
    assert found.trials[2].settings == found.trials[1].settings


def test_the_time_limit_begins_no_more_trials(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, store: RunStore
) -> None:
    def slow(job: Job, progress: object) -> Outcome:
        time.sleep(0.2)
        return failed()

    monkeypatch.setattr("compressor.search.workers.perform", slow)
    found = search(recipe, store, 9, time_limit_s=0.1)
    assert len(found.trials) == 1
    assert found.stopped == "the time limit of 0.00166667 min, with 8 trials left"


@pytest.mark.slow
def test_two_workers_of_ray_finish_a_study(recipe: Recipe, store: RunStore) -> None:
    propose(recipe, LEARNS, RUINS)
    answer = signal.getsignal(signal.SIGTERM)
    found = search(recipe, store, 3, workers=2)
    assert signal.getsignal(signal.SIGTERM) == answer
    assert found.trials[0].state == "complete"
    assert all(each.outcome is not None for each in found.trials)
    assert len(found.trials) == 3
    assert found.best is not None
    assert found.best.value is not None
    assert found.best.value.shortfall == 0
    import ray

    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a cluster of Ray that was there before, and what tells Ray its token."""
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{1}".format(*free.getsockname())
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 32}
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [
                Path(sys.executable).with_name("ray"), "start", "--head", "--block",
                "--node-ip-address", "127.0.0.1", "--port", address.partition(":")[2],
                "--num-cpus", "2", "--include-dashboard", "false", "--disable-usage-stats",
                "--temp-dir", folder,  # a short name: sockets lie in it
            ],
            env={**os.environ, **token},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            for _ in range(600):
                assert head.poll() is None
                if answers(address):
                    break
                time.sleep(0.1)
            yield address, token
            assert head.poll() is None  # it is not ours to end
        finally:
            head.terminate()
            head.wait(60)


def answers(address: str) -> bool:
    """Whether something listens there."""
    host, _, port = address.partition(":")
    with socket.socket() as tried:
        return tried.connect_ex((host, int(port))) == 0


def search_on(
    address: str, recipe: Recipe, store: RunStore, token: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Search in a process of its own: how Ray asks for tokens is settled once a process."""
    folder = recipe.output.parent
    space = {name: each.model_dump(mode="json") for name, each in SPACE.items()}
    (folder / "space.yaml").write_text(json.dumps(space), encoding="utf-8")
    return subprocess.run(
        [
            sys.executable, "-m", "compressor", "search", folder / "small.yaml",
            "--space", folder / "space.yaml", "--trials", "2", "--workers", "2",
            "--ray-address", address, "--store", store.root, "--output", recipe.output,
        ],
        env={**os.environ, "RAY_AUTH_MODE": "disabled", **token},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_trials_run_on_a_cluster_that_was_there_before(
    recipe: Recipe, store: RunStore, cluster: tuple[str, dict[str, str]]
) -> None:
    address, token = cluster
    propose(recipe, LEARNS, LEARNS)
    found = search_on(address, recipe, store, token)
    assert found.returncode == 0, found.stdout + found.stderr
    written = json.loads((recipe.output / "trials.json").read_text())
    assert [each["state"] for each in written["trials"]] == ["complete", "complete"]
    assert answers(address)


def test_a_cluster_that_wants_a_token_says_so(
    recipe: Recipe, store: RunStore, cluster: tuple[str, dict[str, str]]
) -> None:
    address, _ = cluster
    found = search_on(address, recipe, store, {})
    assert found.returncode == 6, found.stdout + found.stderr
    assert "the Ray cluster cannot be reached" in found.stderr
    assert "set RAY_AUTH_MODE=token" in " ".join(found.stderr.split())


def test_without_workers_ray_is_not_needed(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, store: RunStore
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("compressor.search.workers.perform", lambda *_: failed())
    assert len(search(recipe, store, 2).trials) == 2


# What is refused


def test_a_study_of_something_else_is_refused(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, store: RunStore
) -> None:
    monkeypatch.setattr("compressor.search.workers.perform", lambda *_: failed())
    search(recipe, store, 1)
    with pytest.raises(StoreError) as error:
        search(recipe, store, 2, space={"passes.0.ratio": Range(low=0.3, high=0.6)})
    assert "changed since: the space" in str(error.value)
    assert "--study" in str(error.value)
    elsewhere = recipe.model_copy(update={"seed": 3})
    with pytest.raises(StoreError, match="started with different inputs"):
        search(elsewhere, store, 2)


def test_a_study_whose_files_changed_is_refused(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, store: RunStore, tmp_path: Path
) -> None:
    more = tmp_path / "more.txt"
    more.write_text("what is it\n")
    *trained, export = recipe.passes
    passes = (*trained, TrimVocabulary(extra_text=(more,)), export)
    read = recipe.model_copy(update={"passes": passes})
    monkeypatch.setattr("compressor.search.workers.perform", lambda *_: failed())
    search(read, store, 1)
    more.write_text("what is that\n")
    with pytest.raises(StoreError, match="changed since: the files that its passes read"):
        search(read, store, 2)


def test_a_study_that_another_search_leads_is_refused(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, store: RunStore
) -> None:
    def nested(job: Job, progress: object) -> Outcome:
        with pytest.raises(StoreError, match="another search is working on this study"):
            search(recipe, store, 2)
        return failed()

    monkeypatch.setattr("compressor.search.workers.perform", nested)
    assert [each.state for each in search(recipe, store, 1).trials] == ["failed"]


@pytest.mark.parametrize("text", ["not a journal", "[1]\nnot at all", '{"op_code": 0}\n{"op\n\n'])
def test_a_file_that_is_no_study_is_refused(
    text: str, recipe: Recipe, tmp_path: Path, store: RunStore
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(StoreError, match="the study file is damaged, or is not a study"):
        search(recipe, store, 1, study=path)
    assert path.read_text() == text


def test_a_budget_that_judges_nothing_is_refused(recipe: Recipe, store: RunStore) -> None:
    empty = recipe.model_copy(update={"budget": type(recipe.budget)()})
    with pytest.raises(RecipeError, match="1 problem") as error:
        search(empty, store, 1)
    assert "set max_accuracy_drop" in str(error.value)


def test_trials_that_fail_are_told_and_none_is_best(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, store: RunStore
) -> None:
    monkeypatch.setattr("compressor.search.workers.perform", lambda *_: failed("no luck"))
    found = search(recipe, store, 2)
    assert found.best is None
    with pytest.raises(BudgetError, match="no trial meets the budget") as error:
        found.recipe(recipe)
    assert "the first that failed: no luck" in str(error.value)


def test_a_pass_that_fails_fails_its_trial_only(recipe: Recipe, store: RunStore) -> None:
    propose(recipe, {"passes.0.ratio": 0.5, "passes.1.learning_rate": 1e-2})
    study = open_study(recipe.output / "study.journal")
    study.ask({name: each.distribution() for name, each in SPACE.items()})
    passes = (*recipe.passes, recipe.passes[0])  # prunes an exported model
    job = Job(
        study=recipe.output / "study.journal",
        store=store.root,
        recipe=recipe.model_copy(update={"passes": passes}).model_dump(mode="json"),
        trial=0,
    )
    outcome = perform(job, Silent())
    assert outcome.state == "failed"
    assert "needs a model in torch form" in str(outcome.reason)


def test_a_trial_for_which_memory_does_not_suffice_fails_alone(
    recipe: Recipe, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("compressor.search.workers.try_on_validation", greedy)
    propose(recipe, {"passes.0.ratio": 0.5, "passes.1.learning_rate": 1e-2})
    study = open_study(recipe.output / "study.journal")
    study.ask({name: each.distribution() for name, each in SPACE.items()})
    job = Job(
        study=recipe.output / "study.journal",
        store=store.root,
        recipe=recipe.model_dump(mode="json"),
        trial=0,
    )
    outcome = perform(job, Silent())
    assert (outcome.state, outcome.reason) == ("failed", "there was not enough memory")


def test_the_extra_is_named_where_a_library_is_missing(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, store: RunStore
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingLibraryError) as error:
        search(recipe, store, 1, workers=2)
    assert "compressor[search]" in str(error.value)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingLibraryError) as error:
        search(recipe, store, 1, study=recipe.output / "other.journal")
    assert "search needs the library optuna" in str(error.value)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:port"])
def test_a_cluster_that_does_not_answer(address: str, recipe: Recipe, store: RunStore) -> None:
    with pytest.raises(DeviceError, match="the Ray cluster cannot be reached") as error:
        search(recipe, store, 1, workers=1, ray_address=address)
    assert address in str(error.value)


@pytest.mark.parametrize(
    ("limits", "objective"),
    [
        ({"max_accuracy_drop": 1}, "speedup"),
        ({"max_class_drop": 1, "max_size_mb": 3}, "speedup"),
        ({"max_latency_ms": 2}, "accuracy"),
        ({"max_accuracy_drop": 1, "min_speedup": 4}, "accuracy"),
        ({"max_size_mb": 3}, "accuracy"),
        ({"max_accuracy_drop": 1, "targets": {"openvino": {"max_p90_ms": 3}}}, "accuracy"),
    ],
)
def test_the_budget_says_what_is_best(
    limits: dict[str, Any], objective: str, recipe: Recipe
) -> None:
    assert objective_of(type(recipe.budget).model_validate(limits)) == objective


# The command


@pytest.mark.slow
def test_the_command(
    recipe: Recipe, store: RunStore, compressor: Callable[..., Any], tmp_path: Path
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("passes.1.learning_rate: {choices: [0.5, 3e-3]}\n", encoding="utf-8")
    arguments: Sequence[object] = (
        "search", tmp_path / "small.yaml", "--space", space, "--store", store.root,
        "--output", tmp_path / "out", "--trials", 4,
    )  # fmt: skip
    outcome = compressor(*arguments)
    assert outcome.code == 0, outcome.err
    assert "within the budget" in outcome.out
    assert "BUDGET MET" in outcome.out
    output = tmp_path / "out"
    found = load_recipe(output / "recipe.yaml")
    assert found.passes[1].settings()["learning_rate"] == 3e-3
    assert found.passes[0] == recipe.passes[0]
    assert (output / "bundles" / "compressed-onnxruntime").is_dir()
    written = json.loads((output / "trials.json").read_text())
    trials = [TrialRecord.model_validate(each) for each in written["trials"]]
    assert [each.number for each in trials] == [0, 1, 2, 3]
    assert written["objective"] == "speedup"
    assert trials[written["best"]].settings == {"passes.1.learning_rate": 3e-3}
    again = compressor(*arguments)
    assert again.code == 0, again.err
    assert json.loads((output / "trials.json").read_text()) == written
    assert load_recipe(output / "recipe.yaml") == found


def test_the_command_says_what_is_missing(
    recipe: Recipe, compressor: Callable[..., Any], tmp_path: Path
) -> None:
    known = tmp_path / "small.yaml"
    (tmp_path / "space.yaml").write_text("passes.0.raito: {low: 0.1, high: 0.2}\n")
    outcome = compressor("search", known, "--space", tmp_path / "space.yaml")
    assert outcome.code == 3
    assert "did you mean 'ratio'?" in outcome.err
    options = ("--space", tmp_path / "space.yaml", "--ray-address", "auto")
    outcome = compressor("search", known, *options)
    assert outcome.code == 2
    assert "--workers" in outcome.err
