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
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

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
from phasewatch.monitor.reports.data import (
    KIND_COLOURS,
    MAX_BINS,
    lines,
    panels,
    read_run,
    span,
    thin,
    value_range,
)
from phasewatch.monitor.reports.figures import MAX_TRACE_POINTS, MAX_TRACED
from phasewatch.monitor.reports.run_page import write_report
from phasewatch.monitor.store.store import Store
from support.history import RUN_ID, estimate, fill, transition

HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(2)> "q" 'r' & <b>x</b>"""

Write = Callable[..., "Page"]


class Page(HTMLParser):
    """What a browser would find in a report."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._inside: list[str] = []
        self.feed(self.html)
        self.data: dict[str, Any] = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)
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

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def trace(self, name: str) -> dict[str, Any]:
        return next(t for t in self.data["figure"]["data"] if t["name"] == name)


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


def test_a_transition_is_a_band_from_onset_to_end_over_all_panels(write: Write) -> None:
    layout = write().data["figure"]["layout"]
    (band,) = [s for s in layout["shapes"] if s["type"] == "rect"]
    assert (band["x0"], band["x1"], band["y0"], band["y1"]) == (500, 900, 0, 1)
    assert band["yref"] == "paper"
    (label,) = layout["annotations"]
    assert label["text"] == "generalisation (ended) at 600"


def test_a_transition_that_goes_on_reaches_to_the_last_step(write: Write) -> None:
    page = write(transitions=(transition(status=TransitionStatus.CONFIRMED, end=None),))
    (band,) = [s for s in page.data["figure"]["layout"]["shapes"] if s["type"] == "rect"]
    assert (band["x0"], band["x1"]) == (500, 1000)


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
    layout = write().data["figure"]["layout"]
    axes = {axis["title"]["text"]: axis for key, axis in layout.items() if key.startswith("yaxis")}
    assert axes["dropout"]["rangemode"] == "tozero"
    assert "rangemode" not in axes["Losses (nats)"]


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
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert "img" not in [tag for tag, _ in page.tags]
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert HOSTILE in page.words
    # plotly turns a few tags in labels into markup: they must arrive there as entities
    labels = [t["name"] for t in page.data["figure"]["data"]]
    assert not [label for label in labels if "<" in label]
    assert any("&lt;img" in label for label in labels)


def test_nothing_is_loaded_from_anywhere(write: Write) -> None:
    page = write()
    loading = {"src", "href", "data", "action", "poster", "srcset"}
    assert not [(tag, a) for tag, attrs in page.tags for a in attrs if a in loading]
    assert "@import" not in page.html.replace(get_plotlyjs(), "")
    assert "url(" not in page.html.replace(get_plotlyjs(), "")


def test_only_the_two_scripts_written_here_may_run(write: Write) -> None:
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


def test_doubtful_estimates_are_marked_with_their_reason(write: Write) -> None:
    page = write()
    marked = page.trace("llc: unconverged")
    assert marked["x"] == [251]
    assert marked["y"] == [150.0]
    assert marked["text"] == ["drift 0.31 is above 0.2"]
    assert 251 not in page.trace("llc")["x"]
    assert "25 ok, 1 unconverged, 1 diverged" in page.words


def test_a_value_that_is_not_finite_gets_a_tick(write: Write) -> None:
    shapes = write().data["figure"]["layout"]["shapes"]
    assert [s["x0"] for s in shapes if s["yref"] == "y2 domain"] == [333]


def test_the_error_band_is_two_standard_errors_wide(write: Write) -> None:
    page = write()
    line, band = page.trace("llc"), page.trace("llc: ±2 standard errors")
    runs = [[*part] for gap, part in groupby(line["x"], lambda x: x is None) if not gap]
    count = len(runs[0])
    upper, lower = band["y"][0], band["y"][2 * count - 1]
    assert band["x"][: 2 * count] == runs[0] + runs[0][::-1]
    assert sum(len(run) for run in runs) == 25
    assert len(runs) == 3  # broken where estimates did not pass: at 251 and at 333
    assert upper == pytest.approx(line["y"][0] + 2 * line["customdata"][0], rel=1e-4)
    assert lower == pytest.approx(line["y"][0] - 2 * line["customdata"][0], rel=1e-4)


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
    assert [panel.scale for panel in found] == ["log", "linear", "log", "linear", "linear"]


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
    assert page.trace("weight_norm/net.0")["visible"] == "legendonly"
    assert page.trace("weight_norm")["visible"] is True
    assert page.trace("reward/mean")["visible"] is True


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
    line = page.trace("train_loss")
    assert len(line["x"]) <= 2 * MAX_BINS + 2
    assert line["y"][line["x"].index(12_345)] == 100.0
    assert (line["x"][0], line["x"][-1]) == (1, 20_000)
    assert len(page.html) < len(get_plotlyjs()) + 100_000


