"""The dashboards, drawn with Grafana's own components, of a live and of an ended run.

The page is built by `make browser` where npm is; see `tests/browser/grafana`.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from support.dashboards import BUILT_IN, boards, variables
from support.live_prometheus import Prometheus, make_watch, wait_for_ready
from support.records import wait_until

pytestmark = pytest.mark.browser

BUILT = Path(__file__).parents[2] / "build" / "grafana"
ICONS = BUILT / "node_modules" / "@grafana" / "ui" / "dist"
ADDRESS = "http://dashboards.test"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>dashboards</title>
<link rel="stylesheet" href="/page.css"><div id="root"></div><script src="/page.js"></script>"""
WIDTH = 1440
ENDED, LIVE = 'ended "p=53"', "live.seed=1"
STEPS = 900
CASES = [("overview", None), ("run", ENDED), ("run", LIVE), ("compare", None)]

CUT = """() => [...document.querySelectorAll('.panel[data-kind=table]')].flatMap((panel) => {
  const edge = panel.getBoundingClientRect().right + 1;
  return [...panel.querySelectorAll('[role=columnheader], [role=cell]')]
    .filter((cell) => cell.getBoundingClientRect().right > edge)
    .map((cell) => `${panel.dataset.title}: ${cell.textContent}`);
})"""
"""Cells that stand out of their table."""

