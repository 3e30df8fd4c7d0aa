"""The command line: exit codes and messages of errors, and the commands that explain."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from rich.table import Table

import compressor.errors
import targets.errors
from compressor.cli import main
from compressor.cli.app import INTERRUPTED_MESSAGE, app
from compressor.cli.options import find_splits
from compressor.cli.progress import ConsoleProgress, console
from compressor.errors import DocumentError, Problem, RecipeError
from compressor.passes import available_passes
from compressor.recipe import builtin_recipes, recipe_json_schema
from compressor.store import RunRecord, RunStore, StoredStep
from targets.errors import ToolkitError
from targets.registry import available


class Outcome(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the command line in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        code = caught.value.code
        out, err = capsys.readouterr()
        return Outcome(0 if code is None else int(code), out, err)

    return run


@pytest.fixture
def fails(call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command that raises the given error."""

    def run(error: BaseException, *arguments: str) -> Outcome:
        def fail() -> Any:
            raise error

        monkeypatch.setattr("targets.registry.available", fail)
        return call("targets", *arguments)

    return run


def error_classes() -> Iterator[type[ToolkitError]]:
    for module in (targets.errors, compressor.errors):
        for name in module.__all__:
            cls = getattr(module, name)
            if isinstance(cls, type) and cls is not Problem and not issubclass(cls, DocumentError):
                yield cls


# Errors


@pytest.mark.parametrize("cls", list(dict.fromkeys(error_classes())), ids=lambda cls: cls.__name__)
def test_every_kind_of_error_has_its_exit_code_and_its_message(
    fails: Call, cls: type[ToolkitError]
) -> None:
    error = cls("it broke", where="a.bin", given=3, fix="mend it")
    outcome = fails(error)
    assert outcome.code == cls.exit_code
    assert outcome.err == "error: it broke\n  where: a.bin\n  given: 3\n  fix:   mend it\n"
    assert outcome.out == ""


def test_exit_codes_are_those_that_the_help_documents(call: Call) -> None:
    text = " ".join(call("--help").out.split())
    documented = dict(re.findall(r"(\d+) (recipe|a pass|budget|target|missing|run store)", text))
    kinds = {
        "recipe": ("RecipeError", "DataError", "CheckpointError"),
        "a pass": ("PassError",),
        "budget": ("BudgetError",),
        "target": (
            "TargetError",
            "BundleError",
            "UnsupportedModelError",
            "WorkerError",
            "DeviceError",
        ),
        "missing": ("MissingLibraryError",),
        "run store": ("StoreError",),
    }
    for code, kind in documented.items():
        for name in kinds.pop(kind):
            module = compressor.errors if hasattr(compressor.errors, name) else targets.errors
            assert getattr(module, name).exit_code == int(code), name
    assert kinds == {}


def test_all_problems_of_a_recipe_are_printed(fails: Call) -> None:
    problems = [Problem("first", where="a"), Problem("second", where="b", fix="mend it")]
    outcome = fails(RecipeError(problems, where="r.yaml"))
    assert outcome.code == 3
    assert [line.strip() for line in outcome.err.splitlines() if line] == [
        "error: the recipe has 2 problems",
        "where: r.yaml",
        "1. first",
        "where: a",
        "2. second",
        "where: b",
        "fix:   mend it",
    ]


def test_a_bug_is_no_verdict(fails: Call) -> None:
    outcome = fails(ValueError("what?"))
    assert outcome.code == 1
    assert outcome.err.startswith("error: unexpected ValueError: what?\n  fix:   this is a bug")
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("error", [ToolkitError("it broke"), ValueError("what?")])
def test_debug_shows_the_traceback_wherever_it_stands(fails: Call, error: Exception) -> None:
    outcome = fails(error, "--debug")
    assert "Traceback (most recent call last)" in outcome.err
    assert "in fail" in outcome.err
    assert outcome.err.rstrip().splitlines()[-1].startswith(("error: it broke", "  fix:   this is"))
    assert "Traceback" not in fails(error).err


def test_an_interruption_has_its_own_exit_code(fails: Call) -> None:
    assert fails(KeyboardInterrupt()).code == 130


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["verify"], "Missing argument"),
        (["targets", "--nonsense"], "No such option"),
        (["runs", "nonsense"], "No such command 'nonsense'"),
        (["runs", "prune", "--keep", "-1"], "Invalid value for '--keep'"),
        (["bench", "a", "--rounds", "0"], "Invalid value for '--rounds'"),
        (["predict", "a", "--threads", "x"], "Invalid value for '--threads'"),
    ],
)
def test_mistakes_on_the_command_line(call: Call, arguments: list[str], words: str) -> None:
    outcome = call(*arguments)
    assert outcome.code == 2
    assert words in outcome.err


