"""The page in a real browser: nothing is fetched, nothing fails, nothing sticks out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compressor.report.pareto import pareto_front

from .conftest import PAGES

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            headless=True,
            args=list(ARGUMENTS),
        )
        yield context
        context.close()


def wait_until_nothing_is_hidden(page):
    """Not by ``wait_for_function``: it polls by eval, which the policy of the page forbids."""
    from playwright.sync_api import expect

    expect(page.locator("tbody[data-run][hidden]")).to_have_count(0)


@pytest.fixture(params=PAGES)
def page(request, browser, page_of, tmp_path):
    """An opened page; fails the test if it logged anything or asked for anything but itself."""
    path = tmp_path / "report.html"
    path.write_text(page_of(request.param), encoding="utf-8")
    page = browser.new_page()
    page.set_default_timeout(10_000)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    page.close()
    assert said == []
    assert set(asked) == {path.as_uri()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 820, 390])
def test_nothing_sticks_out(page, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("page", [*PAGES, "published_report"], indirect=True)
def test_no_table_hides_a_column(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    hidden = page.evaluate("""() => [...document.querySelectorAll(".scroll")]
      .filter(each => each.checkVisibility() && each.scrollWidth > each.clientWidth)
      .map(each => each.querySelector("table").ariaLabel)""")
    assert hidden == []


@pytest.mark.parametrize("page", ["several_reports"], indirect=True)
def test_it_fits_on_paper(page):
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 688, "height": 900})  # A4 without its margins
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 688


@pytest.mark.parametrize("page", ["report"], indirect=True)
def test_each_width_shows_its_charts(page):
    shown = "[...document.querySelectorAll('svg.{0}')].filter(e => e.checkVisibility()).length"
    page.set_viewport_size({"width": 1400, "height": 900})
    assert [page.evaluate(shown.format(css)) for css in ("wide", "narrow")] == [3, 0]
    page.set_viewport_size({"width": 390, "height": 900})
    assert [page.evaluate(shown.format(css)) for css in ("wide", "narrow")] == [0, 3]
    assert page.locator("figure svg").count() == 2


@pytest.mark.parametrize("page", ["several_reports"], indirect=True)
def test_a_comparison_shows_the_chart_of_its_width(page):
    for width, css in ((1400, "wide"), (390, "narrow")):
        page.set_viewport_size({"width": width, "height": 900})
        assert [c.is_visible() for c in page.locator(f"svg.scatter.{css}").all()] == [True]
        assert page.locator("svg.scatter:visible").count() == 1


@pytest.mark.parametrize("page", ["report"], indirect=True)
@pytest.mark.parametrize("width", [1400, 390])
def test_labels_of_the_row_charts_do_not_overlap(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    overlaps = page.evaluate("""() => {
      const found = [];
      for (const svg of document.querySelectorAll("svg.wide, svg.narrow")) {
        if (!svg.checkVisibility()) continue;
        const texts = [...svg.querySelectorAll("text")];
        const boxes = texts.map(each => each.getBoundingClientRect());
        boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, j) => {
          if (a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom)
            found.push(texts[i].textContent + " / " + texts[i + 1 + j].textContent);
        }));
      }
      return found;
    }""")
    assert overlaps == []


@pytest.mark.parametrize("page", ["report"], indirect=True)
def test_a_heading_sorts_the_results_and_keeps_empty_cells_last(page):
    page.set_viewport_size({"width": 1400, "height": 900})
    numbers = "[...document.querySelectorAll('table.sortable tbody')].map(e => +e.dataset.number)"
    heading = page.locator("table.sortable th button[data-key=latency]")
    heading.click()
    up = page.evaluate(numbers)
    assert up[:2] == [13, 12]
    assert sorted(up[10:]) == [5, 8, 11, 14, 15]
    heading.click()
    down = page.evaluate(numbers)
    assert down[:10] == up[:10][::-1]
    assert sorted(down[10:]) == [5, 8, 11, 14, 15]
    assert page.locator("th[aria-sort=descending]").count() == 1


@pytest.mark.parametrize("page", ["report", "several_reports"], indirect=True)
def test_every_heading_sorts(page):
    page.set_viewport_size({"width": 1400, "height": 900})
    headings = page.locator("table.sortable th[role=columnheader]")
    assert headings.count() == headings.locator("button").count() >= 10
    headings.last.locator("button").click()
    order = ["chosen", "nearest", "met", "missed"]
    marks = page.evaluate(
        "[...document.querySelectorAll('table.sortable tbody')].map(e => e.classList[0])"
    )
    found = [order.index(mark) if mark in order else len(order) for mark in marks]
    assert found == sorted(found)
    assert found[0] == 0


@pytest.mark.parametrize("page", ["report", "several_reports"], indirect=True)
def test_it_prints_with_everything_unfolded(page, tmp_path):
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    assert page.locator("details:not([open])").count() == 0


@pytest.mark.parametrize("page", ["report", "noisy_report", "several_reports"], indirect=True)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_it_is_on(page, scheme):
    page.emulate_media(color_scheme=scheme)
    weak = page.evaluate("""() => {
      const parse = (text) => text.match(/[\\d.]+/g).map(Number);
      const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      const behind = (element) => {
        for (let each = element; each; each = each.parentElement) {
          const colour = parse(getComputedStyle(each).backgroundColor);
          if (colour.length === 3 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
      };
      const found = new Set();
      for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!own || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
        const style = getComputedStyle(element);
        const colour = element.tagName === "text" ? style.fill : style.color;
        const [a, b] = [luminance(parse(colour)), luminance(behind(element))].sort((x, y) => y - x);
        const contrast = (a + 0.05) / (b + 0.05);
        if (contrast < 4.5) found.add(element.tagName + " " + element.className + " " + contrast);
      }
      return [...found];
    }""")
    assert weak == []


# Filters of a comparison

only_several = pytest.mark.parametrize("page", ["several_reports"], indirect=True)


def shown_rows(page):
    """What is said of themselves by the rows that can be seen."""
    return page.evaluate("""() => [...document.querySelectorAll("tbody[data-run]")]
      .filter(each => each.checkVisibility()).map(each => ({ ...each.dataset }))""")


def seen_in_chart(page, css):
    """Numbers of the rows whose mark of a kind can be seen in the chart on view."""
    return page.evaluate(
        """(css) => [...document.querySelectorAll(`svg.scatter ${css}[data-row]`)]
          .filter(each => each.checkVisibility()).map(each => each.dataset.row)""",
        css,
    )


def fronts(page):
    """Front -> the corners of its line and what is said to be on it, in the chart on view."""
    return page.evaluate("""() => [...document.querySelectorAll("svg.scatter .front")]
      .filter(each => each.checkVisibility())
      .map(each => [each.dataset.title, each.getAttribute("d")])""")


def check_consistent(page, rows):
    """The count, the chart and its description tell of the same rows as the table."""
    total = page.locator("tbody[data-run]").count()
    assert page.locator("#shown").text_content() == f"{len(rows)} of {total} rows shown"
    numbers = {row["number"] for row in rows}
    assert set(seen_in_chart(page, ".point")) == numbers
    assert set(seen_in_chart(page, "text")) <= numbers
    said = page.locator("svg.scatter:visible").get_attribute("aria-label")
    assert f" for {len(rows)} rows." in said


@only_several
def test_the_script_first_draws_what_the_page_came_with(page, page_of):
    check_consistent(page, shown_rows(page))
    look = """(text) => {
      const page = text ? new DOMParser().parseFromString(text, "text/html") : document;
      return [...page.querySelectorAll("svg.scatter")].map(chart => [
        chart.getAttribute("aria-label"),
        ...[...chart.querySelectorAll(".front")].map(each => each.getAttribute("d")),
      ]);
    }"""
    assert page.evaluate(look) == page.evaluate(look, page_of("several_reports"))
    assert len(fronts(page)) == 3


@only_several
@pytest.mark.parametrize(
    ("group", "value", "key", "hidden"),
    [
        ("run", "trec-questions (1)", "run", "1"),
        ("target", "openvino", "target", "openvino"),
        ("target", "onnxruntime on pi", "target", "onnxruntime on pi"),
        ("precision", "int8-dynamic", "precision", "int8-dynamic"),
    ],
)
def test_a_check_box_hides_its_rows_and_points(page, group, value, key, hidden):
    everything = shown_rows(page)
    box = page.get_by_role("group", name=group, exact=True).get_by_label(value, exact=True)
    box.uncheck()
    rows = shown_rows(page)
    assert rows == [row for row in everything if row[key] != hidden]
    assert 0 < len(rows) < len(everything)
    check_consistent(page, rows)
    box.check()
    assert shown_rows(page) == everything
    check_consistent(page, everything)


@only_several
def test_only_what_is_shipped(page):
    page.get_by_label("only what is shipped").check()
    rows = shown_rows(page)
    assert {row["variant"] for row in rows} == {"half-width", "quarter-width-long-distillation"}
    assert page.locator("tbody[data-run]:visible .badge.chosen").count() == len(rows) == 7
    check_consistent(page, rows)


@only_several
def test_the_variant_is_searched_for(page, hostile_name):
    everything = shown_rows(page)
    field = page.get_by_label("variant", exact=True)
    field.fill(" WIDTH")
    assert {row["variant"] for row in shown_rows(page)} == {
        "half-width",
        "quarter-width-long-distillation",
    }
    field.fill(hostile_name)
    assert {row["variant"] for row in shown_rows(page)} == {hostile_name}
    field.fill("there is none like this")
    check_consistent(page, [])
    assert shown_rows(page) == []
    assert [path for _, path in fronts(page)] == [""] * 3
    page.get_by_role("button", name="Show everything").click()
    wait_until_nothing_is_hidden(page)
    assert shown_rows(page) == everything
    assert field.input_value() == ""


@only_several
@pytest.mark.parametrize("width", [1400, 390])
def test_the_fronts_are_those_of_what_is_shown(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    # Whole numbers, so that many latencies are equal.
    page.evaluate("""document.querySelectorAll("tbody[data-run]").forEach(each => {
      each.dataset.latency = Math.ceil(each.dataset.latency / 8);
    })""")
    page.get_by_label("pytorch", exact=True).uncheck()
    rows = {row["number"]: row for row in shown_rows(page)}
    points = page.evaluate("""() => [...document.querySelectorAll("svg.scatter .point[data-row]")]
      .filter(each => each.checkVisibility()).map(each => ({ ...each.dataset }))""")
    drawn = fronts(page)
    assert len(drawn) == 3
    for index, (_, path) in enumerate(drawn):
        own = [point for point in points if point["on"] == str(index)]
        values = [
            (float(rows[p["row"]]["latency"]), float(rows[p["row"]]["accuracy"])) for p in own
        ]
        first, *rest = (own[i] for i in pareto_front(values))
        assert rest
        steps = "".join(f"H{p['x']}V{p['y']}" for p in rest)
        assert path == f"M{first['x']} {first['y']}{steps}"


@only_several
def test_filters_and_sorting_go_together(page):
    page.get_by_role("group", name="run").get_by_label("trec-questions (2)").uncheck()
    page.locator("th button[data-key=latency]").click()
    rows = shown_rows(page)
    times = [float(row["latency"]) for row in rows]
    assert times == sorted(times)
    assert {row["run"] for row in rows} == {"1", "3"}
    page.locator("th button[data-key=target]").click()
    names = [row["target"] for row in shown_rows(page)]
    assert names == sorted(names)
    check_consistent(page, rows)


@only_several
def test_filters_work_by_keyboard(page):
    page.locator("#filters input").first.focus()
    page.keyboard.press("Space")
    rows = shown_rows(page)
    assert {row["run"] for row in rows} == {"2", "3"}
    count = page.locator("#filters input[type=checkbox]").count()
    for _ in range(count - 1):  # past the check boxes, to the field before the last of them
        page.keyboard.press("Tab")
    page.keyboard.type("half")
    assert {row["variant"] for row in shown_rows(page)} == {"half-width"}
    page.keyboard.press("Enter")  # sends nothing, loses nothing
    assert {row["variant"] for row in shown_rows(page)} == {"half-width"}
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    check_consistent(page, shown_rows(page))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "reset"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Enter")
    wait_until_nothing_is_hidden(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.key") == "number"
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort=ascending]").count() == 1


@only_several
def test_every_control_has_a_label(page):
    unnamed = page.evaluate("""() => [...document.querySelectorAll("#filters input")]
      .filter(each => each.labels.length !== 1 || !each.labels[0].textContent.trim()).length""")
    assert unnamed == 0


@only_several
def test_a_reload_shows_everything_again(page):
    everything = shown_rows(page)
    page.get_by_label("only what is shipped").check()
    page.reload()
    assert shown_rows(page) == everything
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [
        0,
        0,
        "",
    ]


@only_several
def test_paper_shows_every_row_whatever_is_filtered(page):
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    everything = shown_rows(page)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    page.get_by_label("only what is shipped").check()
    filtered = shown_rows(page)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert shown_rows(page) == everything
    assert not page.locator("#filters").is_visible()
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert shown_rows(page) == filtered


def test_without_a_script_everything_is_there_but_the_filters(browser, page_of, tmp_path):
    path = tmp_path / "plain.html"
    text = re.sub('script-src [^"]+', "script-src 'none'", page_of("several_reports"))
    path.write_text(text, encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    assert not page.locator("#filters").is_visible()
    assert page.locator("tbody[data-run]:visible").count() == 33
    page.close()
