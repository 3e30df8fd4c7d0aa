from __future__ import annotations

import re

import pytest
import yaml

from compressor.report.markdown import render_markdown
from compressor.report.summary import row_texts


def tables(text: str) -> list[list[list[str]]]:
    """Cells of each table, split at the bars that are not escaped."""
    found = []
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if len(lines) > 1 and all(line.startswith("|") for line in lines):
            found.append([re.split(r"(?<!\\)\|", line)[1:-1] for line in lines])
    return found


@pytest.fixture(params=["report", "noisy_report", "unmeasured_report", "single_row_report"])
def any_report(request):
    return request.getfixturevalue(request.param)


def test_every_table_is_rectangular_and_has_its_rule(any_report):
    found = tables(render_markdown(any_report))
    assert found
    for table in found:
        assert len({len(cells) for cells in table}) == 1
        assert all(re.fullmatch(r" (:---|---:) ", cell) for cell in table[1])


def test_every_row_is_in_the_results(report):
    results = next(t for t in tables(render_markdown(report)) if "budget" in t[0][-1])
    assert [cells[0].strip() for cells in results[2:]] == [str(n) for n in range(1, 16)]
    assert results[13][4].strip().startswith(row_texts(report)[11].latency)


def test_the_verdict_comes_first(report, noisy_report):
    assert render_markdown(report).splitlines()[2] == "**Budget met**"
    noisy = render_markdown(noisy_report)
    assert noisy.splitlines()[2] == "**Budget not met**"
    assert noisy.index("Noisy machine") < noisy.index("## ")


def test_what_the_chosen_bundles_change_is_there(report):
    text = render_markdown(report)
    assert text.count("| on | examples | untouched | bundle | drop, points |") == 2
    assert "| class NUM | 113 | 90.0% | 85.6% | ▼ 4.4 (0.9 to 7.9) |" in text
    assert "| class ABBR | 9 | 90.0% | 78.9% | 11.1 (-12.0 to 34.2) |" in text


def test_every_reason_is_there(report):
    text = render_markdown(report)
    for row in row_texts(report):
        first_words = " ".join(row.reason.split()[:6])
        assert first_words in text


def test_names_bring_no_markup(report, hostile_name):
    text = render_markdown(report)
    prose = text[: text.index("## Recipe")]
    assert hostile_name not in prose
    assert not re.search(r"<[a-z]", prose)
    assert r"\|\`a\`\*b\*" in prose


def test_the_recipe_can_be_read_back_whatever_fences_it_holds(report):
    text = render_markdown(report)
    fence, body = re.search(r"^(`{3,})yaml\n(.*?)\n\1$", text, re.S | re.M).groups()
    assert fence == "````"
    assert yaml.safe_load(body) == report.recipe


def test_settings_of_any_type_are_written(report, tmp_path):
    recipe = {"model": tmp_path, "targets": ("openvino",)}
    assert str(tmp_path) in render_markdown(report.model_copy(update={"recipe": recipe}))


def test_nothing_measured_is_said(unmeasured_report):
    text = render_markdown(unmeasured_report)
    assert "No candidate could be measured." in text
    assert "Nothing was measured." in text


def test_what_language_models_wrote_has_columns(writing_report, report):
    text = render_markdown(writing_report)
    assert "| 160 | 50 (50 to 50) | 2x (1.80 to 2.20) |" in text
    assert "| tokens written a second |" in text
    assert "tokens/s" not in render_markdown(report)


def test_the_perplexity_of_language_models_has_a_column(written_report, report):
    assert "| 49 (+2.1%) |" in render_markdown(written_report)
    assert "perplexity" not in render_markdown(report)
