"""The page of a run: complete, self-contained, and safe to open."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.explanation import explain
from phasewatch.monitor.core.meaning import LLC
from phasewatch.monitor.core.transitions import (
    Hindsight,
    HindsightVerdict,
    TransitionKind,
    TransitionStatus,
)
from phasewatch.monitor.reports.chains import MAX_NUMBERS, MAX_TRACE_POINTS, MAX_TRACED
from phasewatch.monitor.reports.data import (
    KIND_COLOURS,
    MAX_BINS,
    Panel,
    lines,
    panels,
    read_run,
    span,
    thin,
)
from phasewatch.monitor.reports.figures import HEIGHT, MAX_POINTS, scale_of, ticks
from phasewatch.monitor.reports.run_page import write_report
from phasewatch.monitor.store.store import Store
from support.history import RUN_ID, estimate, fill, transition

HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(2)> "q" 'r' & <b>x</b>"""

Write = Callable[..., "Page"]


@dataclasses.dataclass
class Drawn:
    """A path of a chart."""

    kind: str
    points: list[tuple[int, int]]
    style: str
    title: str = ""

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.points]


@dataclasses.dataclass
class Chart:
    """What a browser would find in a chart."""

    scale: dict[str, str | None] = dataclasses.field(default_factory=dict)
    series: list[tuple[str, list[Drawn]]] = dataclasses.field(default_factory=list)
    bands: list[Drawn] = dataclasses.field(default_factory=list)

    def value(self, height: int) -> float:
        low, high = float(self.scale["data-low"] or 0), float(self.scale["data-high"] or 0)
        part = 1 - height / HEIGHT
        if self.scale["data-scale"] == "log":
            return low * (high / low) ** part
        return low + part * (high - low)


def points(path: str) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in re.findall(r"(-?\d+),(-?\d+)", path)]


