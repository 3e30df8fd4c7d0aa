from __future__ import annotations

import io

import pytest
from rich.console import Console

from compressor.report.summary import row_texts
from compressor.report.terminal import results_table, verdict_panel


def printed(renderable, width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=stream, width=width, color_system=None, legacy_windows=False).print(renderable)
    stream.flush()
    return raw.getvalue().decode(encoding)


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("width", [40, 80, 100, 140, 240])
def test_no_line_is_wider_than_the_terminal(report, width):
    assert max(map(len, printed(results_table(report), width).splitlines())) <= width


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_what_a_row_missed_is_there_in_full_and_the_first_line_of_why_it_is_absent(report, width):
    text = squeezed(printed(results_table(report), width))
    for row in row_texts(report):
        if row.reason:
            first, *rest = row.row.reason.splitlines()
            assert squeezed(first) in text
            assert not any(squeezed(line) in text for line in rest)
        for line in row.row.unmet:
            assert squeezed(line) in text


@pytest.mark.parametrize("width", [50, 60, 66, 72, 80, 100, 140])
def test_no_figure_is_cut(report, width):
    text = printed(results_table(report), width)
    assert "…" not in text
    for row in row_texts(report):
        if row.row.status == "measured":
            assert row.latency in text
            assert f" {row.drop} " in text
            assert row.accuracy in text or width < 80
            assert row.size in text or width < 72


def test_wider_terminals_show_more(report):
    assert "vs eager" not in printed(results_table(report), 80)
    assert "vs eager" in printed(results_table(report), 100)
    assert "smaller" in printed(results_table(report), 140)
    assert "4.23 to 4.32" in printed(results_table(report), 140)


def test_chosen_rows_are_marked_without_colour(report):
    lines = printed(results_table(report), 100).splitlines()
    marked = [line.split()[1] for line in lines if line.startswith(" ►")]
    assert marked == ["9", "12"]


def test_marks_are_ascii_where_the_terminal_knows_no_better(report):
    text = printed(results_table(report), 100, encoding="ascii")
    assert "> 12" in text
    assert "x 13" in text


def test_a_report_without_measurements_shows_only_the_reasons(unmeasured_report):
    text = printed(results_table(unmeasured_report), 80)
    assert "Not measured here" in text
    assert "variant" not in text


def test_markup_in_names_is_not_obeyed(report):
    row = report.rows[0].model_copy(update={"variant": "[bold]a[/bold]"})
    text = printed(results_table(report.model_copy(update={"rows": (row,)})), 100)
    assert "[bold]a[/bold]" in text


def test_the_verdict_is_said_in_words(report, noisy_report):
    assert "BUDGET MET" in printed(verdict_panel(report), 80)
    noisy = printed(verdict_panel(noisy_report), 80)
    assert "BUDGET NOT MET" in noisy
    assert "NOISY MACHINE" in noisy
    assert "27 more disturbed measurements" in noisy
    assert "NOISY" not in printed(verdict_panel(report), 80)


def test_noisy_latencies_are_marked(noisy_report):
    text = printed(results_table(noisy_report), 80)
    assert f"{row_texts(noisy_report)[0].latency}~" in text
    assert "~ noisy" in text


def test_what_was_written_is_shown_where_no_perplexity_is_known(report, writing_report):
    rows = [
        row.model_copy(update={"writing": wrote.writing})
        for row, wrote in zip(report.rows, writing_report.rows, strict=True)
    ]
    text = printed(results_table(report.model_copy(update={"rows": tuple(rows)})), 200)
    head = next(line for line in text.splitlines() if "variant" in line)
    assert "tokens/s" in head
    assert "drop" in head


@pytest.mark.parametrize("width", [80, 120, 200])
def test_what_a_language_model_wrote_has_columns(writing_report, width):
    text = printed(results_table(writing_report), width)
    head = next(line for line in text.splitlines() if "variant" in line)
    assert "tokens/s" in head
    assert "vs eager" not in head
    assert "tokens/s: written after the first" in " ".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_language_model_is_judged_by_its_perplexity(written_report, width):
    text = printed(results_table(written_report), width)
    head = next(line for line in text.splitlines() if "variant" in line)
    assert "perplexity" in head
    assert "drop" not in head
    assert "accuracy" not in head
    assert "49 (+2.1%)" in text