def test_errors_go_to_standard_error_of_a_real_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from compressor.cli import main; main()", "verify"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert done.stdout == ""
    assert done.stderr.startswith("error: this is not a bundle")
    assert f"where: {tmp_path / 'manifest.json'}" in done.stderr


# Help


def commands(group: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for info in group.registered_commands:
        yield (*prefix, info.name or info.callback.__name__.strip("_"))
    for info in group.registered_groups:
        yield (*prefix, info.name)
        yield from commands(info.typer_instance, (*prefix, info.name))


@pytest.mark.parametrize("command", list(commands(app)), ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_explains_itself(call: Call, command: tuple[str, ...], option: str) -> None:
    outcome = call(*command, option)
    assert outcome.code == 0
    assert "Usage: compressor " + " ".join(command) in outcome.out


def test_the_commands_are_those_that_are_documented(call: Call) -> None:
    names = {command[0] for command in commands(app)}
    assert names >= {"run", "validate", "plan", "finetune", "predict", "bench", "verify"}
    assert names >= {"schema", "recipes", "passes", "targets", "runs"}
    text = call("--help").out
    assert all(name in text for name in names)


def test_the_version_is_printed(call: Call) -> None:
    outcome = call("--version")
    assert outcome.code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", outcome.out)


# Commands that explain


def test_the_schema_is_valid_json(call: Call) -> None:
    outcome = call("schema")
    assert outcome.code == 0
    assert json.loads(outcome.out) == recipe_json_schema()


def test_recipes_lists_and_prints(call: Call) -> None:
    listed = call("recipes")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()] == list(builtin_recipes())
    for name, path in builtin_recipes().items():
        printed = call("recipes", name)
        assert printed.out == path.read_text(encoding="utf-8")
        assert yaml.safe_load(printed.out)


def test_a_misspelt_recipe_names_the_nearest(call: Call) -> None:
    name = next(iter(builtin_recipes()))
    outcome = call("recipes", name[:-1])
    assert outcome.code == 3
    assert f"did you mean {name!r}?" in outcome.err


def test_passes_lists_every_pass_with_its_paper(call: Call) -> None:
    outcome = call("passes")
    assert outcome.code == 0
    for name, cls in available_passes().items():
        assert re.search(rf"^{name} +{re.escape(cls.summary())}$", outcome.out, re.MULTILINE)
        assert f"{cls.consumes} -> {cls.produces}; {cls.paper}" in outcome.out


def test_targets_says_for_each_whether_it_builds_and_runs_here(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = available()["openvino"]
    monkeypatch.setattr(cls, "cannot_lower", lambda self: None)
    monkeypatch.setattr(cls, "cannot_run", lambda self: "no such CPU")
    outcome = call("targets")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    starts = [line.split()[0] for line in lines[::2]]
    assert starts == list(available())
    place = 2 * starts.index("openvino")
    assert lines[place].split("build:")[1].strip() == "yes"
    assert lines[place + 1].split("run:")[1].strip() == "no such CPU"


def test_targets_whose_settings_have_no_defaults_are_listed(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of other distributions may need some, such as the path of a program."""

    class Needy(available()["onnxruntime"]):  # type: ignore[misc]
        """Runs a program."""

        name = "needy"
        program: Path
        """Where it is."""

    monkeypatch.setattr("targets.registry.available", lambda: {"needy": Needy})
    outcome = call("targets")
    assert outcome.code == 0
    assert outcome.out.split() == ["needy", "depends", "on", "its", "settings:", "program"]


# Recipes on the command line


def test_validate_reports_everything_that_is_wrong(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ndata: {train: a.csv, test: b.csv}\ntargets: [onnxruntime]\n")
    outcome = call("validate", path, "--set", "sead=1", "--set", "budget.min_speedup=0")
    assert outcome.code == 3
    assert "did you mean 'seed'?" in outcome.err
    assert "where: budget.min_speedup" in outcome.err
    outcome = call("validate", path)
    assert outcome.code == 3
    assert "the checkpoint does not exist" in outcome.err
    assert outcome.err.count("the file does not exist") == 2


def test_a_data_folder_without_splits_says_what_it_holds(call: Call, tmp_path: Path) -> None:
    (tmp_path / "training.csv").write_text("x")
    name = next(iter(builtin_recipes()))
    outcome = call("validate", name, "--data", tmp_path)
    assert outcome.code == 3
    assert "the data folder has no train and no test data" in outcome.err
    assert "given: training.csv" in outcome.err


@pytest.mark.parametrize("name", ["validation.tsv", "valid.csv", "val.jsonl", "dev"])
def test_validation_data_goes_by_its_usual_names(tmp_path: Path, name: str) -> None:
    for each in ("train.csv", "test.csv"):
        (tmp_path / each).touch()
    assert set(find_splits(tmp_path)) == {"train", "test"}
    (tmp_path / name).touch() if "." in name else (tmp_path / name).mkdir()
    assert find_splits(tmp_path)["validation"] == str(tmp_path / name)


def test_data_that_is_no_folder_says_so(call: Call, tmp_path: Path) -> None:
    name = next(iter(builtin_recipes()))
    (tmp_path / "reviews").mkdir()
    (tmp_path / "train.csv").write_text("x")
    outcome = call("plan", name, "--data", tmp_path / "review")
    assert outcome.code == 3
    assert "the data folder does not exist" in outcome.err
    assert f"where: {tmp_path / 'review'}" in outcome.err
    assert "given: no such folder" in outcome.err
    assert "fix:   did you mean 'reviews'? pass the folder" in outcome.err
    outcome = call("plan", name, "--data", tmp_path / "train.csv")
    assert outcome.code == 3
    assert "the data path is not a folder" in outcome.err
    assert "given: a file" in outcome.err
    assert "fix:   pass the folder with the data: name the files train" in outcome.err
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    outcome = call("plan", name, "--data", tmp_path / "photos")
    assert outcome.code == 3
    assert "the data folder has no train and no test data" in outcome.err
    assert "in folders of these names, with a folder for each class" in outcome.err


def test_a_recipe_that_is_not_there(call: Call) -> None:
    name = next(iter(builtin_recipes()))
    outcome = call("run", name + "x")
    assert outcome.code == 3
    assert f"did you mean {name!r}?" in outcome.err


# The run store


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """A store with two steps and two runs."""
    store = RunStore(tmp_path / "store")
    old, new = make_step(store, "a"), make_step(store, "b")
    for run, steps in (("20250101T000000-aaa", (old,)), ("20250102T000000-bbb", (old, new))):
        store.write_run(
            RunRecord(
                run=run,
                name="balanced",
                started=run,
                status="finished",
                steps=tuple(step.record.key for step in steps),
                output="/out",
            )
        )
    return store


def make_step(store: RunStore, name: str) -> StoredStep:
    def make(files: Path, work: Path) -> dict[str, Any]:
        (files / "model.bin").write_bytes(bytes(2_000_000))
        return {}

    return store.step(f"pass:{name}", {}, make)


def test_runs_list_is_newest_first(call: Call, store: RunStore) -> None:
    outcome = call("runs", "list", "--store", store.root)
    assert outcome.code == 0
    assert [line.split() for line in outcome.out.splitlines()] == [
        ["20250102T000000-bbb", "balanced", "2", "steps", "finished"],
        ["20250101T000000-aaa", "balanced", "1", "steps", "finished"],
    ]


def test_runs_list_of_an_empty_store_is_empty(call: Call, tmp_path: Path) -> None:
    assert call("runs", "list", "--store", tmp_path / "none") == Outcome(0, "", "")


def test_the_store_may_come_from_the_environment(
    call: Call, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPRESSOR_STORE", str(store.root))
    assert call("runs", "list").out.count("finished") == 2


def test_runs_show_names_the_steps(call: Call, store: RunStore) -> None:
    outcome = call("runs", "show", "20250102", "--store", store.root)
    assert outcome.code == 0
    assert "output: /out" in outcome.out
    kinds = re.findall(r"^  [0-9a-f]{12}  (pass:\w) .*2\.0 MB$", outcome.out, re.MULTILINE)
    assert kinds == ["pass:a", "pass:b"]


@pytest.mark.parametrize(
    ("run", "what"), [("2024", "there is no such run"), ("2025", "several runs begin like this")]
)
def test_runs_show_needs_one_run(call: Call, store: RunStore, run: str, what: str) -> None:
    outcome = call("runs", "show", run, "--store", store.root)
    assert outcome.code == 8
    assert outcome.err.startswith(f"error: {what}\n  where: {store.root}\n  given: {run}\n")


def test_runs_remove_takes_the_beginning_of_a_key(call: Call, store: RunStore) -> None:
    key = next(record.key for record in store.steps() if record.kind == "pass:a")
    outcome = call("runs", "remove", key[:12], "--store", store.root)
    assert outcome == Outcome(0, f"removed {key}\n", "")
    shown = call("runs", "show", "20250101", "--store", store.root)
    assert f"{key[:12]}  (unfinished, removed or damaged)" in shown.out
    again = call("runs", "remove", key[:12], "--store", store.root)
    assert again.code == 8
    assert "there is no such step" in again.err


@pytest.mark.parametrize("key", ["*", "../runs", ""])
def test_runs_remove_takes_no_pattern(call: Call, store: RunStore, key: str) -> None:
    assert call("runs", "remove", key, "--store", store.root).code == 8
    assert len(list(store.steps())) == 2
    assert len(store.runs()) == 2


def test_the_command_that_a_damaged_step_names_mends_it(call: Call, store: RunStore) -> None:
    step = make_step(store, "a")
    (step.folder / "model.bin").write_bytes(b"damaged")
    with pytest.raises(compressor.errors.StoreError) as caught:
        make_step(store, "a")
    command = re.search(r"`compressor ([^`]+)`", str(caught.value.fix))
    assert command is not None
    assert call(*command.group(1).split()).code == 0
    assert not make_step(store, "a").cached


def test_runs_prune_keeps_the_newest(call: Call, store: RunStore) -> None:
    assert call("runs", "prune", "--store", store.root).out.startswith("removed 0 steps")
    make_step(store, "unused")
    outcome = call("runs", "prune", "--keep", "1", "--store", store.root)
    assert outcome.code == 0
    assert re.fullmatch(r"removed 1 steps, 2\.0 MB\n", outcome.out)
    assert [run.run for run in store.runs()] == ["20250102T000000-bbb"]


# Progress


def test_a_long_step_says_in_a_log_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from compressor.cli import progress as module

    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "console", lambda: module.Console(highlight=False, width=60))
    with module.ConsoleProgress() as progress:
        progress.start("distill")
        for second in range(1, 60):
            now[0] = float(second)
            progress.update(second / 60, f"epoch {second}")
        progress.finish("done", cached=False)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["distill: 33% after 20 s  epoch 20", "distill: 67% after 40 s  epoch 40"]
    assert lines[2].endswith("59.0 s  done")
    assert len(lines) == 3


def test_search_runs_in_parallel_through_ray_alone(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("search", "balanced", "--space", tmp_path / "space.yaml")
    without_workers = call(*command, "--ray-address", "host:6379")
    assert without_workers.code == 2
    assert "--ray-address needs --workers" in without_workers.err
    launched = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "import compressor.cli.search as s; s.search('balanced', 'space')"],
        env={**os.environ, **launched},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "start it without a launcher" in done.stderr


LEFT = """
import os, signal, sys
from compressor.cli import main, runs
runs.open_store = lambda store: os.kill(os.getpid(), signal.SIGTERM)
main(["runs", "list"])
"""


def test_sigterm_leaves_in_good_order() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert done.stderr.startswith("error: interrupted; finished work is kept")
    assert "Traceback" not in done.stderr


SWALLOWED = """
import os, signal, sys
from pathlib import Path
from compressor.cli import main, runs
from compressor.errors import PassError
from compressor.store import RunStore

store = RunStore(Path(sys.argv[1]))
number, then = getattr(signal, sys.argv[2]), sys.argv[3]

def make(files, work):
    try:
        os.kill(os.getpid(), number)
    except BaseException:
        if then == "bug":
            raise ValueError("could not determine the shape") from None
        if then == "error":
            raise PassError("the pass distill failed") from None
    return {}

def command(_):
    with store.run("mine", Path("out")):
        store.step("a", {}, lambda files, work: {})
        store.step("b", {}, make)
        store.step("c", {}, lambda files, work: {})

runs.open_store = command
main(["runs", "list"])
"""


@pytest.mark.parametrize("then", ["bug", "error", "nothing"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interruption_that_a_library_swallows_still_ends_the_run(
    name: str, code: int, then: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED, str(tmp_path), name, then],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr == f"error: {INTERRUPTED_MESSAGE}\n"
    store = RunStore(tmp_path)
    assert [run.status for run in store.runs()] == ["interrupted"]
    assert [step.kind for step in store.steps()] == ["a"]


def test_an_answer_to_sigterm_of_the_program_around_stays(call: Call) -> None:
    def own(number: int, frame: object) -> None:
        """Wait for the command to end."""

    before = signal.signal(signal.SIGTERM, own)
    try:
        assert call("targets").code == 0
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
    assert call("targets").code == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Paths, names and messages of libraries have some."""
    line = "'compressor[openvino]' runs[v2] [/opt/x.cc:12] :smile:"
    console.cache_clear()
    with ConsoleProgress() as progress:
        progress.warn(line)
        progress.start(line)
        progress.finish(line, cached=False)
    table = Table(box=None, show_header=False)
    table.add_row(line)
    console().print(table, width=200)
    console().print(line, soft_wrap=True)
    console.cache_clear()
    assert capsys.readouterr().out.count(line) == 5
