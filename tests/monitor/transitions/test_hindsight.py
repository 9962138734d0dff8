"""The second verdict: confirmed, corrected, withdrawn or found, beside what was streamed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from phasewatch import detectors
from phasewatch.detectors.offline.changes import find_changes
from phasewatch.detectors.types import Alarm, AlarmKind, Direction
from phasewatch.monitor import Watch
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.meaning import LLC, Role, guess
from phasewatch.monitor.core.transitions import (
    Hindsight,
    HindsightVerdict,
    Transition,
    TransitionKind,
    TransitionStatus,
)
from phasewatch.monitor.store.store import Store
from phasewatch.monitor.transitions import hindsight as module
from phasewatch.monitor.transitions.hindsight import MIN_POINTS, review, stored_history
from phasewatch.monitor.transitions.streams import SCALARS, Stream
from support.curves import autoregressive, power_law, sigmoid_fall
from support.needs import need_test_data

FALL = sigmoid_fall(1000, 0.1) * 10.0 ** autoregressive(1000, 0.0, 0.005, seed=1)
FLAT = 2.0 * 10.0 ** autoregressive(1000, 0.0, 0.005, seed=2)


def stream(name: str = "val_loss", role: Role = Role.LEADING, *, watched: bool = True) -> Stream:
    return Stream(name, detectors.default("loss") if watched else None, role, guess(name))


def history_of(**curves):
    def history(name):
        values = np.asarray(curves.get(name, ()), dtype=float)
        return np.arange(values.size), values, np.full(values.size, np.nan)

    return history


def told(
    onset: int = 430,
    end: int | None = 560,
    *,
    status: TransitionStatus = TransitionStatus.ENDED,
    name: str = "val_loss",
    kind: AlarmKind = AlarmKind.SHIFT,
    **changes,
) -> Transition:
    alarm = Alarm(
        detected_step=onset + 20, onset_step=onset, direction=Direction.DOWN, kind=kind,
        score=1.5, run_length=20, value_before=2.0, value_after=1.0,
    )  # fmt: skip
    unstable = kind is AlarmKind.INSTABILITY
    values = {
        "id": "t1", "run": "r", "attempt": 1, "status": status, "onset_step": onset,
        "kind": TransitionKind.INSTABILITY if unstable else TransitionKind.GENERALISATION,
        "detected_step": onset + 20, "end_step": end, "detected_at": 5.0, "severity": 1.0,
        "evidence": {name: alarm}, "before": {name: 2.0}, "after": {name: 1.0},
    }  # fmt: skip
    return Transition(**(values | changes))


def look(transitions, streams=None, *, seconds=60.0, **curves):
    streams = [stream(name) for name in curves] if streams is None else streams
    return review(transitions, streams, history_of(**curves), run="r", attempt=1, seconds=seconds)


def test_what_was_right_is_confirmed_and_keeps_everything():
    (seen,) = look([told()], val_loss=FALL)
    assert seen.hindsight.verdict is HindsightVerdict.CONFIRMED
    assert seen.hindsight.streamed is TransitionStatus.ENDED
    assert (seen.hindsight.onset_step, seen.hindsight.end_step) == (430, 560)
    assert replace(seen, hindsight=None) == told()


def test_a_wrong_onset_and_end_are_corrected_beside_the_streamed_ones():
    (seen,) = look([told(490, 700)], val_loss=FALL)
    assert seen.hindsight.verdict is HindsightVerdict.CORRECTED
    assert seen.hindsight.onset_step == pytest.approx(430, abs=25)
    assert seen.hindsight.end_step == pytest.approx(560, abs=25)
    assert (seen.onset_step, seen.end_step, seen.id) == (490, 700, "t1")
    assert str(seen.hindsight).startswith("corrected: 4")


def test_a_transition_that_never_ended_gets_its_end():
    (seen,) = look([told(end=None, status=TransitionStatus.CONFIRMED)], val_loss=FALL)
    assert seen.hindsight.verdict is HindsightVerdict.CORRECTED
    assert seen.hindsight.end_step == pytest.approx(560, abs=25)
    assert seen.status is TransitionStatus.CONFIRMED


@pytest.mark.parametrize("values", [FLAT, power_law(1000)])
def test_what_the_history_does_not_show_is_withdrawn(values):
    (seen,) = look([told()], val_loss=values)
    assert seen.status is TransitionStatus.WITHDRAWN
    assert seen.hindsight == Hindsight(
        verdict=HindsightVerdict.WITHDRAWN, streamed=TransitionStatus.ENDED
    )
    assert (seen.id, seen.onset_step, seen.end_step) == ("t1", 430, 560)


def test_a_loss_is_judged_in_dex_also_where_it_rises():
    memorised = np.concatenate([np.linspace(4.0, 0.01, 200), np.full(800, 0.01)])
    values = memorised * np.where(np.arange(1000) < 600, 1.0, 5.0) * FLAT
    fall, seen = look([], excluded_loss=values)
    assert fall.evidence["excluded_loss"].direction is Direction.DOWN
    assert seen.evidence["excluded_loss"].direction is Direction.UP
    assert seen.onset_step == pytest.approx(600, abs=5)
    assert seen.kind is TransitionKind.CIRCUIT_FORMATION


def test_a_change_the_other_way_does_not_confirm():
    (seen,) = look([told()], val_loss=1.0 / FALL)
    assert seen.status is TransitionStatus.WITHDRAWN


def test_half_the_evidence_is_enough_to_confirm_and_not_to_find():
    small = sigmoid_fall(1000, 0.1, dex=0.07) * 10.0 ** autoregressive(1000, 0.0, 0.001, seed=1)
    (seen,) = look([told()], val_loss=small)
    assert seen.status is TransitionStatus.ENDED
    assert look([], val_loss=small) == []


def test_what_the_stream_missed_is_added_once_with_its_evidence():
    (found,) = look([], val_loss=FALL, train_loss=power_law(1000))
    assert found.hindsight.verdict is HindsightVerdict.FOUND
    assert found.hindsight.streamed is None
    assert found.status is TransitionStatus.ENDED
    assert found.kind is TransitionKind.GENERALISATION
    assert found.onset_step == pytest.approx(430, abs=25)
    assert found.end_step == pytest.approx(560, abs=25)
    assert found.detected_step == 999
    assert list(found.evidence) == ["val_loss"]
    assert found.before["val_loss"] > 1.5
    assert found.severity == pytest.approx(0.9, abs=0.2)


@pytest.mark.parametrize(("scatter", "found"), [(0.005, 1), (0.1, 0)])
def test_a_jump_of_one_point_must_stand_out_of_its_neighbours(scatter, found) -> None:
    level = np.where(np.arange(400) < 250, 0.0, -0.2)
    noise = scatter * np.random.default_rng(5).standard_normal(400)
    values = 10.0 ** (level + noise)
    (change,) = find_changes(np.arange(400), values, gate=0.1)  # seen in the whole history
    assert change.end_step - change.onset_step <= 2
    assert len(look([], val_loss=values)) == found


def test_a_change_that_is_plain_from_behind_alone_is_found(monkeypatch):
    rng = np.random.default_rng(1)
    noisy, calm = 79.0 + 3.0 * rng.standard_normal(60), 87.0 + 0.6 * rng.standard_normal(80)
    values = np.concatenate([noisy, calm])
    detector = detectors.create("abrupt_change", **SCALARS)
    assert not any(detector.update(step, float(value)) for step, value in enumerate(values))
    score = Stream("test_score", detector, Role.LEADING, guess("test_score"))
    monkeypatch.setattr("phasewatch.detectors.offline.changes.find_changes", lambda *_, **__: [])
    (found,) = look([], [score], test_score=values)
    assert found.hindsight.verdict is HindsightVerdict.FOUND
    assert abs(found.onset_step - 60) <= 3
    assert found.evidence["test_score"].direction is Direction.UP
    forwards = "phasewatch.detectors.offline.both_ways.seen_both_ways"
    monkeypatch.setattr(forwards, lambda *_, **__: [])
    assert look([], [score], test_score=values) == []


def test_one_change_of_two_streams_is_one_transition():
    (found,) = look([], val_loss=FALL, train_loss=2.0 * FALL)
    assert set(found.evidence) == {"val_loss", "train_loss"}


def test_looking_again_changes_nothing():
    (found,) = look([], val_loss=FALL)
    (again,) = look([found], val_loss=FALL)
    assert again.id == found.id
    assert again.hindsight == found.hindsight
    (withdrawn,) = look([told()], val_loss=FLAT)
    assert look([withdrawn], val_loss=FLAT) == [withdrawn]


def test_a_longer_history_may_overturn_the_second_verdict():
    (withdrawn,) = look([told()], val_loss=FLAT)
    (seen,) = look([withdrawn], val_loss=FALL)
    assert seen.status is TransitionStatus.ENDED
    assert seen.hindsight.verdict is HindsightVerdict.CONFIRMED
    (found,) = look([], val_loss=FALL)
    (gone,) = look([found], val_loss=FLAT)
    assert gone.status is TransitionStatus.WITHDRAWN
    assert gone.hindsight.streamed is None


def test_what_the_stream_had_withdrawn_is_found_again_under_its_id():
    (seen,) = look([told(status=TransitionStatus.WITHDRAWN)], val_loss=FALL)
    assert seen.id == "t1"
    assert seen.status is TransitionStatus.ENDED
    assert seen.hindsight.verdict is HindsightVerdict.FOUND
    assert seen.hindsight.streamed is TransitionStatus.WITHDRAWN


@pytest.mark.parametrize(
    ("transition", "values"),
    [
        (told(kind=AlarmKind.INSTABILITY), FLAT),
        (told(10, 20), FLAT[: MIN_POINTS - 1]),
        (told(end=None, status=TransitionStatus.CONFIRMED), FLAT),
        (told(name="gone"), FLAT),
        (replace(told(), kind=TransitionKind.CIRCUIT_FORMATION), FLAT),
        (replace(told(), kind=TransitionKind.CLEANUP), FLAT),
    ],
    ids=["instability", "few points", "still going on", "no history", "circuits", "cleanup"],
)
def test_what_cannot_be_judged_stays_as_it_was(transition, values):
    assert look([transition], val_loss=values) == []


def test_streams_without_a_detector_and_supporting_ones_open_nothing():
    streams = [stream("lr", watched=False), stream("gradient_norm", Role.SUPPORTING)]
    assert look([], streams, lr=FALL, gradient_norm=FALL) == []


def test_values_that_are_not_finite_are_left_out():
    values = FALL.copy()
    values[100:130] = np.nan
    values[700] = np.inf
    (found,) = look([], val_loss=values)
    assert found.onset_step == pytest.approx(430, abs=25)


def test_no_stream_is_begun_after_the_deadline(monkeypatch):
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    streams = [stream("a_loss"), stream("b_loss"), stream("c_loss")]
    found = look([], streams, a_loss=FALL, b_loss=FALL, c_loss=FALL, seconds=2.0)
    assert set(found[0].evidence) == {"a_loss", "b_loss"}


def test_a_step_of_a_measured_stream_is_judged_by_its_errors():
    rng = np.random.default_rng(0)
    level = np.repeat([20.0, 12.0], 30)
    stderrs = rng.uniform(0.03, 0.06, 60) * level
    values = level + stderrs * rng.standard_normal(60)

    def history(name):
        return 10 * np.arange(60), values, stderrs

    streams = [Stream("llc", detectors.default("measured"), Role.LEADING, LLC)]
    (found,) = review([], streams, history, run="r", attempt=1)
    assert found.kind is TransitionKind.SIMPLIFICATION
    assert (found.onset_step, found.end_step) == (290, 300)


def test_measured_values_that_did_not_converge_are_not_looked_at(tmp_path):
    with Store(tmp_path / "runs.db") as store:
        run, attempt = store.begin_run(name="r")
        for step in range(5):
            status = EstimateStatus.UNCONVERGED if step == 2 else EstimateStatus.OK
            item = Observation(name="llc", step=step, value=1.0, stderr=0.1, status=status)
            store.add_observation(run, attempt, item)
        steps, values, stderrs = stored_history(store, run)("llc")
    for column in (values, stderrs):
        assert np.isnan(column).tolist() == [step == 2 for step in steps]


# ---- a watched run


class Misled:
    """Alarms on what is nothing, and is out of it soon."""

    threshold, statistic, num_skipped, active = 1.0, 0.5, 0, False

    def update(self, step, value, stderr=None):
        self.active = 300 <= step < 340
        if step != 300:
            return None
        return Alarm(
            detected_step=300, onset_step=280, direction=Direction.DOWN, score=2.0,
            run_length=20, value_before=2.0 * value, value_after=value,
        )  # fmt: skip

    def reset(self): ...

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


class Notified:
    def __init__(self):
        self.transitions = []

    def emit(self, observation): ...

    def notify(self, transition):
        self.transitions.append(transition)

    def flush(self): ...

    def close(self): ...


@pytest.fixture
def settings(tmp_path):
    return {
        "run_name": "test",
        "store": str(tmp_path / "runs.db"),
        "exporter": {"enabled": False},
        "observables": [],
    }


def watched(settings, values, *, state=RunState.FINISHED, **arguments):
    sink = Notified()
    watch = Watch(settings, sinks=[sink], **arguments)
    watch.start()
    for step, value in enumerate(values):
        watch.observe(step, {"val_loss": float(value)})
    watch.finish(state)
    return watch, sink


def test_the_end_of_a_run_withdraws_a_false_alarm_and_says_so(settings):
    values = [2.0 * 0.9993**step for step in range(1000)]
    values[300:320] = [value / 2.0 for value in values[300:320]]
    watch, sink = watched(settings, values, detectors={"val_loss": Misled()})
    assert [t.status for t in sink.transitions] == [
        TransitionStatus.SUSPECTED,
        TransitionStatus.CONFIRMED,
        TransitionStatus.ENDED,
        TransitionStatus.WITHDRAWN,
    ]
    with Store(settings["store"], create=False) as store:
        (stored,) = store.transitions(watch.run_id)
        life = [t.status for _, t in store.transition_changes(stored.id)]
    assert stored == watch.transitions[0] == sink.transitions[-1]
    assert life == [t.status for t in sink.transitions]
    assert stored.hindsight.streamed is TransitionStatus.ENDED


def test_what_was_missed_is_stored_and_no_sink_is_told(settings):
    watch, sink = watched(settings, FALL, detectors={"val_loss": Silent()})
    assert sink.transitions == []
    with Store(settings["store"], create=False) as store:
        (stored,) = store.transitions(watch.run_id)
    assert stored.hindsight.verdict is HindsightVerdict.FOUND
    assert stored == watch.transitions[0]


class Silent(Misled):
    def update(self, step, value, stderr=None):
        return None


def test_a_run_that_failed_is_left_as_it_was(settings):
    watch, _ = watched(settings, FALL, state=RunState.FAILED, detectors={"val_loss": Silent()})
    assert watch.transitions == []


def test_looking_back_never_raises_into_training(settings, monkeypatch, caplog):
    def broken(*_, **__):
        raise StoreError("no history")

    monkeypatch.setattr(module, "review", broken)
    watch, _ = watched(settings, FALL)
    assert "transitions were not looked at again: StoreError: no history" in caplog.text
    assert all(t.hindsight is None for t in watch.transitions)
    with Store(settings["store"], create=False) as store:
        assert store.run(watch.run_id).state is RunState.FINISHED


# ---- recorded curves


def test_hindsight_is_not_worse_than_the_stream():
    from phasewatch.detectors.evaluation.scoring import Score, load_curves, match
    from phasewatch.monitor.core.columns import Column
    from phasewatch.monitor.replay.recorded import detect

    streamed, seen = Score(), Score()
    for curve in load_curves(need_test_data("training_curves.json")):
        curve = curve.every(4)
        count = len(curve.steps)
        column = Column(list(curve.steps), list(curve.values), [None] * count, [0.0] * count)
        found = detect([{"val_loss": column}], run="r").transitions
        said = [t.detected_step for t in found if t.hindsight is None or t.hindsight.streamed]
        stand = [
            (
                t.hindsight.onset_step
                if t.hindsight and not t.hindsight.streamed
                else t.detected_step
            )
            for t in found
            if t.status is not TransitionStatus.WITHDRAWN
        ]
        streamed += match(np.searchsorted(curve.steps, said).tolist(), curve)
        seen += match(np.searchsorted(curve.steps, stand).tolist(), curve)
    assert seen.f1 >= streamed.f1
    assert seen.num_false <= streamed.num_false + 1
