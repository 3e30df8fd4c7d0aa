from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from compressor.errors import DamagedReportError, ReportError
from compressor.report import files
from compressor.report.files import read_answers, read_report, withdraw_report, write_report


def test_a_report_survives_the_round_trip(report, tmp_path):
    folder = tmp_path / "new" / "folder"
    assert write_report(report, folder) == report
    assert read_report(folder / "report.json") == report
    assert read_report(folder) == report
    assert read_answers(report, folder) is None


def test_the_report_comes_after_what_it_speaks_of(report, tmp_path, monkeypatch):
    """An interruption leaves no new report with old predictions."""
    written = []
    replace = files._replace

    def note(path, content):
        written.append(path.name)
        replace(path, content)

    monkeypatch.setattr(files, "_replace", note)
    write_report(report, tmp_path, answers={"labels": np.arange(3)})
    assert written[0] == "predictions.safetensors"
    assert written[-1] == "report.json"
    withdraw_report(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(written[:-1])
    withdraw_report(tmp_path)
    with pytest.raises(ReportError, match="the report cannot be written"):
        withdraw_report(tmp_path / "report.md")


def test_the_answers_lie_beside_it_and_belong_to_it(report, tmp_path):
    answers = {"labels": np.arange(3), "a-b": np.eye(3, dtype=np.float32)}
    written = write_report(report, tmp_path, answers=answers)
    again = read_report(tmp_path)
    assert again == written
    for path in (tmp_path, tmp_path / "report.json"):
        found = read_answers(again, path)
        assert found is not None
        assert {key: each.tolist() for key, each in found.items()} == {
            key: each.tolist() for key, each in answers.items()
        }
    file = tmp_path / "predictions.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ReportError, match="not the predictions of the report"):
        read_answers(again, tmp_path)
    file.unlink()
    assert read_answers(again, tmp_path) is None
    file.mkdir()
    with pytest.raises(ReportError, match="cannot be read") as caught:
        read_answers(again, tmp_path)
    assert "keep predictions.safetensors beside report.json" in str(caught.value)


def test_the_raw_times_survive_it(report, tmp_path):
    write_report(report, tmp_path)
    before, after = (each.rows[0].latency["1x128"] for each in (report, read_report(tmp_path)))
    assert after.rounds == before.rounds
    assert after.median_ms == before.median_ms


def test_a_loss_that_is_not_a_number_survives_it_as_valid_json(report, tmp_path):
    step = report.steps["half-width"][1]
    step = step.model_copy(update={"history": ({"step": 10.0, "loss": math.nan},)})
    write_report(report.model_copy(update={"steps": {"v": (step,)}}), tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert math.isnan(read_report(tmp_path).steps["v"][0].history[0]["loss"])


def test_nothing_is_left_beside_the_files(report, tmp_path):
    write_report(report, tmp_path)
    write_report(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]


def test_an_interrupted_write_leaves_the_old_file_whole(report, tmp_path, monkeypatch):
    write_report(report, tmp_path)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ReportError, match="cannot be written"):
        write_report(report.model_copy(update={"seed": 18}), tmp_path)
    assert read_report(tmp_path) == report
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_is_a_file_is_named(report, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ReportError, match="cannot be written") as caught:
        write_report(report, tmp_path / "taken")
    assert str(tmp_path / "taken") in str(caught.value)


def test_a_name_that_no_file_can_have_is_a_report_that_is_not_there(tmp_path):
    with pytest.raises(ReportError, match="not a report: it cannot be read"):
        read_report(tmp_path / ("x" * 300))


def test_a_missing_report_is_named(tmp_path):
    with pytest.raises(ReportError, match="the report does not exist") as caught:
        read_report(tmp_path)
    assert str(tmp_path / "report.json") in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"", b"[" * 100_000, b"9" * 5000], ids=lambda each: each[:2]
)
def test_a_file_that_is_not_json_is_refused(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ReportError, match="not a report: it cannot be read as JSON"):
        read_report(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", "NaN", '"report"', '{"name": "schema_version"}'])
def test_json_that_is_no_report_is_not_taken_for_an_old_one(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ReportError, match="not a report: it has no schema_version") as caught:
        read_report(tmp_path)
    assert "pass the report.json that `compressor run` wrote" in str(caught.value)


def test_another_schema_version_is_refused(tmp_path):
    (tmp_path / "report.json").write_text('{"schema_version": 99}')
    with pytest.raises(ReportError, match="another schema version") as caught:
        read_report(tmp_path)
    assert "given: 99" in str(caught.value)
    assert "reads schema 2" in str(caught.value)


NAN, INFINITE = math.nan, math.inf


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("test_comparison.drop_points", NAN),
        ("test_comparison.high_points", INFINITE),
        ("test_comparison.metrics.macro_f1.drop_points", NAN),
        ("test_comparison.groups.0.low_points", -INFINITE),
        ("test_comparison.agreement", NAN),
        ("test_comparison.calibration_error", NAN),
        ("test.value", NAN),
        ("speedup.ratio", NAN),
        ("speedup.ratio", INFINITE),
        ("speedup_eager.ratio", -2.0),
        ("size_ratio", NAN),
        ("size_ratio", -8.0),
        ("size_bytes", NAN),
        ("size_bytes", -1),
        ("latency.1x128.rounds.0.run_ns.1", -5),
        ("latency.1x128.rounds.0.run_ns.1", 0),
        ("latency.1x128.rounds.0.run_ns.1", INFINITE),
        ("latency.1x128.rounds.0.cpu_ns", -1),
        ("latency.1x128.rounds.0.others_cpus", NAN),
        ("latency.1x128.load_time_ms", NAN),
        ("latency.1x128.load_time_ms", -1.0),
        ("latency.1x128.peak_memory_bytes", -1),
        ("latency.1x128.best_reference_ns", -1),
    ],
)
def test_a_figure_that_cannot_be_is_named(report, tmp_path, field, value):
    data = json.loads(report.model_dump_json())
    index = next(index for index, row in enumerate(data["rows"]) if row["chosen"])
    row = data["rows"][index]
    change = {"value": 0.5, "reference": 0.5, "drop_points": 0, "low_points": 0, "high_points": 0}
    group = {"column": None, "value": "a", "num_rows": 9, "accuracy": 0.5, "reference": 0.5,
             "drop_points": 0, "low_points": 0, "high_points": 0}  # fmt: skip
    row["test_comparison"] |= {"metrics": {"macro_f1": change}, "groups": [group]}
    node, parts = row, field.split(".")
    for part in parts[:-1]:
        node = node[int(part) if isinstance(node, list) else part]
    node[int(parts[-1]) if isinstance(node, list) else parts[-1]] = value
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(DamagedReportError, match="damaged: 1 field cannot be used") as caught:
        read_report(tmp_path)
    assert caught.value.exit_code == 3
    assert caught.value.where.endswith(f"field rows.{index}.{field}")
    assert caught.value.given.startswith(f"{value!r}: input should be ")


def test_a_damaged_field_is_named(report, tmp_path):
    data = json.loads(report.model_dump_json())
    data["rows"][3]["status"] = "great"
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(ReportError, match="damaged") as caught:
        read_report(tmp_path)
    assert "rows.3.status" in str(caught.value)
