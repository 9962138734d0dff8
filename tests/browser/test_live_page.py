"""The live page in a real browser: what comes while one looks, by mouse, keyboard and phone."""

from __future__ import annotations

import dataclasses

import pytest

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.store.store import Store
from support.history import RUN_ID, fill, transition
from support.pages import served
from support.records import wait_until

pytestmark = pytest.mark.browser
api = pytest.importorskip("playwright.sync_api")

HOSTILE = "</script><img src=x onerror=alert(1)>"
OTHER = "f" * 32


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "runs.db") as opened:
        fill(opened, name=HOSTILE, extra="<b>reward")
        opened.flush()
        yield opened


@pytest.fixture
def visit(browser, store):
    """Opens pages, and holds them to have no error and no outside request."""
    faults = []
    with served(store) as url:

        def opened(path, **settings):
            context = browser.new_context(**{"viewport": {"width": 1360, "height": 900}} | settings)
            page = context.new_page()
            page.on("console", lambda said: faults.append(said.text) if said.type == "error" else 0)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("dialog", lambda dialog: faults.append(f"a script ran: {dialog.message}"))
            page.on("request", lambda asked: asked.url.startswith((url, "data:", "blob:"))
                    or faults.append(f"outside: {asked.url}"))  # fmt: skip
            page.goto(url + path)
            return page

        yield opened
        assert faults == []


def until(page, condition):
    """Wait until a condition holds; the page's own policy forbids playwright to wait in it."""
    wait_until(lambda: page.evaluate(f"() => {condition}"), what=condition)


def drawn(page):
    """Wait until there are curves."""
    page.wait_for_selector(".plot .main-svg")
    until(page, "document.querySelectorAll('.plot .main-svg').length >= 3")


def add(store, *steps):
    for step in steps:
        value = Observation(name="val_loss", step=step, value=1.0, unit="nats")
        store.add_observation(OTHER, 1, value)
    store.flush()


def test_a_run_appears_while_it_trains_and_its_transition_as_a_card(visit, store, seen):
    page = visit("/")
    page.wait_for_selector("tbody tr")
    assert page.locator("tbody tr").count() == 1
    store.begin_run(name="a live run", run_id=OTHER)
    add(store, *range(1, 50))
    page.get_by_role("link", name="a live run").click()
    page.wait_for_selector(".plot .main-svg")
    until(page, "document.querySelector('.plot').data[0].x.at(-1) === 49")
    assert page.locator(".card").count() == 0
    add(store, *range(50, 101))
    until(page, "document.querySelector('.plot').data[0].x.at(-1) === 100")
    found = dataclasses.replace(transition(onset=40, detected=60, end=80), run=OTHER, id="new")
    store.add_transition(found)
    store.flush()
    card = page.locator(".card.new")
    card.wait_for()
    assert "generalisation has ended, from step 40" in card.inner_text()
    assert page.locator("#news").inner_text().startswith("New: generalisation")
    seen(page, "live")
    card.get_by_text("Evidence").click()
    assert "val_loss falls; the rule: validation improves" in card.inner_text()
    store.end_run(OTHER, 1, RunState.FINISHED)
    page.wait_for_selector(".state.finished")


def test_zooming_to_a_transition_moves_every_panel(visit, seen):
    page = visit(f"/run/0.{RUN_ID}")
    drawn(page)
    page.get_by_role("button", name="Show in the curves").click()
    ranges = "[...document.querySelectorAll('.plot')].map((p) => p.layout.xaxis.range.join())"
    until(page, f"new Set({ranges}).size === 1 && {ranges}[0] === '100,1300'")
    page.get_by_role("button", name="Show all steps").click()
    until(page, f"{ranges}[0] === '0,1000'")
    page.get_by_role("button", name="log step").click()
    until(page, "document.querySelector('.plot').layout.xaxis.type === 'log'")
    assert "x=log" in page.url
    seen(page, "run")


def test_families_are_chosen_and_kept_in_the_address(visit):
    page = visit(f"/run/0.{RUN_ID}")
    drawn(page)
    page.get_by_role("checkbox", name="Norms").uncheck()
    page.wait_for_selector("[data-family='Norms']", state="detached")
    page.reload()
    drawn(page)
    assert page.locator("[data-family='Norms']").count() == 0
    assert page.locator("[data-family='λ̂']").count() == 1


def test_a_line_has_gaps_and_what_is_not_ok_is_marked(visit):
    page = visit(f"/run/0.{RUN_ID}")
    drawn(page)
    traces = page.evaluate(
        "document.querySelector('[data-family=\"λ̂\"] .plot').data.map((t) => [t.name, t.mode, t.x])"
    )
    line = next(x for name, mode, x in traces if name == "llc" and "lines" in mode)
    assert line.count(None) == 2
    assert next(x for name, _, x in traces if name == "llc, not OK") == [251]


def test_runs_are_compared_at_a_transition(visit, store, seen):
    store.begin_run(name="a second seed", run_id=OTHER)
    add(store, *range(10, 1001, 10))
    later = dataclasses.replace(transition(onset=600), run=OTHER, id="later")
    store.add_transition(later)
    store.end_run(OTHER, 1, RunState.FINISHED)
    page = visit("/")
    page.wait_for_selector("tbody tr:nth-child(2)")
    for box in page.locator("tbody input").all():
        box.check()
    page.get_by_role("link", name="Compare 2 runs").click()
    page.wait_for_selector(".plot .main-svg")
    page.select_option("#align", "generalisation")
    until(page, "document.querySelector('.plot').data[0].x[0] < 0")
    names = page.evaluate("document.querySelector('.plot').data.map((t) => t.name)")
    assert "mean" in names
    assert "600 (1.25)" in page.locator("table").inner_text()
    seen(page, "compare")


def test_the_keyboard_is_enough(visit):
    page = visit("/")
    page.wait_for_selector("tbody tr")
    page.keyboard.press("/")
    page.keyboard.type("nothing like it")
    page.wait_for_selector("tbody tr", state="detached")
    page.keyboard.press("Control+A")
    page.keyboard.type("generalisation")
    page.wait_for_selector("tbody tr")
    page.locator("tbody a").focus()
    page.keyboard.press("Enter")
    drawn(page)
    page.locator(".card summary").focus()
    page.keyboard.press("Enter")
    assert page.locator(".card dl").is_visible()


@pytest.mark.parametrize("path", ["/", f"/run/0.{RUN_ID}", f"/compare?run=0.{RUN_ID}"])
def test_a_phone_shows_it_all_in_its_width(visit, path, seen):
    page = visit(path, viewport={"width": 390, "height": 844}, has_touch=True)
    page.wait_for_selector("tbody tr" if path == "/" else ".plot .main-svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    seen(page, f"phone{path.split('/')[1][:7]}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_either_scheme(visit, scheme, seen):
    page = visit(f"/run/0.{RUN_ID}", color_scheme=scheme)
    drawn(page)
    seen(page, scheme)
    texts = page.evaluate(CONTRASTS)
    assert len(texts) > 30
    assert [one for one in texts if one[1] < 4.5] == []


CONTRASTS = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
      if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("main *, header *")) {
    if (node.closest("svg") || !node.checkVisibility()) continue;
    if (![...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([node.textContent.slice(0, 30), ratio]);
  }
  return found;
}
"""
