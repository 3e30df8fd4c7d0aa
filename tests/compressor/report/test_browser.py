"""The page in a real browser: nothing is fetched, nothing fails, nothing sticks out."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.report.html import render_html

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


@pytest.fixture(params=["report", "noisy_report", "unmeasured_report", "single_row_report"])
def page(request, browser, tmp_path):
    """An opened page; fails the test if it logged anything or asked for anything but itself."""
    path = tmp_path / "report.html"
    path.write_text(render_html(request.getfixturevalue(request.param)), encoding="utf-8")
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


@pytest.mark.parametrize("page", ["report"], indirect=True)
def test_each_width_shows_its_charts(page):
    shown = "[...document.querySelectorAll('svg.{0}')].filter(e => e.checkVisibility()).length"
    page.set_viewport_size({"width": 1400, "height": 900})
    assert [page.evaluate(shown.format(css)) for css in ("wide", "narrow")] == [3, 0]
    page.set_viewport_size({"width": 390, "height": 900})
    assert [page.evaluate(shown.format(css)) for css in ("wide", "narrow")] == [0, 3]
    assert page.locator("figure svg").count() == 2


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


@pytest.mark.parametrize("page", ["report"], indirect=True)
def test_it_prints_with_everything_unfolded(page, tmp_path):
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    assert page.locator("details:not([open])").count() == 0


@pytest.mark.parametrize("page", ["report", "noisy_report"], indirect=True)
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
