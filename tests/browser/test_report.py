"""A report in a real browser: with its scripts and without, on a phone, in the dark."""

from __future__ import annotations

import pytest

from phasewatch.monitor.reports.run_page import write_report
from phasewatch.monitor.store.store import Store
from support.history import RUN_ID, fill

pytestmark = pytest.mark.browser

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    with Store("sqlite://") as store:
        fill(store, name=HOSTILE, extra="<b>reward")
        yield write_report(store, RUN_ID, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def visit(browser, report):
    """Opens the report, and holds it to have no error and no outside request."""
    faults = []

    def opened(**settings):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | settings)
        page = context.new_page()
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else 0)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(f"a script ran: {dialog.message}"))
        page.on("request", lambda asked: asked.url == report.as_uri()
                or faults.append(f"outside: {asked.url}"))  # fmt: skip
        page.goto(report.as_uri())
        return page

    yield opened
    assert faults == []


def chart(page, name):
    return page.locator("figure", has=page.locator(f'[data-name="{name}"]'))


def test_the_charts_are_there_without_a_script(visit, seen):
    page = visit(java_script_enabled=False, color_scheme="dark")
    assert page.locator("figure").count() == 5
    line = page.locator('[data-name="val_loss"] path.line').bounding_box()
    assert line["width"] > 1000
    assert line["height"] > 100
    assert page.locator("#step-tools").is_hidden()  # what would do nothing is not offered
    seen(page, "report-without-a-script")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_in_its_colours(visit, seen, scheme):
    page = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    back, text = (
        page.evaluate(f"getComputedStyle(document.body).{name}")
        for name in ("backgroundColor", "color")
    )
    brightness = [sum(map(int, one[4:-1].split(","))) for one in (back, text)]
    assert (brightness[0] < brightness[1]) == (scheme == "dark")
    sizes = page.evaluate(
        "[...document.querySelectorAll('.chart text')].map((t) => t.getBoundingClientRect().height)"
    )
    assert min(size for size in sizes if size) >= 10  # texts do not shrink with the page
    seen(page, f"report-phone-{scheme}")


def test_pointing_reads_the_values_of_every_chart(visit):
    page = visit()
    curves = chart(page, "val_loss").locator(".curves")
    box = curves.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 60)
    assert "val_loss 9 (200)" in chart(page, "val_loss").locator(".readout").inner_text()
    assert chart(page, "val_accuracy").locator(".readout").inner_text().startswith("step 200:")


def test_dragging_zooms_every_chart_and_a_double_click_shows_all_steps(visit, seen):
    page = visit()
    box = chart(page, "val_loss").locator(".curves").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 60)
    page.mouse.up()
    shown = "[...document.querySelectorAll('.view')].map((v) => v.getAttribute('viewBox'))"
    left, _, width, _ = map(float, page.evaluate(shown)[1].split())
    assert (left, width) == (pytest.approx(400, abs=5), pytest.approx(400, abs=5))
    assert len(set(page.evaluate(shown))) == 1
    seen(page, "report-zoomed")
    page.mouse.dblclick(box["x"] + 50, box["y"] + 60)
    assert set(page.evaluate(shown)) == {"0 0 1000 100000"}


def test_scales_change_on_a_click(visit):
    page = visit()
    page.get_by_role("button", name="steps: log").click()
    assert page.locator(".view").first.get_attribute("viewBox") == "0 0 3 100000"
    llc = chart(page, "llc")
    before = llc.locator(".heights").inner_html()
    llc.get_by_role("button", name="linear").click()
    assert llc.locator(".heights").inner_html() != before
    assert llc.get_by_role("button", name="log", exact=True).is_visible()
    page.get_by_role("button", name="steps: linear").click()
    assert page.locator(".view").first.get_attribute("viewBox") == "0 0 1000 100000"


def test_names_show_and_hide_their_curves(visit):
    page = visit()
    button = page.get_by_role("button", name="weight_norm/net.0")
    shown = "getComputedStyle(document.querySelector('[data-name=\"weight_norm/net.0\"]')).display"
    assert page.evaluate(shown) == "none"
    button.click()
    assert page.evaluate(shown) == "inline"
    assert button.get_attribute("aria-pressed") == "true"


def test_an_estimate_leads_to_its_chains(visit, seen):
    page = visit()
    page.locator('[data-name="llc"] path.doubt').click(force=True)
    title = page.locator("#chain-title")
    assert title.inner_text().startswith("llc at step 251 (")
    assert page.locator("#chain-plot .view path").count() == 5
    assert "unconverged (drift 0.31 is above 0.2)" in page.locator("#chain-facts").inner_text()
    seen(page, "report-chains")


def test_the_keyboard_reads_values_and_leaves(visit):
    page = visit()
    curves = chart(page, "val_loss").locator(".curves")
    curves.focus()
    page.keyboard.press("ArrowRight")
    readout = chart(page, "val_loss").locator(".readout")
    assert readout.inner_text().startswith("step 510:")
    page.keyboard.press("Escape")
    assert readout.inner_text() == ""
