"""From numbers to transitions: what is found depends on the numbers and their order alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.meaning import Role
from phasewatch.monitor.core.transitions import Recipient, TransitionKind, TransitionStatus
from phasewatch.monitor.store.store import Store
from phasewatch.monitor.transitions.pipeline import Detection
from phasewatch.monitor.transitions.streams import Streams
from support.records import make_transition
from support.scripted import Scripted


def rows(num: int):
    """A support alarms at 48, the lead at 50; validation is logged from 70 on."""
    for step in range(1, num + 1):
        loss = 0.1 if step > 50 else 1.0
        yield step, 10.0 * step, {"train_loss": loss, "gradient_norm": 0.1 * step}
        if step >= 70:
            yield step, 10.0 * step + 1.0, {"a_val_loss": 1.0}


def detect(monkeypatch, cut: int):
    """What is said in the end, where `cut` rows are taken at a time."""
    scripts = {"train_loss": Scripted(50, 60), "gradient_norm": Scripted(48, 62)}
    monkeypatch.setattr(
        "phasewatch.monitor.transitions.pipeline.Streams", lambda *_: _scripted(scripts)
    )
    detection = Detection(MonitorConfig(), None, "run", Health())
    said = {}
    pending: dict[str, Column] = {}
    for index, (step, timestamp, values) in enumerate(rows(120), start=1):
        for name, value in values.items():
            pending.setdefault(name, Column()).add(step, value, None, timestamp)
        if index % cut == 0:
            said |= {t.id: t for t in detection.take_columns(pending)}
            pending = {}
    said |= {t.id: t for t in detection.take_columns(pending)} if pending else {}
    return list(said.values()), detection.transitions


def _scripted(scripts):
    streams = Streams({}, scripts)
    streams.get("gradient_norm").role = Role.SUPPORTING
    return streams


@pytest.mark.parametrize("cut", [2, 7, 49, 55, 1000])
def test_how_the_numbers_are_cut_into_columns_does_not_matter(monkeypatch, cut) -> None:
    whole = detect(monkeypatch, 1)
    assert detect(monkeypatch, cut) == whole
    ((transition,), _) = whole
    assert set(transition.evidence) == {"train_loss", "gradient_norm"}
    assert transition.end_step == 60
    assert transition.kind == "acquisition"  # no validation had been seen by then


def test_a_logged_name_with_a_slash_is_watched_and_a_measured_part_is_not() -> None:
    detection = Detection(MonitorConfig(), None, "run", Health())
    detection.take_columns({"train/loss": Column([1], [1.0], [None], [0.0])})
    detection.take_columns({"opt/lr": Column([1], [1.0], [None], [0.0])})
    detection.take(Observation(name="weight_norm/net", step=1, value=1.0))
    assert {s.name: s.detector is not None for s in detection.streams} == {
        "train/loss": True,
        "opt/lr": False,
        "weight_norm/net": False,
    }


def test_where_it_happened_is_asked_when_confirmed_and_again_at_the_end(monkeypatch) -> None:
    scripts = {"train_loss": Scripted(50, 60), "gradient_norm": Scripted(48, 62)}
    monkeypatch.setattr(
        "phasewatch.monitor.transitions.pipeline.Streams", lambda *_: _scripted(scripts)
    )
    asked = []

    def locate(onset, end):
        asked.append((onset, end))
        return (("net", float(len(asked))),)

    detection = Detection(MonitorConfig(), None, "run", Health(), locate=locate)
    for step, timestamp, values in rows(80):
        columns = {n: Column([step], [v], [None], [timestamp]) for n, v in values.items()}
        detection.take_columns(columns)
    (transition,) = detection.transitions
    assert asked == [(43, 50), (43, transition.end_step)]
    assert transition.where == (("net", 2.0),)


def test_a_detector_is_put_in_place_of_the_one_a_stream_would_have() -> None:
    asked = []

    def override(name, detector):
        asked.append((name, detector.name))

    detection = Detection(MonitorConfig(), None, "run", Health(), override)
    detection.take_columns({"loss": Column([1], [math.nan], [None], [0.0])})
    assert asked == [("loss", "abrupt_change")]
    assert [stream.detector for stream in detection.streams] == [None]


def test_what_is_confirmed_and_over_at_the_same_point_is_announced():
    health = Health()
    detection = Detection(MonitorConfig(), {"train_loss": Scripted(50, until=51)}, "run", health)
    said = []
    for step in range(1, 80):
        value = 0.1 if step > 50 else 1.0
        column = Column([step], [value], [None], [float(step)])
        said += detection.take_columns({"train_loss": column})
    assert [t.status for t in said] == [
        TransitionStatus.SUSPECTED,
        TransitionStatus.CONFIRMED,
        TransitionStatus.ENDED,
    ]
    assert sum(health.transitions.values()) == 1
    assert health.last_transition == said[1]


def test_a_transition_that_turns_out_to_be_of_another_kind_is_counted_and_said_again(caplog):
    caplog.set_level("INFO", logger="phasewatch")
    health = Health()
    scripts = {"llc": Scripted(50, until=150), "val_loss": Scripted(90, until=150)}
    detection = Detection(MonitorConfig(), scripts, "run", health)
    said = []
    for step in range(1, 120):
        values = {"llc": 0.1 if step > 50 else 1.0, "val_loss": 0.1 if step > 85 else 1.0}
        columns = {n: Column([step], [v], [None], [float(step)]) for n, v in values.items()}
        said += detection.take_columns(columns)
    told = [t.kind for t in said if t.status is TransitionStatus.CONFIRMED]
    simpler, general = TransitionKind.SIMPLIFICATION, TransitionKind.GENERALISATION
    assert list(dict.fromkeys(told)) == [simpler, general]
    assert health.transitions == {(simpler, "llc"): 1, (general, "llc"): 1}
    assert health.corrected == {simpler: 1}
    assert "transition: generalisation (told before as simplification)" in caplog.text


def test_a_kind_that_comes_back_is_counted_as_it_stands():
    health = Health()
    detection = Detection(MonitorConfig(), {}, "run", health)
    simpler, general = TransitionKind.SIMPLIFICATION, TransitionKind.GENERALISATION
    for kind in (simpler, general, general, simpler):
        detection._announce(make_transition("run", kind=kind))
    standing = {k: health.transitions[k, "val_loss"] - health.corrected[k] for k in TransitionKind}
    assert {kind: num for kind, num in standing.items() if num} == {simpler: 1}


@pytest.mark.parametrize("width", [1, 3, 10])
def test_a_sharp_fall_is_told_as_confirmed_before_it_ends(width) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        steps = np.arange(1, 1001)
        base = 2.3 * (
            0.05 + 0.95 / (1.0 + np.exp(np.clip((steps - 500) / max(width / 8, 0.1), -50.0, 50.0)))
        )
        values = base * 10.0 ** (0.02 * rng.standard_normal(1000))
        detection = Detection(MonitorConfig(), None, "r", Health())
        said = []
        for first in range(0, 1000, 64):
            part = slice(first, first + 64)
            count = len(steps[part])
            column = Column(
                steps[part].tolist(), values[part].tolist(), [None] * count, [0.0] * count
            )
            said += detection.take_columns({"train_loss": column})
        said += detection.finish()
        states = [t.status for t in said]
        assert TransitionStatus.CONFIRMED in states
        if TransitionStatus.ENDED in states:
            assert states.index(TransitionStatus.CONFIRMED) < states.index(TransitionStatus.ENDED)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2, 3])
def test_each_of_twenty_sharp_falls_is_told_once(width) -> None:
    """By as many messages as a target would get, whatever pieces the losses come in."""
    told = []
    for seed in range(20):
        rng = np.random.default_rng(100 * width + seed)
        at = int(rng.integers(300, 1100))
        steps = np.arange(1, 1501)
        progress = np.clip((steps - at) / width, 0.0, 1.0)
        values = 2.3 * 0.05**progress * 10.0 ** (0.02 * rng.standard_normal(1500))
        detection = Detection(MonitorConfig(), None, "r", Health())
        detection.expect(0, 1500)
        detection.start("r", 1)
        with Store(":memory:") as store:
            store.begin_run(name="r", run_id="r")
            said, first = [], 0
            while first < 1500:
                part = slice(first, first + int(rng.integers(1, 257)))
                first = part.stop
                size = len(steps[part])
                said += detection.take_columns(
                    {
                        "train_loss": Column(
                            steps[part].tolist(), values[part].tolist(), [None] * size, [0.0] * size
                        )
                    }
                )
            for transition in (*said, *detection.finish()):
                store.add_transition(transition, (Recipient(target="1-json-aa"),))
            assert store.flush()
            messages = store.outbox.messages()
        told += [(len(messages), abs(messages[0].transition.onset_step - at) <= width + 1)]
    assert told == [(1, True)] * 20
