"""One run, all faces: no two of them say another kind, onset, severity, place or certainty."""

from __future__ import annotations

import dataclasses
import html
import json
import re

import pytest

from phasewatch.monitor.alerts.courier import AlertWriter
from phasewatch.monitor.config.alerts import AlertsConfig
from phasewatch.monitor.core.explanation import explain
from phasewatch.monitor.core.transitions import (
    Hindsight,
    HindsightVerdict,
    Recipient,
    TransitionStatus,
)
from phasewatch.monitor.grafana.annotations import GrafanaAnnotations
from phasewatch.monitor.reports.run_page import write_report
from phasewatch.monitor.store.outbox import Mailbox
from phasewatch.monitor.store.store import Store
from support.alarms import alarm
from support.grafana import TOKEN, FakeGrafana
from support.history import RUN_ID, fill, transition
from support.records import make_observation

HOSTILE = '</script><img src=x onerror=alert(1)> & "quoted"'
CONFIG = {"false_alarms_per_run": 0.1, "streams": {"fitness": {"better": "up", "unit": "points"}}}


@pytest.fixture
def found():
    """A transition that has something to say under every heading."""
    evidence = {
        "val_loss": dataclasses.replace(alarm(500, 600), probability=0.97),
        "llc": alarm(520, 640),
        "weight_norm": alarm(500, 700),
        HOSTILE: alarm(510, 650),
    }
    return dataclasses.replace(
        transition(status=TransitionStatus.CONFIRMED),
        evidence=evidence,
        before=dict.fromkeys(evidence, 9.0),
        after=dict.fromkeys(evidence, 0.5),
        severity=1.255,
        where=((HOSTILE, 4.0), ("body", 1.0)),
        checkpoints=(f"/{HOSTILE}/step=100.ckpt", f"/{HOSTILE}/step=120.ckpt"),
        repeats=2,
        hindsight=Hindsight(
            verdict=HindsightVerdict.CORRECTED,
            streamed=TransitionStatus.CONFIRMED,
            onset_step=450,
            end_step=800,
            score=4.2,
        ),
    )


@pytest.fixture
def store(tmp_path, found):
    with Store(tmp_path / "runs.db") as opened:
        fill(opened, transitions=(), extra=HOSTILE)
        opened.begin_run(name="by hand", run_id=RUN_ID, attempt=2, config=CONFIG)
        opened.add_transition(found, (Recipient(target="somebody", updates=True),))
        opened.flush()
        yield opened


def from_alert(store, found, tmp_path):
    message = store.outbox.first(Mailbox(target="somebody"), set())
    return AlertWriter(store, AlertsConfig(), tmp_path).write(message, drawn=False).body


def from_grafana(store, found, tmp_path):
    server = FakeGrafana()
    sink = GrafanaAnnotations(server.url, "by hand", token=TOKEN, config=CONFIG)
    for name, unit in store.units(RUN_ID).items():
        sink.emit(make_observation(1, name=name, unit=unit))
    sink.notify(found)
    sink.close()
    server.close()
    return html.unescape(server.annotations[1]["text"].replace("<br>", "\n"))


def unmarked(page):
    """The text of a page: its tags gone, its entities read."""
    return html.unescape(re.sub(r"<[^>]*>", "\n", page)).replace("\n\n", ": ")


def from_report(store, found, tmp_path):
    page = write_report(store, RUN_ID, tmp_path / "report.html").read_text(encoding="utf-8")
    return unmarked(page[page.index('id="transitions"') : page.index('id="overview"')])


def from_notebook(store, found, tmp_path):
    return unmarked(found._repr_html_())


FACES = {
    "alert": from_alert,
    "Grafana": from_grafana,
    "report": from_report,
    "notebook": from_notebook,
}
HEADINGS = ("What", "When", "How much", "How sure", "Where", "Checkpoints", "Why", "In hindsight")
OF_THE_RUN = "; 0.1 false alarms are expected in a whole run"
"""What a transition alone does not know: a notebook that has no more says all but this."""


@pytest.mark.parametrize("face", FACES)
def test_every_face_says_the_same_of_a_transition(face, store, found, tmp_path):
    told = explain(found, config=CONFIG, units=store.units(RUN_ID))
    assert tuple(heading for heading, _ in told.facts) == HEADINGS
    said = FACES[face](store, found, tmp_path)
    for heading, text in told.facts:
        if face == "notebook":
            text = text.removesuffix(OF_THE_RUN)
        assert f"{heading}: {text}" in said


def test_the_command_line_says_it_as_text_and_as_json(store, found, phasewatch, monkeypatch):
    told = explain(found, config=CONFIG, units=store.units(RUN_ID))
    monkeypatch.setenv("COLUMNS", "2000")
    _, out, _ = phasewatch("show", RUN_ID, "--store", store.path)
    for line in str(told).splitlines():
        assert line in out
    _, out, _ = phasewatch("show", RUN_ID, "--store", store.path, "--json")
    (shown,) = json.loads(out)["transitions"]
    assert shown["explanation"] == {"title": told.title, "facts": dict(told.facts)}


def test_hostile_names_are_text_on_the_faces_that_know_markup(store, found, tmp_path):
    page = write_report(store, RUN_ID, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img" not in page[: page.index("<script")] + found._repr_html_()
