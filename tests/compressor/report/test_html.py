from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from compressor.report.changes import change_texts
from compressor.report.html import render_comparison, render_html
from compressor.report.summary import row_texts

from .conftest import PAGES


class Page(HTMLParser):
    """Checks nesting, and collects what a test wants to see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture(params=PAGES)
def any_page(request, page_of):
    return page_of(request.param)


def test_every_page_is_well_formed(any_page):
    page = Page(any_page)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
    assert labelled <= set(ids)


@pytest.mark.parametrize("name", ["report", "several_reports"])
def test_names_bring_no_elements(page_of, hostile_name, name):
    page = Page(page_of(name))
    assert hostile_name in page.text
    tags = {tag for tag, _ in page.tags}
    assert "img" not in tags
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_nothing_is_fetched(any_page):
    page = Page(any_page)
    assert not any(
        name in attributes
        for _, attributes in page.tags
        for name in ("src", "href", "srcset", "action")
    )
    assert "url(" not in any_page
    assert "@import" not in any_page


def test_the_policy_allows_the_pages_own_script_and_style_only(any_page):
    text = any_page
    policy = next(a["content"] for t, a in Page(text).tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S).group(1)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_every_drawing_is_described_or_hidden_from_screen_readers(any_page):
    drawings = [attributes for tag, attributes in Page(any_page).tags if tag == "svg"]
    assert all(each.get("aria-label") or each.get("aria-hidden") == "true" for each in drawings)


def test_every_row_is_in_the_page(report, page_of):
    text = Page(page_of("report")).text
    for row in row_texts(report):
        assert row.reason in text
        assert row.latency in text
        for line in row.row.unmet:
            assert line in text


def test_what_the_chosen_bundles_change_is_in_the_page(report, page_of):
    page = page_of("report")
    chosen = [row for row in report.rows if row.chosen]
    assert page.count('aria-label="Accuracy by metric, class and slice"') == len(chosen) == 2
    for words in (
        "class ABBR",
        "source = web",
        "macro f1",
        "How far is it from Denver",
        "example 77",
    ):
        assert words in page
    assert "40 examples got another label; the 2 worst" in page
    assert "0.0312, untouched 0.0187" in page
    # Lost beyond chance: NUM; for ABBR the interval holds 0.
    lost = [part for part in page.split("<tbody") if 'class="lost"' in part.partition(">")[0]]
    assert any("class NUM" in part for part in lost)
    assert not any("class ABBR" in part for part in lost)
    plain = tuple(row.model_copy(update={"chosen": False}) for row in report.rows)
    assert "got another label" not in render_html(report.model_copy(update={"rows": plain}))


def test_a_drop_has_one_interval(report):
    """Of accuracy, the metrics have one from a bootstrap as well."""
    row = next(row for row in report.rows if row.chosen)
    compared = row.test_comparison
    other = compared.metrics["accuracy"].model_copy(
        update={"low_points": compared.low_points - 7, "high_points": compared.high_points + 7}
    )
    update = {"metrics": {**compared.metrics, "accuracy": other}}
    row = row.model_copy(update={"test_comparison": compared.model_copy(update=update)})
    report = report.model_copy(update={"rows": (row,)})
    (text,), (change,) = row_texts(report), change_texts(report)
    accuracy = next(group for group in change.groups if group.title == "accuracy")
    assert accuracy.drop_interval == text.drop_interval != ""
    page = Page(render_html(report)).text
    assert page.count(text.drop_interval) == 3  # the headline, the results, what changes
    assert f"{other.low_points:.1f} to" not in page


def test_what_was_chosen_on_the_validation_data_is_said_to_be(report, page_of):
    words = ("Picked on the validation data", "were picked on the validation data")
    text = Page(page_of("report")).text
    assert all(each in text for each in words)
    untested = tuple(
        row.model_copy(update={"test": None, "test_comparison": None}) for row in report.rows
    )
    text = Page(render_html(report.model_copy(update={"rows": untested}))).text
    assert not any(each in text for each in words)


def test_settings_are_as_in_a_recipe_and_names_break_at_underscores(report):
    step = report.steps["half-width"][0]
    settings = {"recovery": None, "keep": True, "exclude": [], "scope": "layer", "rate": 1e-5}
    step = step.model_copy(update={"pass_name": "trim_<vocabulary>", "settings": settings})
    page = render_html(report.model_copy(update={"steps": {"half-width": (step,)}}))
    assert "trim_<wbr/>&lt;vocabulary&gt;</th>" in page
    text = " ".join(Page(page).text.split())
    told = "recovery = null, keep = true, exclude = [], scope = layer, rate = 1e-05"
    assert f"Settings: {told}" in text


def test_the_speed_up_of_a_noisy_row_is_marked_as_its_latency_is(page_of):
    def tiles(name):
        figures = page_of(name).partition('<dl class="figures">')[2].partition("</dl>")[0]
        return [tile.count("~ noisy") for tile in figures.split("<dt>")[1:]]

    assert tiles("report") == [0, 0, 0, 0]
    assert tiles("noisy_report") == [1, 1, 0, 0]


def test_noise_is_said_loudly_and_only_then(page_of):
    assert "Noisy machine: do not trust these latencies" in Page(page_of("noisy_report")).text
    assert "Noisy machine" not in Page(page_of("report")).text


def test_machine_threads_and_load_are_named(page_of):
    text = Page(page_of("report")).text
    assert "Measured on Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz, 4 CPUs" in text
    assert "threads a run: 2" in text
    assert "load average 2.20" in text


def test_a_page_stays_small(page_of):
    assert len(page_of("report")) < 300_000


def test_nothing_measured_is_said(page_of):
    text = Page(page_of("unmeasured_report")).text
    assert "No candidate could be measured" in text
    assert "Accuracy against latency" not in text


# Several runs


def test_each_run_is_told_with_what_it_ships(page_of, hostile_name):
    text = Page(page_of("several_reports")).text
    for words in (
        "trec-questions (1), trec-questions (2), " + hostile_name,
        "2026-03-14 15:09 UTC",
        "2026-03-15 07:00 UTC",
        "yesterday",
        "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz, 4 CPUs",
        "ships half-width: ",
        "ships nothing: refused; built, not run here",
    ):
        assert words in text
    assert text.index("trec-questions (1)") < text.index("trec-questions (2)")
    text = Page(page_of("unmeasured_reports")).text
    assert "No row of these runs was measured" in text
    assert "Accuracy against latency" not in text


def test_a_run_that_misses_its_budget_ships_nothing(several_reports):
    first = several_reports[0]
    missed = next(row for row in first.rows if row.unmet).checks
    rows = tuple(
        row.model_copy(update={"checks": missed}) if row.chosen else row for row in first.rows
    )
    text = Page(render_comparison([first.model_copy(update={"rows": rows})] * 2)).text
    nearest = "ships nothing; nearest on the validation data is half-width: speed-up 2.06x"
    assert f"{nearest}, at least 3x wanted" in text
    assert "There is none to draw: no target ships something in two of these runs." in text


def test_every_measured_row_of_every_run_is_in_the_table(page_of, several_reports):
    page = Page(page_of("several_reports"))
    rows = [a for tag, a in page.tags if tag == "tbody" and "data-run" in a]
    measured = [sum(r.status == "measured" for r in each.rows) for each in several_reports]
    on_board = [a for a in rows if a["data-target"] == "onnxruntime on pi"]
    assert len(rows) == sum(measured) + len(on_board)
    assert len(on_board) == sum(bool(row.devices) for row in several_reports[1].rows) == 3
    assert {a["data-run"] for a in on_board} == {"2"}
    assert all(float(a["data-latency"]) > 15 for a in on_board)
    assert "measured: 5 rows of trec-questions (1), 5 rows of trec-questions (2), 5 ro" in page.text


def test_a_comparison_stays_small(page_of):
    assert len(page_of("several_reports")) < 300_000


def test_what_language_models_wrote_has_columns(writing_report, report):
    page = render_html(writing_report)
    for label in ("first token, ms", "tokens/s"):
        assert f'data-label="{label}"' in page
        assert f'data-label="{label}"' not in render_html(report)
    assert "<small>2x as fast</small>" in page
    assert "<dt>Writing</dt>" in page
    assert "<dt>Writing</dt>" not in render_html(report)


def test_the_perplexity_of_language_models_has_a_column(written_report, report):
    page = render_html(written_report)
    assert 'data-label="perplexity"' in page
    assert "49 (+2.1%)" in page
    assert 'data-label="perplexity"' not in render_html(report)
