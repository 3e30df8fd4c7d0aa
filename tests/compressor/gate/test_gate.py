"""``compressor gate``: its exit codes, what it prints, and what it writes for CI servers."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from compressor.gate.budget import Budget, Limits
from compressor.gate.gate import GateResult
from compressor.report.files import write_report
from compressor.report.schema import Report

from .conftest import RESULTS, answers_for
from .test_regression import KEY, changed, noisy, row_of, slower

NOW = RESULTS / "trec6_minilm_balanced_avx2.json"
BEFORE = RESULTS / "trec6_minilm_balanced_avx2_seed1.json"


Gate = Callable[..., Any]


@pytest.fixture
def gate(compressor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Run ``compressor gate`` in this process."""
    monkeypatch.setenv("COLUMNS", "200")
    return functools.partial(compressor, "gate")


def test_a_report_within_its_budget_passes(gate: Gate) -> None:
    done = gate(NOW)
    assert done.code == 0, done.err
    assert "gate PASSED" in done.out
    assert "is 6.75x as fast, wanted 3x" in done.out


def test_a_budget_of_the_command_line_takes_the_place_of_that_of_the_run(gate: Gate) -> None:
    done = gate(NOW, "--set", "min_speedup=7")
    assert done.code == 5
    assert "gate FAILED" in done.out
    assert "is 6.75x as fast, wanted 7x" in done.out
    assert "to try next: " in done.out
    for limit in ("max_accuracy_drop", "min_size_ratio"):
        assert limit in done.out  # the other limits of the run still count


def test_limits_of_a_target_stand_beside_those_of_all(gate: Gate, tmp_path: Path) -> None:
    """Also where the budget comes from the report, which names what it was given alone."""
    report = Report.model_validate_json(NOW.read_bytes())
    budget = Budget(
        max_accuracy_drop=0.0,
        max_metric_drop={"macro_f1": 50.0},
        targets={"onnxruntime": Limits(min_speedup=1.0, min_size_ratio=None)},
    )
    again = Budget.model_validate_json(budget.model_dump_json())
    assert again.on("onnxruntime") == budget.on("onnxruntime")
    assert again == budget
    path = tmp_path / "report.json"
    strict = budget.model_copy(update={"max_accuracy_drop": 0.01, "min_size_ratio": 1000.0})
    path.write_text(
        report.model_copy(update={"budget": strict.model_dump(mode="json")}).model_dump_json()
    )
    done = gate(path)
    assert done.code == 5, done.out
    lines = [line for line in done.out.splitlines() if " onnxruntime " in line]
    assert any("max_accuracy_drop" in line for line in lines)
    assert not any("min_size_ratio" in line for line in lines)  # which null takes away there
    assert "min_size_ratio" in done.out


def test_the_choice_follows_the_budget(gate: Gate) -> None:
    assert "onnxruntime: int8 meets" in gate(NOW).out
    # Where the size does not count, fp32 is the fastest.
    assert "onnxruntime: fp32 meets" in gate(NOW, "--set", "min_size_ratio=1").out


