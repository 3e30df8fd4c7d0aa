"""The command ``report``: which page is written where, and what stops it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from compressor.cli import main

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
REPORTS = sorted(RESULTS.glob("trec6_minilm_*avx2*.json"))


@pytest.fixture
def call(capsys):
    """Run the command line in this process: exit code and what was said."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["report", *map(str, arguments)])
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out + captured.err

    return run


@pytest.fixture
def folder(tmp_path):
    """An output folder of a run."""
    folder = tmp_path / "compressed"
    folder.mkdir()
    shutil.copy(REPORTS[0], folder / "report.json")
    return folder


def test_one_report_is_rendered_beside_itself(call, folder):
    for given in (folder, folder / "report.json"):
        code, said = call(given)
        assert code == 0
        assert said == f"written: {folder / 'report.html'}\n"
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert "<h1>balanced</h1>" in page
        (folder / "report.html").unlink()
    assert sorted(path.name for path in folder.iterdir()) == ["report.json"]


def test_a_file_of_another_name_gives_its_name_to_the_page(call, folder):
    (folder / "report.json").rename(folder / "last.json")
    assert call(folder / "last.json")[0] == 0
    assert (folder / "last.html").exists()


@pytest.mark.parametrize("output", [".", ".."])
def test_a_page_is_no_folder(call, folder, monkeypatch, output):
    monkeypatch.chdir(folder)
    code, said = call(folder, "--output", output)
    assert code == 2
    assert "is a folder; pass a file" in " ".join(said.replace("│", " ").split())


def test_several_reports_are_compared(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = call(*REPORTS)
    assert code == 0
    assert said == "written: comparison.html\n"
    page = Path("comparison.html").read_text(encoding="utf-8")
    names = [f"balanced ({path.stem})" for path in REPORTS]
    assert ", ".join(names) in page
    # The benchmarks of two machines that have one name.
    assert "count as different machines" in page
    assert f"Pareto front of {names[0]}, {names[1]}" in page
    code, said = call(*REPORTS, "--output", "new/page.html")
    assert code == 0
    assert Path("new/page.html").read_text(encoding="utf-8") == page


def test_runs_of_one_recipe_are_told_by_their_folder(call, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("monday", "tuesday/run", "wednesday/run"):
        shutil.copytree(folder, tmp_path / name)
    for given, label in (
        (("monday", "tuesday/run/report.json"), "balanced (monday), balanced (run)"),
        (("tuesday/run", "wednesday/run"), "balanced (tuesday/run), balanced (wednesday/run)"),
        (("monday", "./monday/report.json"), "balanced (monday) (1), balanced (monday) (2)"),
    ):
        assert call(*given)[0] == 0
        assert f"<h1>{label}</h1>" in Path("comparison.html").read_text(encoding="utf-8")


def test_a_report_is_never_overwritten(call, folder):
    before = (folder / "report.json").read_bytes()
    code, said = call(folder, "--output", folder / "report.json")
    assert code == 2
    assert "is one of the reports; pass another file" in " ".join(said.split())
    assert (folder / "report.json").read_bytes() == before


def test_what_is_no_report_is_said(call, folder, tmp_path):
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    empty = tmp_path / "empty"
    empty.mkdir()
    other, damaged, old, endless = (tmp_path / f"{name}.json" for name in "odne")
    other.write_text("{}", encoding="utf-8")
    damaged.write_text(json.dumps(data | {"rows": "none"}), encoding="utf-8")
    old.write_text(json.dumps(data | {"schema_version": 1}), encoding="utf-8")
    endless.write_text(json.dumps(data | {"duration_s": math.nan}), encoding="utf-8")
    for path, words, expected in (
        (empty, "the report does not exist", 8),
        (tmp_path / "absent.json", "the report does not exist", 8),
        (other, "this is not a report", 8),
        (old, "the report has another schema version", 8),
        (damaged, "the report is damaged", 3),
        (endless, "field duration_s\n  given: nan: input should be a finite number", 3),
    ):
        for arguments in ((path,), (folder, path)):
            code, said = call(*arguments, "--output", tmp_path / "page.html")
            assert code == expected
            assert words in said
            assert str(path) in said
    assert not (tmp_path / "page.html").exists()


def test_an_output_that_cannot_be_written_is_said(call, folder, tmp_path):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "page.html", folder):
        code, said = call(folder, "--output", output)
        assert code == 8
        assert "the report cannot be written" in said
        assert "pass a folder that can be written to" in said


def test_at_least_one_report_is_needed(call):
    code, said = call()
    assert code == 2
    assert "REPORT" in said
