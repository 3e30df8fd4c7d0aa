from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from compressor.report.html import render_html
from compressor.report.summary import row_texts


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
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture(params=["report", "noisy_report", "unmeasured_report", "single_row_report"])
def any_report(request):
    return request.getfixturevalue(request.param)


def test_every_page_is_well_formed(any_report):
    page = Page(render_html(any_report))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
    assert labelled <= set(ids)


def test_names_bring_no_elements(report, hostile_name):
    page = Page(render_html(report))
    assert hostile_name in page.text
    tags = {tag for tag, _ in page.tags}
    assert "img" not in tags
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_nothing_is_fetched(any_report):
    page = Page(render_html(any_report))
    assert not any(
        name in attributes for _, attributes in page.tags for name in ("src", "href", "srcset")
    )
    assert "url(" not in render_html(any_report)
    assert "@import" not in render_html(any_report)


def test_the_policy_allows_the_pages_own_script_and_style_only(report):
    text = render_html(report)
    policy = next(a["content"] for t, a in Page(text).tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S).group(1)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_every_drawing_is_described_or_hidden_from_screen_readers(any_report):
    drawings = [
        attributes for tag, attributes in Page(render_html(any_report)).tags if tag == "svg"
    ]
    assert all(each.get("aria-label") or each.get("aria-hidden") == "true" for each in drawings)


def test_every_row_is_in_the_page(report):
    text = Page(render_html(report)).text
    for row in row_texts(report):
        assert row.reason in text
        assert row.latency in text
        for line in row.row.unmet:
            assert line in text


def test_what_the_chosen_bundles_change_is_in_the_page(report):
    page = render_html(report)
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


def test_noise_is_said_loudly_and_only_then(report, noisy_report):
    assert "Noisy machine: do not trust these latencies" in Page(render_html(noisy_report)).text
    assert "Noisy machine" not in Page(render_html(report)).text


def test_machine_threads_and_load_are_named(report):
    text = Page(render_html(report)).text
    assert "Measured on Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz, 4 CPUs" in text
    assert "threads a run: 2" in text
    assert "load average 2.20" in text


def test_a_page_stays_small(report):
    assert len(render_html(report)) < 300_000


def test_nothing_measured_is_said(unmeasured_report):
    text = Page(render_html(unmeasured_report)).text
    assert "No candidate could be measured" in text
    assert "Accuracy against latency" not in text