@pytest.mark.parametrize("content", ["min_speedup: 7\n", "name: x\nbudget:\n  min_speedup: 7\n"])
def test_a_budget_comes_from_a_file_of_limits_or_a_recipe(
    gate: Gate, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "budget.yaml"
    file.write_text(content)
    done = gate(NOW, "--budget", file)
    assert done.code == 5
    assert "wanted 7x" in done.out
    assert "max_accuracy_drop" not in done.out  # the file stands for all limits


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("max_latency: 3\n", "did you mean 'max_latency_ms'?"),
        ("max_latency_ms: -3\n", "where: max_latency_ms"),
        ("max_accuracy_drop: true\n", "given: True\n      fix:   write a number"),
        ("targets: {openvino: {max_latency: 3}}\n", "did you mean 'max_latency_ms'?"),
        ("devices: {pi: {max_latency: 3}}\n", "did you mean 'max_latency_ms'?"),
        ("targets: {openvno: {max_latency_ms: 3}}\n", "did you mean 'openvino'?"),
        ("max_size_mb: 9\ntargets: {pytorch: {max_size_mb: 3}}\n", "where: targets.pytorch"),
        ("{}\n", "it would let everything through"),
        ("require: any\n", "it would let everything through"),
        ("max_accuracy_drop:\n", "it would let everything through"),
        ("targets: {openvino: {drop_at: upper}}\n", "it would let everything through"),
        ("max_size_mb: 9\nbudget: {max_latency_ms: 3}\n", "given: max_size_mb\n"),
        ("budget:\nmax_size_mb: 9\nrequire: any\n", "given: max_size_mb, require\n"),
        ("max_size_m: 9\nbudget: {max_latency_ms: 3}\n", "given: max_size_m\n"),
        ("targets: {openvino: {max_size_mb: 1}}\nbudget: {max_size_mb: 3}\n", "given: targets\n"),
        ("- 3\n", "a budget must be a mapping of limits"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_a_wrong_budget_exits_3_and_says_where(
    gate: Gate, tmp_path: Path, content: str, words: str
) -> None:
    file = tmp_path / "budget.yaml"
    file.write_text(content)
    done = gate(NOW, "--budget", file)
    assert done.code == 3
    assert "the budget has 1 problem" in done.err
    assert words in done.err


def test_a_budget_that_is_not_there_is_not_called_bad_yaml(gate: Gate, tmp_path: Path) -> None:
    done = gate(NOW, "--budget", tmp_path / "absent.yaml")
    assert done.code == 3
    assert "the file does not exist" in done.err
    assert "absent.yaml" in done.err
    done = gate(NOW, "--budget", tmp_path)
    assert done.code == 3
    assert "the file cannot be read\n      given: Is a directory" in done.err


def test_a_whole_recipe_is_no_budget_with_limits_beside_it(gate: Gate, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "name: x\nmodel: m\ndata: {train: a.csv, test: b.csv}\npasses: [export]\nseed: 3\n"
        "targets: [onnxruntime]\ndevices: devices.yaml\nbudget: {max_accuracy_drop: 1}\n"
    )
    assert gate(NOW, "--budget", file).code == 0


@pytest.mark.parametrize("value", ["", " ", "null", "~"])
@pytest.mark.parametrize("limit", ["max_accuracy_drop", "targets.openvino.max_latency_ms"])
def test_an_empty_value_does_not_take_a_limit_away(gate: Gate, limit: str, value: str) -> None:
    done = gate(NOW, "--set", f"{limit}={value}")
    assert done.code == 3
    assert "an override is empty" in done.err
    assert f"where: {limit}" in done.err
    assert f"given: --set {limit}={value}" in done.err
    assert "is a variable of the shell unset?" in done.err


def test_limits_for_a_target_that_is_not_there_are_refused_on_the_command_line(gate: Gate) -> None:
    done = gate(NOW, "--set", "targets.onnxrt.max_latency_ms=0.001")
    assert done.code == 3
    assert "limits for a target that the report does not have" in done.err
    assert "where: targets.onnxrt" in done.err
    assert "given: onnxruntime, openvino" in done.err
    assert "did you mean 'onnxruntime'?" in done.err


def test_a_report_whose_own_budget_cannot_be_used_is_named(
    gate: Gate, now: Report, tmp_path: Path
) -> None:
    for budget, words in (
        ({"max_size_mb": float("nan")}, "where: max_size_mb"),
        ({"require": "any"}, "it would let everything through"),
    ):
        write_report(now.model_copy(update={"budget": budget}), tmp_path)
        done = gate(tmp_path)
        assert done.code == 3
        assert f"the budget has 1 problem\n  where: {tmp_path / 'report.json'}" in done.err
        assert words in done.err


def test_a_wrong_override_exits_3(gate: Gate) -> None:
    done = gate(NOW, "--set", "max_latncy_ms=3")
    assert done.code == 3
    assert "where: command line" in done.err
    assert "did you mean 'max_latency_ms'?" in done.err


def test_a_limit_on_what_the_report_does_not_know_is_a_miss(gate: Gate) -> None:
    done = gate(NOW, "--set", "max_class_drop=5")
    assert done.code == 5
    assert "max_class_drop could not be measured" in done.out


def test_worse_than_the_last_release_fails(gate: Gate, now: Report, tmp_path: Path) -> None:
    assert gate(NOW, "--against", NOW).code == 0
    write_report(slower(now, 1.3), tmp_path)
    done = gate(tmp_path, "--against", NOW, "--set", "min_speedup=1")
    assert done.code == 5
    assert "worse than the last release: onnxruntime: 1.300x the time" in done.out
    assert gate(tmp_path, "--against", NOW, "--max-slowdown", "0.5").code == 0
    refused = gate(tmp_path, "--against", NOW, "--max-slowdown", "inf")
    assert refused.code == 2
    assert "--max-slowdown" in refused.err


def test_answers_of_both_runs_are_paired(gate: Gate, now: Report, tmp_path: Path) -> None:
    write_report(now, tmp_path / "old", answers=answers_for(now, {KEY: 50}))
    write_report(now, tmp_path / "new", answers=answers_for(now, {KEY: 70}))
    done = gate(tmp_path / "new", "--against", tmp_path / "old")
    assert done.code == 5
    assert "-2.0 points of accuracy against the last release" in done.out
    shutil.copy(tmp_path / "old/predictions.safetensors", tmp_path / "new")
    damaged = gate(tmp_path / "new", "--against", tmp_path / "old")
    assert damaged.code == 8
    assert "not the predictions of the report" in damaged.err


def test_absent_answers_leave_the_intervals_and_are_told(
    gate: Gate, now: Report, tmp_path: Path
) -> None:
    for name in ("old", "new"):
        write_report(now, tmp_path / name, answers=answers_for(now, {KEY: 50}))
    files = {name: tmp_path / name for name in ("junit", "summary", "output")}
    write = [each for name, path in files.items() for each in (f"--{name}", path)]

    def judged() -> str:
        done = gate(tmp_path / "new", "--against", tmp_path / "old", *write)
        assert done.code == 0
        return str(done.out)

    assert "intervals" not in judged()
    beside = "no predictions.safetensors with answers lies beside "
    (tmp_path / "old" / "predictions.safetensors").unlink()
    assert f"{beside}that of the last release\n" in judged()
    (tmp_path / "new" / "predictions.safetensors").unlink()
    assert f"{beside}the report and that of the last release\n" in judged()
    for path in files.values():
        assert "accuracy is compared by the intervals of both" in path.read_text()


def test_nothing_to_compare_is_no_pass(
    gate: Gate, now: Report, before: Report, tmp_path: Path
) -> None:
    """Neither where no target is in both reports, nor where the last release measured nothing."""
    bare = tuple(row.model_copy(update={"chosen": False}) for row in before.rows)
    write_report(before.model_copy(update={"rows": bare}), tmp_path)
    done = gate(NOW, "--against", tmp_path)
    assert done.code == 3
    assert f"compared with the last release\n  where: {tmp_path / 'report.json'}" in done.err
    assert "onnxruntime: not compared: nothing was measured there for the last release" in done.err
    assert "or leave --against out" in done.err
    # Where the budget is missed, that is what to hear.
    assert gate(NOW, "--against", tmp_path, "--set", "max_size_mb=1").code == 5


def test_a_release_that_missed_its_own_budget_is_compared(
    gate: Gate, now: Report, tmp_path: Path
) -> None:
    [row] = [each for each in now.rows if each.key == KEY]
    missed = row.checks[0].model_copy(update={"met": False}) if row.checks else None
    assert missed is not None
    write_report(changed(now, checks=(missed,)), tmp_path / "old")
    write_report(slower(now, 1.3), tmp_path / "new")
    options = ("--against", tmp_path / "old", "--set", "min_speedup=1")
    done = gate(tmp_path / "new", *options)
    assert done.code == 5
    assert "worse than the last release: onnxruntime: 1.300x the time" in done.out
    assert "onnxruntime: the last release shipped nothing there; compared with int8" in done.out


def test_reports_that_cannot_be_compared_exit_3(gate: Gate, now: Report, tmp_path: Path) -> None:
    other = now.environment.model_copy(update={"cpu": "another"})
    write_report(now.model_copy(update={"environment": other}), tmp_path)
    done = gate(NOW, "--against", tmp_path)
    assert done.code == 3
    assert "they differ in the machine" in done.err
    assert "--allow machine" in done.err
    assert gate(NOW, "--against", tmp_path, "--allow", "machine").code == 0
    unknown = gate(NOW, "--against", tmp_path, "--allow", "everything")
    assert unknown.code == 2
    assert "--allow everything: use machine, data" in " ".join(unknown.err.split())


def test_latencies_of_a_noisy_machine_decide_nothing(
    gate: Gate, now: Report, tmp_path: Path
) -> None:
    write_report(noisy(now), tmp_path)
    only = ("--set", "require=every", "--set", "targets.openvino.min_speedup=1")
    done = gate(tmp_path, *only)
    assert done.code == 9
    assert "gate UNDECIDED" in done.out
    assert "--measure-again" in done.out
    assert gate(tmp_path, *only, "--even-if-noisy").code == 0
    # A miss that a quiet machine would not mend stays a miss.
    assert gate(tmp_path, *only, "--set", "max_size_mb=1").code == 5
    # And limits that no latency touches are judged as ever.
    accuracy = tmp_path / "accuracy.yaml"
    accuracy.write_text("max_accuracy_drop: 1\n")
    assert gate(tmp_path, "--budget", accuracy).code == 0


def test_a_doubt_that_cannot_change_the_outcome_does_not_count(
    gate: Gate, now: Report, tmp_path: Path
) -> None:
    """One target is enough: the one on ONNX Runtime is in doubt, and the other one decides."""
    write_report(noisy(now), tmp_path)
    file = tmp_path / "gate.json"

    def judged(*options: str) -> tuple[int, tuple[str, ...], str]:
        done = gate(tmp_path, *options, "--output", file)
        return done.code, GateResult.model_validate_json(file.read_bytes()).ships, done.out

    passes, misses = "targets.openvino.min_speedup=1", "targets.openvino.max_size_mb=1"
    code, ships, out = judged("--set", passes)
    assert (code, ships) == (0, ("bundles/int8-openvino",))
    assert "onnxruntime: do not ship int8: the machine was noisy" in out
    code, ships, out = judged("--set", passes, "--even-if-noisy")
    assert (code, ships) == (0, ("bundles/int8-onnxruntime", "bundles/int8-openvino"))
    assert "do not ship" not in out
    # Where the other one misses for certain, the doubtful one decides.
    assert judged("--set", misses)[:2] == (9, ())
    assert judged("--set", misses, "--even-if-noisy")[:2] == (0, ("bundles/int8-onnxruntime",))


def test_a_row_that_noise_kept_from_being_chosen_leaves_the_gate_undecided(
    gate: Gate, now: Report, tmp_path: Path
) -> None:
    """int8's time is in doubt, and what is chosen instead of it misses for certain."""
    fp32 = now.row(kind="candidate", variant="fp32", target="onnxruntime")
    allowed = 0.9 * fp32.latency[now.primary_shape].median_ms
    int8 = row_of(now).latency[now.primary_shape].median_ms
    report = slower(noisy(now), 2 * allowed / int8)
    rows = tuple(row for row in report.rows if row.target != "openvino")
    write_report(report.model_copy(update={"rows": rows}), tmp_path)
    limits = tmp_path / "limits.yaml"
    limits.write_text(f"max_latency_ms: {allowed}\n")
    undecided = gate(tmp_path, "--budget", limits)
    assert undecided.code == 9
    assert "fp32 misses it" in undecided.out
    assert gate(tmp_path, "--budget", limits, "--even-if-noisy").code == 5


def test_a_target_that_cannot_run_here_is_judged_by_the_limits_of_its_own(gate: Gate) -> None:
    every = ("--set", "require=every", "--set", "targets.openvino.min_speedup=1")
    assert gate(NOW, *every).code == 0
    for limit, code, words in (
        ("max_size_mb=20", 0, "int8 keeps the limits of this target (built, not judged: there is"),
        ("max_size_mb=1", 5, "int8 misses the limits of this target: is 14.87 MB, allowed 1 MB ("),
        ("max_latency_ms=9", 5, "max_latency_ms could not be measured"),
    ):
        done = gate(NOW, *every, "--set", f"targets.tensorrt_rtx.{limit}")
        assert done.code == code
        assert words in done.out
    absent = gate(NOW, *every, "--set", "targets.tensorrt.max_size_mb=20")
    assert absent.code == 5
    assert "max_size_mb could not be measured; nothing to ship" in absent.out


def test_what_was_not_measured_makes_no_gate_pass(gate: Gate, tmp_path: Path) -> None:
    """Where one target is enough, it is one that has something to ship."""
    output = tmp_path / "gate.json"
    options = ("--set", "targets.tensorrt_rtx.max_size_mb=20", "--output", output)
    assert gate(NOW, *options).code == 0
    assert GateResult.model_validate_json(output.read_bytes()).ships == (
        "bundles/int8-onnxruntime",
    )
    nothing = (
        "--set",
        "targets.openvino.max_size_mb=1",
        "--set",
        "targets.onnxruntime.max_size_mb=1",
    )
    assert gate(NOW, *options, *nothing).code == 5
    assert GateResult.model_validate_json(output.read_bytes()).ships == ()


def test_a_report_with_nothing_to_ship_does_not_pass(
    gate: Gate, now: Report, tmp_path: Path
) -> None:
    rows = tuple(row.model_copy(update={"bundle": None}) for row in now.rows)
    write_report(now.model_copy(update={"rows": rows}), tmp_path)
    done = gate(tmp_path)
    assert done.code == 5
    assert "onnxruntime: int8 misses it: nothing to ship: the report names no bundle" in done.out


def test_nothing_measured_exits_6(gate: Gate, now: Report, tmp_path: Path) -> None:
    gone = tuple(
        row if row.kind != "candidate" else row.model_copy(
            update={"status": "failed", "reason": "it died", "latency": {}, "bundle": None}
        )
        for row in now.rows
    )  # fmt: skip
    write_report(now.model_copy(update={"rows": gone}), tmp_path)
    done = gate(tmp_path)
    assert done.code == 6
    assert "no candidate could be measured" in done.out


def test_what_is_no_report_exits_8(gate: Gate, tmp_path: Path) -> None:
    done = gate(tmp_path)
    assert done.code == 8
    assert "the report does not exist" in done.err


@pytest.mark.parametrize(
    ("key", "value"), [("size_bytes", -1), ("size_ratio", float("nan")), ("size_ratio", -8.0)]
)
def test_a_damaged_report_is_no_pass(gate: Gate, tmp_path: Path, key: str, value: float) -> None:
    data = json.loads(NOW.read_text())
    data["rows"][3][key] = value
    (tmp_path / "report.json").write_text(json.dumps(data))
    done = gate(tmp_path)
    assert done.code == 3
    assert f"the report is damaged: 1 field cannot be used\n  where: {tmp_path}" in done.err
    assert f"field rows.3.{key}\n  given: {value!r}: " in done.err


@pytest.mark.parametrize(
    ("options", "outcome"),
    [((), "pass"), (("--set", "min_speedup=7"), "fail")],
)
def test_what_is_written_says_what_is_printed(
    gate: Gate, tmp_path: Path, options: tuple[str, ...], outcome: str
) -> None:
    files = {name: tmp_path / name for name in ("junit.xml", "summary.md", "gate.json")}
    done = gate(
        NOW, "--against", NOW, *options, "--junit", files["junit.xml"],
        "--summary", files["summary.md"], "--output", files["gate.json"],
    )  # fmt: skip
    result = GateResult.model_validate_json(files["gate.json"].read_bytes())
    assert (result.outcome, result.exit_code) == (outcome, done.code)
    missed = [check for target in result.targets for check in target.checks if not check.met]
    suites = ET.parse(files["junit.xml"]).getroot()  # noqa: S314  (written by this test)
    count = sum(len(target.checks) for target in result.targets) + len(result.regression) + 1
    assert int(suites.attrib["tests"]) == len(list(suites.iter("testcase"))) == count
    if outcome == "fail":
        messages = {each.attrib["message"] for each in suites.iter("failure")}
        assert {check.text for check in missed} <= messages
        assert int(suites.attrib["failures"]) == len(list(suites.iter("failure")))
    else:
        assert suites.attrib["failures"] == suites.attrib["errors"] == "0"
        assert int(suites.attrib["skipped"]) == len(missed) > 0
    text = files["summary.md"].read_text()
    for line in result.lines:
        assert line.split(":")[0].replace("_", "\\_") in text
    worse = [check for check in result.regression if not check.met]
    assert text.count("❌") == len(missed) + len(worse) + (outcome == "fail")
    assert "### Against the last release" in text


def test_an_undecided_gate_is_an_error_for_a_ci_server(
    gate: Gate, now: Report, tmp_path: Path
) -> None:
    write_report(noisy(now), tmp_path)
    options = (
        "--set", "require=every", "--set", "targets.openvino.min_speedup=1",
        "--junit", tmp_path / "junit.xml",
    )  # fmt: skip
    assert gate(tmp_path, *options).code == 9
    suites = ET.parse(tmp_path / "junit.xml").getroot()  # noqa: S314  (written by this test)
    assert suites.attrib["failures"] == "0"
    assert int(suites.attrib["errors"]) > 1


def test_believed_noise_is_no_warning(gate: Gate, now: Report, tmp_path: Path) -> None:
    write_report(noisy(now), tmp_path)
    summary = tmp_path / "summary.md"

    def marks(*options: str) -> dict[str, str]:
        gate(tmp_path, *options, "--set", "min_speedup=7", "--summary", summary)
        rows = [line.split(" | ") for line in summary.read_text().splitlines() if "speedup" in line]
        return {row[1]: row[0].strip("| ") for row in rows[:1]}

    assert list(marks().values()) == ["⚠️ noisy"]
    assert list(marks("--even-if-noisy").values()) == ["❌ noisy"]
    assert list(
        marks("--even-if-noisy", "--set", "targets.onnxruntime.min_speedup=1").values()
    ) == ["✅ noisy"]


def test_folders_are_made_and_a_file_that_cannot_be_written_is_named(
    gate: Gate, tmp_path: Path
) -> None:
    made = {name: tmp_path / "new" / name / "file" for name in ("junit", "summary", "output")}
    assert gate(NOW, *(each for name in made for each in (f"--{name}", made[name]))).code == 0
    assert all(path.is_file() for path in made.values())
    done = gate(NOW, "--junit", made["summary"] / "junit.xml")
    assert done.code == 8
    assert "the result cannot be written" in done.err
    assert str(made["summary"] / "junit.xml") in done.err


@pytest.mark.parametrize("option", ["--output", "--junit", "--summary"])
def test_what_is_read_is_never_overwritten(gate: Gate, tmp_path: Path, option: str) -> None:
    for name, path in (("now", NOW), ("before", BEFORE)):
        (tmp_path / name).mkdir()
        shutil.copy(path, tmp_path / name / "report.json")
    budget = tmp_path / "budget.yaml"
    budget.write_text("max_accuracy_drop: 1\n")
    for file in (tmp_path / "now/report.json", tmp_path / "before/report.json", budget):
        content = file.read_bytes()
        done = gate(
            tmp_path / "now", "--against", tmp_path / "before", "--budget", budget, option,
            tmp_path / "now" / ".." / file.relative_to(tmp_path),
        )  # fmt: skip
        assert done.code == 2
        assert "is an input of the gate; pass another file" in " ".join(
            done.err.replace("│", " ").split()
        )
        assert file.read_bytes() == content


def test_a_summary_is_of_one_gate_but_for_the_page_of_a_job(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    for _ in range(2):
        gate(NOW, "--summary", page)
        gate(NOW, "--summary", other)
    assert page.read_text() == 2 * other.read_text()
    assert other.read_text().count("Release gate passed") == 1
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    gate(NOW, "--summary", page)
    assert page.read_text() == other.read_text()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--set", "max_latncy_ms=5"), 3, "there is no setting 'max_latncy_ms'"),
        (("--against", BEFORE.with_name("trec6_minilm_half_width_avx2.json")), 3, "differ in"),
        (("--against", "absent.json"), 8, "the report does not exist"),
    ],
)
def test_a_gate_that_cannot_judge_says_so_where_an_earlier_one_passed(
    gate: Gate, tmp_path: Path, options: tuple[Any, ...], code: int, words: str
) -> None:
    files = {name: tmp_path / name for name in ("junit", "summary", "output")}
    write = [each for name, path in files.items() for each in (f"--{name}", path)]
    assert gate(NOW, *write).code == 0
    done = gate(NOW, *options, *write)
    assert done.code == code
    assert words in done.err
    root = ET.parse(files["junit"]).getroot()  # noqa: S314  (written by this test)
    assert (root.attrib["tests"], root.attrib["errors"]) == ("1", "1")
    [error] = root.iter("error")
    assert words in error.attrib["message"]
    text = files["summary"].read_text()
    assert text.startswith("## ❌ Release gate not judged")
    assert words.replace("_", "\\_") in text
    result = GateResult.model_validate_json(files["output"].read_bytes())
    assert (result.outcome, result.exit_code, result.ships) == ("error", code, ())
    assert words in result.lines[0]


def test_a_report_that_is_not_there_is_written_as_an_error(gate: Gate, tmp_path: Path) -> None:
    output = tmp_path / "gate.json"
    assert gate(tmp_path / "absent", "--output", output).code == 8
    result = GateResult.model_validate_json(output.read_bytes())
    assert (result.outcome, result.report_sha256) == ("error", "")
    # Where that cannot be written either, both are told, and the first gives the exit code.
    done = gate(NOW, "--set", "max_size_mb=", "--junit", output / "junit.xml")
    assert done.code == 3
    assert "the result cannot be written" in done.err
    assert "an override is empty" in done.err


def test_hostile_names_stay_text(gate: Gate, now: Report, tmp_path: Path) -> None:
    name = "<b>|`x`\x1b[31m]]>&"
    write_report(changed(now, variant=name), tmp_path)
    xml, markdown = tmp_path / "j.xml", tmp_path / "s.md"
    done = gate(tmp_path, "--junit", xml, "--summary", markdown)
    assert done.code == 0
    assert "\x1b" not in done.out
    ET.parse(xml)  # noqa: S314  (written by this test)
    assert "<b>" not in markdown.read_text()
    assert json.dumps(name)  # the name is one that JSON can hold


def test_the_budget_of_a_recipe_is_checked_against_what_it_measures() -> None:
    from compressor.gate.budget import Budget

    empty: list[dict[str, Any]] = [
        {},
        {"require": "any"},
        {"drop_at": "upper"},
        {"targets": {}},
        {"targets": {"openvino": {}}},
        {"devices": {"pi": {"max_latency_ms": None}}},
    ]
    assert all(Budget.model_validate(each).is_empty for each in empty)
    limits: list[dict[str, Any]] = [
        {"max_size_mb": 1},
        {"max_metric_drop": {"macro_f1": 1}},
        {"targets": {"openvino": {"max_size_mb": 1}}},
        {"devices": {"pi": {"max_latency_ms": 1}}},
    ]
    assert not any(Budget.model_validate(each).is_empty for each in limits)
