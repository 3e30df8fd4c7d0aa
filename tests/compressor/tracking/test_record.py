"""What is tracked of a report, what may be registered, and the record as JSON."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import BudgetError, ReportError
from compressor.report.files import read_report, write_report
from compressor.tracking import available_trackers
from compressor.tracking.record import Record, make_record
from targets.bundle import MANIFEST, Bundle, hash_file

from .conftest import bundle, gate

Command = Callable[..., Any]


def test_both_trackers_are_found() -> None:
    assert list(available_trackers()) == ["json", "mlflow"]
    assert all(cls.summary().endswith(".") for cls in available_trackers().values())


def test_json_holds_the_whole_record(folder: Path, compressor: Command) -> None:
    outcome = compressor("track", folder, "--to", "json", "--experiment", "mine")
    assert outcome.code == 0, outcome
    assert outcome.out == f"tracked: {folder / 'record.json'}\n"
    written = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    report = read_report(folder)
    assert written["experiment"] == "mine"
    assert written["report_sha256"] == hash_file(folder / "report.json")
    assert written["run"]["tags"]["verdict"] == "pass"
    assert [row["name"] for row in written["rows"]] == [row.key for row in report.rows]
    row = next(row for row in written["rows"] if row["name"] == "int8-onnxruntime")
    assert row["metrics"]["latency_ms/4x128/median"] == pytest.approx(
        next(each for each in report.rows if each.key == row["name"]).latency["4x128"].median_ms
    )
    assert row["params"]["2-prune/ratio"] == "0.75"
    assert row["tags"]["chosen"] == "true"
    assert len(row["curves"]["3-distill/loss"]) > 40
    refused = next(row for row in written["rows"] if row["tags"]["status"] == "refused")
    assert refused["tags"]["reason"]
    assert refused["metrics"] == {}


def test_the_commit_is_that_of_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    assert "git_commit" not in make_record(folder).run.tags
    who = ("-c", "user.name=me", "-c", "user.email=me@localhost")
    for command in (("init", "-q"), (*who, "commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(["git", *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert make_record(folder).run.tags["git_commit"] == head.stdout.strip()
    monkeypatch.setenv("PATH", str(folder))
    assert "git_commit" not in make_record(folder).run.tags


def test_a_curve_of_a_training_that_diverged_ends_there(folder: Path) -> None:
    report = read_report(folder)
    steps = dict(report.steps)
    at = [step.pass_name for step in steps["int8"]].index("distill")
    step = steps["int8"][at].model_copy(
        update={"history": ({"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": float("nan")})}
    )
    steps["int8"] = (*steps["int8"][:at], step, *steps["int8"][at + 1 :])
    write_report(report.model_copy(update={"steps": steps, "predictions": None}), folder)
    record = make_record(folder)
    [points] = [
        row.curves[f"{at + 1}-distill/loss"] for row in record.rows if row.name == "int8-openvino"
    ]
    assert [(point.step, point.value) for point in points] == [(1, 2.0)]


def test_the_second_time_keeps_what_was_registered_and_the_gate(
    folder: Path, compressor: Command
) -> None:
    judged = gate(compressor, folder)
    file = folder / "deep" / "r.json"
    command = ("track", folder, "--to", "json", "--uri", file)
    first = compressor(*command, "--gate", judged, "--register", "trec", "--even-if-missed")
    assert first.code == 6, first  # OpenVINO's bundle is not there
    assert "there is no such bundle" in first.err
    bundle(folder / "bundles" / "int8-openvino")
    first = compressor(*command, "--gate", judged, "--register", "trec", "--even-if-missed")
    assert first.code == 0, first
    assert first.out == f"tracked: {file}\n"  # a file registers nothing
    again = compressor(*command)
    assert (again.code, again.out) == (0, f"was tracked before: {file}\n")
    kept = Record.model_validate_json(file.read_bytes())
    assert [each.row for each in kept.models] == ["int8-onnxruntime", "int8-openvino"]
    assert kept.gate["gate_exit_code"] == str(json.loads(judged.read_text())["exit_code"])
    once_more = compressor(*command, "--register", "trec")
    assert once_more.code == 0
    assert once_more.out == f"was tracked before: {file}\n"
    assert Record.model_validate_json(file.read_bytes()).models == kept.models
    assert list(file.parent.iterdir()) == [file]


# What may be registered


def test_only_what_meets_the_budget_is_registered(folder: Path) -> None:
    [model] = make_record(folder, register="trec").models
    assert (model.model, model.row) == ("trec", "int8-onnxruntime")
    opened = Bundle.open(folder / "bundles" / "int8-onnxruntime")
    assert model.tags["bundle_identity"] == opened.identity
    assert model.tags["target"] == "onnxruntime"
    assert (model.tags["precision"], model.tags["verdict"]) == ("int8", "pass")


def test_a_verdict_that_is_no_pass_is_not_registered(folder: Path, compressor: Command) -> None:
    judged = gate(compressor, folder, "--set", "max_size_mb=0.001")
    options = ("--to", "json", "--gate", judged, "--register", "trec")
    outcome = compressor("track", folder, *options)
    assert outcome.code == 5
    assert "nothing is registered: the verdict of the gate is not a pass" in outcome.err
    assert "missed: " in outcome.err
    assert "--even-if-missed" in outcome.err
    assert not (folder / "record.json").exists()
    assert compressor("track", folder, "--to", "json", "--gate", judged).code == 0


def test_the_verdict_of_the_run_counts_where_there_is_no_gate(folder: Path) -> None:
    report = read_report(folder)
    verdict = report.verdict.model_copy(update={"met": False, "exit_code": 5})
    write_report(report.model_copy(update={"verdict": verdict, "predictions": None}), folder)
    with pytest.raises(BudgetError, match="the verdict of the run is not a pass"):
        make_record(folder, register="trec")
    bundle(folder / "bundles" / "int8-openvino")
    models = make_record(folder, register="trec", even_if_missed=True).models
    assert [(each.row, each.tags["verdict"]) for each in models] == [
        ("int8-onnxruntime", "missed"),
        ("int8-openvino", "missed"),
    ]


def test_a_report_that_ships_nothing_has_nothing_to_register(folder: Path) -> None:
    report = read_report(folder)
    rows = tuple(row.model_copy(update={"chosen": False}) for row in report.rows)
    write_report(report.model_copy(update={"rows": rows, "predictions": None}), folder)
    with pytest.raises(BudgetError, match="there is no bundle to register"):
        make_record(folder, register="trec")


def test_a_damaged_bundle_is_not_tracked(folder: Path, compressor: Command) -> None:
    (folder / "bundles" / "int8-onnxruntime" / "model.onnx").write_text("other")
    outcome = compressor("track", folder, "--to", "json")
    assert outcome.code == 6
    assert "was changed after it was built" in outcome.err
    (folder / "bundles" / "int8-onnxruntime" / MANIFEST).unlink()
    assert compressor("track", folder, "--to", "json").code == 6


def test_what_another_gate_ships_is_tracked_with_its_bundle(
    folder: Path, compressor: Command
) -> None:
    bundle(folder / "bundles" / "fp32-onnxruntime")
    judged = gate(compressor, folder, "--set", "min_size_ratio=1", "--set", "max_accuracy_drop=5")
    shipped = {row.name for row in make_record(folder, gate=judged).rows if row.bundle}
    assert shipped == {"fp32-onnxruntime"}  # what was chosen before does not ship any more
    assert {row.name for row in make_record(folder).rows if row.bundle} == {"int8-onnxruntime"}


# What belongs to another report, or is none


def test_a_gate_of_another_report_is_refused(folder: Path, compressor: Command) -> None:
    judged = gate(compressor, folder)
    report = read_report(folder)
    write_report(report.model_copy(update={"seed": 7, "predictions": None}), folder)
    with pytest.raises(ReportError, match="the gate judged another report"):
        make_record(folder, gate=judged)


@pytest.mark.parametrize("text", ["{", "{}", None])
def test_what_is_no_gate_is_refused(folder: Path, compressor: Command, text: str | None) -> None:
    file = folder / "gate.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    outcome = compressor("track", folder, "--to", "json", "--gate", file)
    assert outcome.code == 8
    assert "this is not the result of a gate" in outcome.err


def test_an_unknown_tracker_is_named_with_the_known_ones(folder: Path, compressor: Command) -> None:
    outcome = compressor("track", folder, "--to", "mlfow")
    assert outcome.code == 2
    for words in ("there is no tracker 'mlfow'", "did you mean 'mlflow'?", "known: json, mlflow"):
        assert words in " ".join(outcome.err.replace("│", "").split())


def test_json_replaces_no_file_of_another_kind(folder: Path, compressor: Command) -> None:
    outcome = compressor("track", folder, "--to", "json", "--uri", folder / "report.json")
    assert outcome.code == 10
    assert "the file for the record exists, and cannot be read as a record" in outcome.err
    assert "the same command can be run again" in outcome.err
    assert read_report(folder).seed == 0
    outcome = compressor("track", folder, "--to", "json", "--uri", folder / "report.json" / "r")
    assert outcome.code == 10


def test_json_of_another_report_is_replaced(folder: Path, compressor: Command) -> None:
    assert compressor("track", folder, "--to", "json").code == 0
    report = read_report(folder)
    write_report(report.model_copy(update={"seed": 7, "predictions": None}), folder)
    outcome = compressor("track", folder, "--to", "json")
    assert (outcome.code, outcome.out) == (0, f"tracked: {folder / 'record.json'}\n")
    assert json.loads((folder / "record.json").read_text())["run"]["params"]["seed"] == "7"


def test_a_missing_library_names_its_extra(
    folder: Path, compressor: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    outcome = compressor("track", folder, "--to", "mlflow", "--uri", "http://localhost:1")
    assert outcome.code == 7
    assert "pip install 'compressor[mlflow]'" in outcome.err