def test_many_measurements_keep_a_bounded_number_of_short_traces() -> None:
    from phasewatch.monitor.reports.data import Series
    from phasewatch.monitor.reports.figures import chain_traces

    details = [estimate(step, 1.0) for step in range(1000)]
    long = [Observation(name="llc", step=e.step, value=1.0, stderr=0.1, detail=e) for e in details]
    numbers = np.arange(1000)
    ones = np.ones(1000)
    series = Series("llc", "1", numbers, ones, ones, LLC, tuple(long), ones.astype(bool))
    traces = chain_traces([series])
    assert len(traces) == MAX_TRACED
    assert (traces[0]["step"], traces[-1]["step"]) == (0, 999)
    assert all(len(one["draw"]) <= MAX_TRACE_POINTS for one in traces)


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
    from phasewatch.monitor.reports.data import Record, Series
    from phasewatch.monitor.reports.figures import overview

    details = [estimate(step, 1.0) for step in range(6)]
    details[3:] = [dataclasses.replace(e, localization=3.0) for e in details[3:]]
    seen = [Observation(name="llc", step=e.step, value=1.0, stderr=0.1, detail=e) for e in details]
    series = Series("llc", "1", np.arange(6), np.ones(6), np.ones(6), LLC, tuple(seen))
    figure = overview(Record(series={"llc": series}, transitions=()))
    lines = [trace for trace in figure["data"] if trace.get("name") == "llc"]
    assert [trace["x"] for trace in lines] == [[0, 1, 2], [3, 4, 5]]
    assert [trace.get("showlegend", True) for trace in lines] == [True, False]


def test_thinning_keeps_short_curves_whole() -> None:
    steps = np.arange(2 * MAX_BINS)
    assert (thin(steps, steps.astype(float)) == steps).all()


def test_thinning_keeps_the_extremes_of_every_bin_and_both_ends() -> None:
    values = np.random.default_rng(0).standard_normal(997)
    kept = thin(np.arange(997), values, bins=10)
    assert len(kept) <= 22
    assert (np.diff(kept) > 0).all()
    assert {0, 996, int(values.argmin()), int(values.argmax())} <= set(kept.tolist())


def test_the_first_view_shows_the_trusted_estimates(store: Store) -> None:
    fill(store)
    wild = estimate(1, -5648.0, EstimateStatus.NEGATIVE)
    observation = Observation(
        name="llc", step=1, value=-5648.0, stderr=1.0, status=wild.status, detail=wild
    )
    store.add_observation(RUN_ID, 1, observation)
    limits = value_range([read_run(store, RUN_ID).series["llc"]])
    assert limits is not None
    assert -50 < limits[0] < 1
    assert 200 < limits[1] < 260


def test_too_few_trusted_estimates_show_everything(store: Store) -> None:
    fill(store, steps=80)
    assert value_range([read_run(store, RUN_ID).series["llc"]]) is None


def test_the_span_covers_the_detection_even_past_an_early_end() -> None:
    assert span(transition(onset=10, detected=50, end=30), 100) == (10, 50)


def test_secrets_in_the_configuration_stay_out(store: Store, tmp_path: Path) -> None:
    config = {"store": "postgresql://me:secret@host/db", "alerts": ["slack://secret/token"]}
    store.begin_run(name="run", run_id=RUN_ID, attempt=1, config=config)
    page = Page(write_report(store, RUN_ID, tmp_path / "report.html"))
    assert "secret" not in page.html.replace(get_plotlyjs(), "")
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