FAINT = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = parse(getComputedStyle(element).backgroundColor);
      if (color.length === 3 || color[3] > 0.99) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll('#page *')) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || element.closest('svg')) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parse(style.color)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), least = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    if (ratio < least) found.push(`${element.textContent.trim()}: ${ratio.toFixed(1)}`);
  }
  return found;
}"""
"""Text with less contrast than WCAG 2.1 asks for: 4.5, or 3 where it is large."""


def train(watch, model, batch):
    """A loss that falls abruptly in the middle, slowly enough for Prometheus to see it."""
    generator = np.random.default_rng(0)
    for step in range(1, STEPS + 1):
        fall = 1.0 / (1.0 + np.exp(-(step - STEPS / 2) / 10))
        value = 2.0 * np.exp(-step / 3000) * (1 - fall) + 0.02 * fall
        noise = np.exp(0.03 * generator.standard_normal(2))
        watch.before_step(step, model.named_parameters())
        named = dict(zip(("train_loss", "val_loss"), value * noise, strict=True))
        watch.observe(step, named | {"accuracy": float(fall)}, epoch=step // 100)
        if watch.due(step):
            watch.probe(step, model)
        time.sleep(0.01)
    watch.drain()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    """A Prometheus that has seen one run end and sees another go on; and since when."""
    folder = tmp_path_factory.mktemp("prometheus")
    server = Prometheus(folder)
    begin = int(time.time())
    watches = [
        make_watch(run, seed, folder, draws=1024, every=300)
        for seed, run in enumerate((ENDED, LIVE))
    ]
    try:
        wait_for_ready(server)
        for watch, _, _ in watches:
            watch.start()
            watch.observe(0, {"train_loss": 2.0, "val_loss": 2.0})
            watch.drain()
        there = "count(count by (run) (phasewatch_transitions_total)) == 2"
        wait_until(lambda: server.query(there), seconds=60, what="the first scrape of both runs")
        for watch, model, batch in watches:
            train(watch, model, batch)
            assert watch.transitions
        watches[0][0].finish()
        gone = f'absent(phasewatch_run_state{{run="{ENDED.replace(chr(34), chr(92) + chr(34))}"}})'
        wait_until(lambda: server.query(gone), seconds=60, what="the end of the first run")
        seen = "count(phasewatch_last_transition_step) == 1"
        wait_until(lambda: server.query(seen), seconds=60, what="the scrape of the transition")
        yield server, begin
    finally:
        for watch, _, _ in watches:
            watch.finish()
        server.process.terminate()
        server.process.wait(timeout=30)


def quoted(value):
    return value.replace("\\", "\\\\").replace('"', '\\"')


def any_of(found):
    return quoted(f"({'|'.join(re.escape(value) for value in found)})")


def filled(text, values):
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], match[0]), text)


class Drawn:
    """What the page is given of a dashboard: its panels, with the answers to their queries."""

    def __init__(self, server, board, run, begin):
        self.server, self.begin, self.end = server, begin, int(time.time())
        built_in = BUILT_IN | {"__range": f"{self.end - begin}s"}
        self.values, self.chosen = dict(built_in), {}
        for variable in variables(board):
            name, multi = variable["name"], variable["multi"]
            found = server.values_of(variable["query"], self.values)
            if variable.get("regex"):
                pattern = re.compile(variable["regex"].strip("/"))
                found = sorted({pattern.search(value)[1] for value in found})
            found = [run] if name == "run" and not multi else found
            self.chosen[name] = found
            repeats = any(panel.get("repeat") == name for panel in board["panels"])
            self.values[name] = any_of(found) if multi and not repeats else quoted(found[0])
        self.panels = [*self._laid_out(board)]

    def _laid_out(self, board):
        """Each panel once, one that is repeated once for each value."""
        lower = 0
        for panel in board["panels"]:
            place = panel["gridPos"] | {"y": panel["gridPos"]["y"] + lower}
            options = self.chosen[panel["repeat"]] if "repeat" in panel else [None]
            across = min(panel.get("maxPerRow", 4), len(options))
            for index, option in enumerate(options):
                own = {} if option is None else {panel["repeat"]: quoted(option)}
                values = self.values | own
                width = place["w"] if option is None else 24 // across
                moved = {
                    "w": width,
                    "x": place["x"] if option is None else index % across * width,
                    "y": place["y"] + index // across * place["h"],
                }
                plain = {k: panel.get(k) for k in ("type", "options", "fieldConfig") if k in panel}
                named = {
                    "title": filled(panel.get("title", ""), values),
                    "transformations": json.loads(
                        filled(json.dumps(panel.get("transformations", [])), values)
                    ),
                    "gridPos": place | moved,
                }
                targets = [self._answered(target, values) for target in panel.get("targets", [])]
                yield {"panel": plain | named, "targets": targets}
            lower += (len(options) - 1) // max(across, 1) * place["h"]

    def _answered(self, target, values):
        expr = filled(target["expr"], values)
        if target.get("instant"):
            found = self.server.get("query", query=expr, time=self.end)
        else:
            times = {"start": self.begin, "end": self.end, "step": "1s"}
            found = self.server.get("query_range", query=expr, **times)
        kept = {k: target.get(k) for k in ("refId", "format", "legendFormat")}
        return kept | {"step": 1, "result": found["result"]}


@pytest.fixture
def page(browser):
    if not (BUILT / "page.js").is_file():
        pytest.skip("the page is not built: `make browser` does it where npm is")
    made = browser.new_page(viewport={"width": WIDTH, "height": 900})
    made.complaints = []
    made.on("console", lambda m: m.type == "error" and made.complaints.append(m.text))
    made.on("pageerror", lambda error: made.complaints.append(str(error)))

    def answer(route):
        url = route.request.url
        path = url.removeprefix(ADDRESS).partition("?")[0]
        if path == "/":
            return route.fulfill(body=PAGE, content_type="text/html")
        if path.startswith("/public/fonts/"):  # no part of the libraries; another stands for it
            return route.fulfill(body=b"")
        places = [BUILT / path[1:], ICONS / path[1:].replace("public/build/", "public/")]
        found = next((p for p in places if url.startswith(ADDRESS) and p.is_file()), None)
        if found is None:
            made.complaints.append(f"asked for {url}")
            return route.abort()
        return route.fulfill(path=found)

    made.route("**/*", answer)
    yield made
    made.close()


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize(("name", "run"), CASES)
def test_a_dashboard_shows_its_runs(scraped, page, seen, name, run, mode):
    server, begin = scraped
    board = boards()[name]
    drawn = Drawn(server, board, run, begin)
    page.goto(ADDRESS)
    page.evaluate(
        "given => window.show(given)",
        {
            "title": board["title"],
            "said": "; ".join(f"{k}: {', '.join(v)}" for k, v in drawn.chosen.items()),
            "panels": drawn.panels,
            "start": begin,
            "end": drawn.end,
            "mode": mode,
            "width": WIDTH,
        },
    )
    page.wait_for_selector(".panel")
    page.wait_for_timeout(500)  # charts draw themselves a moment later
    which = "" if run is None else f"-{run[:4].rstrip()}"
    seen(page, f"grafana-{name}{which}-{mode}")

    assert {
        "complaints": page.complaints,
        "broken": [broken.inner_text() for broken in page.query_selector_all(".broken")],
        "cut": page.evaluate(CUT),
        "faint": page.evaluate(FAINT),
    } == {"complaints": [], "broken": [], "cut": [], "faint": []}
    shown = {p.get_attribute("data-title"): p for p in page.query_selector_all(".panel")}
    assert len(shown) == len({p["panel"]["title"] for p in drawn.panels}) - rows_in(board)
    empty = [t for t, p in shown.items() if p.get_attribute("data-empty") == "true"]
    # Nobody waits for the next step of a run that has ended.
    assert empty == (["Since the last step"] if run == ENDED else [])
    if name != "compare":
        told = shown["Transitions told"].inner_text()
        assert "acquisition" in told
        assert re.search(r"\b4[0-9]{2}\b", told), "the step at which it began"
    if name == "run":
        assert ("finished" if run == ENDED else "running") in shown["State"].inner_text()
        assert f"{STEPS}" in shown["Step"].inner_text()


def rows_in(board):
    return sum(panel["type"] == "row" for panel in board["panels"])