class Page(HTMLParser):
    """What a browser would find in a report."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.charts: list[Chart] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._inside: list[str] = []
        self.feed(self.html)
        self.data: dict[str, Any] = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("meta", "input"):  # they hold nothing and are never closed
            return
        self._inside.append(tag)
        if tag == "figure":
            self.charts.append(Chart())
        elif tag == "div" and "data-scale" in dict(attrs):
            self.charts[-1].scale = dict(attrs)
        elif tag == "g":
            self.charts[-1].series.append((dict(attrs).get("data-name") or "", []))
        elif tag == "path":
            known = dict(attrs)
            drawn = Drawn(known["class"] or "", points(known["d"] or ""), known.get("style") or "")
            inside = self.charts[-1].series if "g" in self._inside else []
            (inside[-1][1] if inside else self.charts[-1].bands).append(drawn)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._inside and self._inside[-1] == "script":
            self.scripts[-1] += data
        elif self._inside and self._inside[-1] != "style":
            self.text.append(data)

        if self._inside[-2:] == ["path", "title"]:
            chart = self.charts[-1]
            paths = chart.series[-1][1] if "g" in self._inside else chart.bands
            paths[-1].title = data

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def drawn(self, name: str, kind: str) -> list[Drawn]:
        """What is drawn of a stream with one look."""
        found = [one for chart in self.charts for known, one in chart.series if known == name]
        return [path for paths in found for path in paths if path.kind == kind]

    def chart(self, name: str) -> Chart:
        """The chart of a stream."""
        return next(one for one in self.charts if name in [known for known, _ in one.series])


@pytest.fixture
def store() -> Iterator[Store]:
    with Store("sqlite://") as opened:
        yield opened


@pytest.fixture
def write(store: Store, tmp_path: Path) -> Write:
    def fill_and_write(**settings: Any) -> Page:
        fill(store, **settings)
        return Page(write_report(store, RUN_ID, tmp_path / "report.html"))

    return fill_and_write


def test_a_transition_is_named_with_its_steps_and_its_evidence(write: Write) -> None:
    page = write()
    assert "1 transition: generalisation at step 500" in page.words
    for heading, text in explain(transition()).facts:
        if heading != "When":  # its time is that of the test
            assert f"{heading} {text}" in page.words
    for piece in ("has ended", "from step 500", "at step 600", "at step 900", "severity 1.25"):
        assert piece in page.words


def test_a_transition_is_a_band_from_onset_to_end_over_all_charts(write: Write) -> None:
    page = write()
    assert len(page.charts) == 4
    for chart in page.charts:
        band, seen = chart.bands
        assert band.kind == "span"
        assert band.points == [(500, 0), (900, 0), (900, HEIGHT), (500, HEIGHT)]
        assert band.title == "generalisation (ended), steps 500 to 900"
        assert KIND_COLOURS["generalisation"] in band.style
        assert seen.points == [(600, 0), (600, HEIGHT)]
    marks = [attrs for tag, attrs in page.tags if attrs.get("class") == "mark"]
    assert [attrs["data-step"] for attrs in marks] == ["600"]  # named once, in the first chart


def test_a_transition_that_goes_on_reaches_to_the_last_step(write: Write) -> None:
    page = write(transitions=(transition(status=TransitionStatus.CONFIRMED, end=None),))
    band, _ = page.charts[0].bands
    assert (min(band.steps), max(band.steps)) == (500, 1000)


def test_a_withdrawn_transition_is_shown_but_not_counted(write: Write) -> None:
    page = write(transitions=(transition(status=TransitionStatus.WITHDRAWN),))
    assert "No transition stands" in page.words
    assert "withdrawn" in page.words


def test_both_verdicts_are_shown(write: Write) -> None:
    seen = Hindsight(
        verdict=HindsightVerdict.CORRECTED,
        streamed=TransitionStatus.ENDED,
        onset_step=450,
        end_step=800,
    )
    page = write(transitions=(dataclasses.replace(transition(), hindsight=seen),))
    assert "In hindsight" in page.words
    assert "corrected: 450 to 800" in page.words
    assert "ended" in page.words


def test_what_only_hindsight_saw_is_drawn_where_it_saw_it() -> None:
    seen = Hindsight(verdict=HindsightVerdict.FOUND, streamed=None, onset_step=450, end_step=800)
    found = dataclasses.replace(transition(detected=1000), hindsight=seen)
    assert span(found, 1000) == (450, 800)


def test_a_constant_stream_is_drawn_on_an_axis_from_zero(store: Store, write: Write) -> None:
    for step in (1, 2):
        store.add_observation(RUN_ID, 1, Observation(name="dropout", step=step, value=0.001))
    chart = write().chart("dropout")
    low, high = (float(chart.scale[f"data-{end}"] or 0) for end in ("low", "high"))
    assert low <= 0 < 0.001 < high < 0.002


def test_holes_and_curves_that_are_thinned_are_told(store: Store, write: Write) -> None:
    page = write()
    assert "Holes:" not in page.words
    assert "Drawn with fewer points" not in page.words
    steps = range(5000)
    column = Column([*steps], [step / 7 for step in steps], [0] * 5000, [1e9] * 5000)
    store.add_scalars(RUN_ID, 1, HOSTILE, column)
    store.flush()
    kept = len(store.history(RUN_ID, "val_loss")[0])
    lost = {"rows": [], "entered": {"val_loss": [kept + 12, 10**9], HOSTILE: [5003, 5002]}}
    store.take_over(RUN_ID, 1, 10**9, lost, RUN_ID)
    page = Page(write_report(store, RUN_ID, page.path))
    assert "Holes: 15 values were observed and are not in the store" in page.words
    assert re.search(r"val_loss 12 [\d,]+–1,000,000,000 killed before they were", page.words)
    assert f"{HOSTILE} 3 5,000–5,002 killed" in page.words
    assert f"Drawn with fewer points than there are: {HOSTILE} (5,000)" in page.words


def test_no_transition_is_said(write: Write) -> None:
    assert "No transition was found." in write(transitions=()).words


def test_every_kind_has_a_colour() -> None:
    assert set(KIND_COLOURS) == {kind.value for kind in TransitionKind}


def test_hostile_names_stay_text(write: Write) -> None:
    page = write(name=HOSTILE, extra=HOSTILE, transitions=(transition(stream=HOSTILE),))
    assert [tag for tag, _ in page.tags].count("script") == 4
    assert "img" not in [tag for tag, _ in page.tags]
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert HOSTILE in page.words
    assert page.chart(HOSTILE).series[0][0] == HOSTILE


def test_nothing_is_loaded_from_anywhere(write: Write) -> None:
    page = write()
    loading = {"src", "href", "data", "action", "poster", "srcset"}
    found = [(attrs[a] or "") for _, attrs in page.tags for a in attrs if a in loading]
    assert {link[0] for link in found} == {"#"}  # words lead to what they mean, on the same page
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {link[1:] for link in found} <= ids
    assert "@import" not in page.html
    assert "url(" not in page.html
    assert "http" not in page.html.replace("http-equiv", "").replace("http://www.w3.org/2000", "")


def test_only_the_scripts_written_here_may_run(write: Write) -> None:
    page = write()
    policy = next(
        attrs["content"] or ""
        for tag, attrs in page.tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    allowed = re.findall(r"'(sha256-[^']+)'", policy)
    running = page.scripts[1:]
    assert allowed == [
        "sha256-" + base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in running
    ]
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy


def test_doubtful_estimates_stand_apart_with_their_reason(write: Write) -> None:
    page = write()
    (marked,) = page.drawn("llc", "doubt")
    assert marked.steps == [251]
    assert page.chart("llc").value(marked.points[0][1]) == pytest.approx(150.0, rel=0.01)
    assert marked.title == "step 251: 150 ± 7.5, unconverged: drift 0.31 is above 0.2"
    assert 251 not in [step for line in page.drawn("llc", "line") for step in line.steps]
    assert "25 ok, 1 unconverged, 1 diverged" in page.words


def test_estimates_say_their_value_and_error_without_a_script(write: Write) -> None:
    told = {one.steps[0]: one.title for one in write().drawn("llc", "point")}
    assert len(told) == 25
    assert told[1000] == "step 1,000: 1.067 ± 0.053, ok"


def test_a_value_that_is_not_finite_gets_a_tick(write: Write) -> None:
    (tick,) = write().drawn("llc", "lost")
    assert tick.steps == [333, 333]


def test_the_error_band_is_two_standard_errors_wide(write: Write) -> None:
    page = write()
    chart = page.chart("llc")
    found, around = page.drawn("llc", "line"), page.drawn("llc", "error")
    assert [len(line.points) for line in found] == [6, 2, 17]  # broken at 251 and at 333
    for line, band in zip(found, around, strict=True):
        count = len(line.points)
        assert band.steps == line.steps + line.steps[::-1]
        (_, at), (_, upper), (_, lower) = line.points[0], band.points[0], band.points[-1]
        value = chart.value(at)
        assert chart.value(upper) == pytest.approx(1.1 * value, rel=0.01)
        assert chart.value(lower) == pytest.approx(0.9 * value, rel=0.01)
        assert len(band.points) == 2 * count


def test_streams_are_sorted_into_panels(store: Store) -> None:
    fill(store, extra="reward")
    found = panels(read_run(store, RUN_ID).series.values())
    assert [[s.name for s in panel.series] for panel in found] == [
        ["train_loss", "val_loss"],
        ["llc"],
        ["gradient_norm", "weight_norm", "weight_norm/net.0"],
        ["val_accuracy"],
        ["reward"],
    ]
    assert [panel.scale for panel in found] == ["log", "log", "log", "linear", "linear"]


def test_norms_of_different_units_do_not_share_an_axis(store: Store) -> None:
    store.begin_run(name="norms", run_id=RUN_ID, attempt=1)
    for name, unit in (("gradient_norm", "nats/weight"), ("weight_norm", "weight")):
        store.add_observation(RUN_ID, 1, Observation(name=name, step=1, value=1.0, unit=unit))
    found = panels(read_run(store, RUN_ID).series.values())
    assert [panel.title for panel in found] == ["Norms (nats/weight)", "Norms (weight)"]


def test_what_is_in_nats_does_not_flatten_the_coefficient(store: Store) -> None:
    fill(store)
    wbic = Observation(name="llc/wbic", step=10, value=737.5, unit="nats")
    store.add_observation(RUN_ID, 1, wbic)
    found = panels(read_run(store, RUN_ID).series.values())
    assert [[s.name for s in panel.series] for panel in found if "λ̂" in panel.title] == [["llc"]]
    assert "llc/wbic" in [panel.title for panel in found]


def test_a_loss_that_is_not_positive_gets_a_linear_axis(store: Store) -> None:
    fill(store)
    store.add_observation(RUN_ID, 1, Observation(name="elbo_loss", step=10, value=-3.0))
    assert panels(read_run(store, RUN_ID).series.values())[0].scale == "linear"


def test_parts_of_a_norm_wait_behind_a_click(write: Write) -> None:
    page = write(extra="reward/mean")
    items = [attrs for tag, attrs in page.tags if tag == "li" and "data-at" in attrs]
    assert sum("data-part" in attrs for attrs in items) == 1
    assert page.drawn("weight_norm/net.0", "line")  # a script hides it, and shows it on a click


def test_every_measurement_brings_its_chains(write: Write) -> None:
    page = write()
    chains = page.data["chains"]
    assert len(chains) == 27
    first = chains[0]
    assert first["step"] == 40
    assert [len(chain) for chain in first["loss"]] == [32] * 4
    assert np.allclose(first["loss"], estimate(40, 1.0).chain_loss, rtol=1e-4)
    assert first["facts"]["status"] == "ok"
    assert "details" in [tag for tag, _ in page.tags]
    diverged = next(one for one in chains if one["step"] == 333)
    assert diverged["facts"]["status"] == "diverged (drift 0.31 is above 0.2)"


def test_a_long_run_stays_small(store: Store, tmp_path: Path) -> None:
    store.begin_run(name="long", run_id=RUN_ID, attempt=1)
    for step in range(1, 20_001):
        value = 100.0 if step == 12_345 else 1.0 + 0.1 * math.sin(step)
        store.add_observation(RUN_ID, 1, Observation(name="train_loss", step=step, value=value))
    page = Page(write_report(store, RUN_ID, tmp_path / "report.html"))
    (line,) = page.drawn("train_loss", "line")
    assert len(line.points) <= 2 * MAX_BINS + 2
    height = dict(line.points)[12_345]
    assert page.chart("train_loss").value(height) == pytest.approx(100.0, rel=0.001)
    assert (line.steps[0], line.steps[-1]) == (1, 20_000)
    assert len(page.html) < 100_000


def test_a_run_of_many_streams_stays_under_two_megabytes(store: Store, tmp_path: Path) -> None:
    store.begin_run(name="wide", run_id=RUN_ID, attempt=1)
    steps = range(1_000_000, 1_004_000)
    for number in range(100):
        values = np.random.default_rng(number).standard_normal(len(steps)).tolist()
        column = Column([*steps], values, [0] * len(steps), [1e9] * len(steps))
        store.add_scalars(RUN_ID, 1, f"metric {number}", column)
    for step in range(400):
        found = estimate(step, 10.0)
        found = dataclasses.replace(found, chain_loss=np.tile(found.chain_loss, (1, 10)))
        seen = Observation(name="llc", step=step, value=10.0, stderr=0.5, detail=found)
        store.add_observation(RUN_ID, 1, seen)
    store.flush()
    page = Page(write_report(store, RUN_ID, tmp_path / "report.html"))
    assert len(page.charts) == 11
    num_points = sum(len(one.points) for c in page.charts for _, paths in c.series for one in paths)
    assert num_points < 1.5 * MAX_POINTS
    assert page.path.stat().st_size < 2_000_000
    assert "Drawn with fewer points than there are: metric 0 (4,000)" in page.words


def test_many_measurements_keep_a_bounded_number_of_short_traces() -> None:
    from phasewatch.monitor.reports.chains import chain_traces
    from phasewatch.monitor.reports.data import Series

    details = [estimate(step, 1.0) for step in range(1000)]
    long = [Observation(name="llc", step=e.step, value=1.0, stderr=0.1, detail=e) for e in details]
    numbers = np.arange(1000)
    ones = np.ones(1000)
    series = Series("llc", "1", numbers, ones, ones, LLC, tuple(long), ones.astype(bool))
    traces = chain_traces([series])
    assert len(traces) == MAX_TRACED
    assert (traces[0]["step"], traces[-1]["step"]) == (0, 999)
    assert all(len(one["draw"]) <= MAX_TRACE_POINTS for one in traces)
    assert sum(len(chain) for one in traces for chain in one["loss"]) <= MAX_NUMBERS


def test_a_line_never_joins_two_points_across_one_that_is_not_ok(store: Store) -> None:
    store.begin_run(name="gaps", run_id=RUN_ID, attempt=1)
    doubtful = {3: EstimateStatus.UNCONVERGED, 6: EstimateStatus.NEGATIVE}
    for step in range(1, 9):
        status = doubtful.get(step, EstimateStatus.OK)
        reading = Observation(name="hessian_top", step=step, value=1.0 * step, status=status)
        store.add_observation(RUN_ID, 1, reading)
        value = math.inf if step == 5 else 1.0
        store.add_observation(RUN_ID, 1, Observation(name="reward", step=step, value=value))
    series = read_run(store, RUN_ID).series
    joined = {
        name: [s.steps[line].tolist() for line in lines(s.steps, s.values, s.ok)]
        for name, s in series.items()
    }
    assert joined == {
        "hessian_top": [[1, 2], [4, 5], [7, 8]],
        "reward": [[1, 2, 3, 4], [6, 7, 8]],
    }
    assert series["hessian_top"].is_measured  # its doubtful values are drawn as such


def test_estimates_of_different_settings_are_never_joined_by_a_line() -> None:
    from phasewatch.monitor.reports.data import Series
    from phasewatch.monitor.reports.figures import stretches

    details = [estimate(step, 1.0) for step in range(6)]
    details[3:] = [dataclasses.replace(e, localization=3.0) for e in details[3:]]
    seen = [Observation(name="llc", step=e.step, value=1.0, stderr=0.1, detail=e) for e in details]
    series = Series("llc", "1", np.arange(6), np.ones(6), np.ones(6), LLC, tuple(seen))
    assert [line.tolist() for line in stretches(series)] == [[0, 1, 2], [3, 4, 5]]


def llc_panel(store: Store, *values: float, status: EstimateStatus) -> Panel:
    fill(store)
    for step, value in enumerate(values, start=1):
        store.add_observation(
            RUN_ID,
            1,
            Observation(name="llc", step=step, value=value, stderr=1.0, status=status),
        )
    return next(p for p in panels(read_run(store, RUN_ID).series.values()) if "λ̂" in p.title)


def test_the_axis_of_the_coefficient_is_logarithmic_and_shows_what_is_trusted(store: Store) -> None:
    panel = llc_panel(store, 1e9, -5648.0, 903.0, status=EstimateStatus.UNCONVERGED)
    scale = scale_of(panel)
    assert scale.log
    assert 0.5 < scale.low < 1.0
    assert (
        903 < scale.high < 1500
    )  # what is doubtful and near widens the axis, what is far does not


def test_a_trusted_negative_coefficient_gets_a_linear_axis(store: Store) -> None:
    scale = scale_of(llc_panel(store, -3.0, status=EstimateStatus.OK))
    assert not scale.log
    assert scale.low < -5.0


def test_what_lies_beyond_the_axis_is_drawn_at_its_edge(store: Store, tmp_path: Path) -> None:
    llc_panel(store, 1e9, -5648.0, status=EstimateStatus.NEGATIVE)
    page = Page(write_report(store, RUN_ID, tmp_path / "report.html"))
    above, below = (one for one in page.drawn("llc", "doubt") if one.steps[0] < 10)
    assert (above.points, below.points) == ([(1, 0)], [(2, HEIGHT)])
    assert below.title.startswith("step 2: -5648 ± 1, negative")


@pytest.mark.parametrize("values", [(1e308, -1e308), (0.0, 0.0), (5e-324,), (1e-300, 1e300)])
def test_any_finite_values_can_be_drawn(store: Store, tmp_path: Path, values: Any) -> None:
    store.begin_run(name="extreme", run_id=RUN_ID, attempt=1)
    for name in ("reward", "train_loss"):
        for step, value in enumerate(values):
            store.add_observation(RUN_ID, 1, Observation(name=name, step=step, value=value))
    page = Page(write_report(store, RUN_ID, tmp_path / "report.html"))
    drawn = page.drawn("reward", "line") + page.drawn("reward", "point")
    assert [step for one in drawn for step in one.steps] == [*range(len(values))]


def test_ticks_are_round_and_within() -> None:
    for low, high, log in ((0, 1, False), (-3, 11, False), (1e-9, 1e9, True), (0.9, 1.1, True)):
        found = ticks(low, high, log=log)
        assert 3 <= len(found) <= 12
        assert all(low <= tick <= high * (1 + 1e-9) for tick in found)


def test_the_page_is_a_page_for_everyone(write: Write) -> None:
    page = write()
    tags = [tag for tag, _ in page.tags]
    assert tags.count("main") == 1
    assert tags.count("h1") == 1
    assert tags.count("caption") == tags.count("table") > 0
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    images = [attrs for _, attrs in page.tags if attrs.get("role") == "img"]
    assert len(images) == len(page.charts)
    assert all(attrs.get("aria-label") for attrs in images)
    assert "prefers-color-scheme: dark" in page.html
    assert "@media print" in page.html


def test_thinning_keeps_short_curves_whole() -> None:
    steps = np.arange(2 * MAX_BINS)
    assert (thin(steps, steps.astype(float)) == steps).all()


def test_thinning_keeps_the_extremes_of_every_bin_and_both_ends() -> None:
    values = np.random.default_rng(0).standard_normal(997)
    kept = thin(np.arange(997), values, bins=10)
    assert len(kept) <= 22
    assert (np.diff(kept) > 0).all()
    assert {0, 996, int(values.argmin()), int(values.argmax())} <= set(kept.tolist())


def test_the_span_covers_the_detection_even_past_an_early_end() -> None:
    assert span(transition(onset=10, detected=50, end=30), 100) == (10, 50)


def test_secrets_in_the_configuration_stay_out(store: Store, tmp_path: Path) -> None:
    config = {"store": "postgresql://me:secret@host/db", "alerts": ["slack://secret/token"]}
    store.begin_run(name="run", run_id=RUN_ID, attempt=1, config=config)
    page = Page(write_report(store, RUN_ID, tmp_path / "report.html"))
    assert "secret" not in page.html
    assert "postgresql://…@host/db" in page.words
    assert "slack://…" in page.words


def test_an_empty_run_has_a_page(store: Store, tmp_path: Path) -> None:
    store.begin_run(name="empty", run_id=RUN_ID, attempt=1)
    store.end_run(RUN_ID, 1, RunState.FAILED, "ValueError: no data")
    page = Page(write_report(store, "empty", tmp_path / "new" / "report.html"))
    assert "Nothing has been observed yet." in page.words
    assert "failed (ValueError: no data)" in page.words


def test_an_unknown_run_is_an_error_that_names_the_known(store: Store, tmp_path: Path) -> None:
    fill(store)
    with pytest.raises(StoreError, match="by hand"):
        write_report(store, "other", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# ---- several runs


OTHER = "f" * 32


@pytest.fixture
def several(store: Store, tmp_path: Path) -> Page:
    late = transition(onset=700, detected=800, end=950)
    fill(store, name="seed 0", extra="only here")
    fill(store, name=HOSTILE, run_id=OTHER, steps=2000, transitions=(late,))
    return Page(write_report(store, [RUN_ID, OTHER], tmp_path / "report.html"))


def test_several_runs_lie_over_one_another(several: Page) -> None:
    names = ["train_loss", "val_loss", "llc", "gradient_norm", "weight_norm", "weight_norm/net.0"]
    shared = several.charts[: len(names) + 1]
    assert all(chart.scale["data-last"] == "2000" for chart in shared)
    for chart in shared:
        assert [name for name, _ in chart.series if name] == ["seed 0", HOSTILE]
    assert len(several.charts) == 7 + 5 + 4  # then each by itself
    alone = several.chart("only here")
    assert alone in several.charts[7:]


def test_the_story_of_every_run_comes_first(several: Page) -> None:
    words = several.words
    told = [
        "2 runs",
        "seed 0: 1 transition: generalisation at step 500",
        f"{HOSTILE}: 1 transition: generalisation at step 700",
        "Transitions by run",
        "Over one another",
        "has ended, from step 500",
        "has ended, from step 700",
    ]
    places = [words.index(text) for text in told]
    assert places == sorted(places)


def test_onsets_of_several_runs_are_marked_in_their_colours(several: Page) -> None:
    marks = several.charts[0].series[:2]
    assert [path.points[0][0] for _, paths in marks for path in paths] == [500, 700]
    assert "seed 0" not in [name for name, _ in marks]


def test_a_page_of_several_runs_has_every_id_once(several: Page) -> None:
    ids = [attrs["id"] for _, attrs in several.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_runs_of_one_name_are_told_apart(store: Store, tmp_path: Path) -> None:
    fill(store)
    fill(store, run_id=OTHER)
    page = Page(write_report(store, [RUN_ID, OTHER], tmp_path / "report.html"))
    assert "by hand (01234567): 1 transition" in page.words
    assert "by hand (ffffffff): 1 transition" in page.words
