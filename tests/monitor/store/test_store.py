"""What is put into the store comes out of it: values, details, attempts, transitions."""

import dataclasses
import itertools
import json
import math
import sqlite3

import numpy as np
import pytest

from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.core.transitions import Hindsight, HindsightVerdict, TransitionStatus
from phasewatch.monitor.store.codec import decode_transition, encode_transition
from phasewatch.monitor.store.store import Store
from support.records import INF, NAN, make_estimate, make_observation, make_transition


@pytest.fixture(params=["file", "memory"])
def store(request, tmp_path):
    with Store(tmp_path / "runs.db" if request.param == "file" else "sqlite://") as opened:
        yield opened


@pytest.fixture
def run(store):
    run_id, _ = store.begin_run(name="demo", run_id="r1", config={"seed": 3, "lr": NAN})
    return run_id


def same(left, right):
    return left == right or (math.isnan(left) and math.isnan(right))


def test_history_has_every_value_in_order_of_its_step(store, run):
    for step in (3, 1, 2):
        store.add_observation(run, 1, make_observation(step, step / 10))
    steps, values, stderrs = store.history(run, "train_loss")
    assert steps.tolist() == [1, 2, 3]
    assert steps.dtype == np.int64
    assert values.tolist() == [0.1, 0.2, 0.3]
    assert np.isnan(stderrs).all()


def test_a_whole_run_is_read_by_step_then_by_time(store, run):
    for step, name, timestamp in ((2, "a", 5.0), (1, "b", 4.0), (2, "c", 3.0)):
        observation = make_observation(step, NAN, name=name, timestamp=timestamp, stderr=0.5)
        store.add_observation(run, 1, observation)
    store.add_scalars(run, 1, "d", Column([2], [1.5], [7], [4.0]))
    found = list(store.in_order(run))
    assert [(o.step, o.name) for o in found] == [(1, "b"), (2, "c"), (2, "d"), (2, "a")]
    assert (found[2].value, found[2].epoch, found[2].stderr) == (1.5, 7, None)
    assert math.isnan(found[0].value)
    assert found[0].stderr == 0.5
    assert [o.name for o in store.in_order(run, step=1)] == ["b"]
    store.begin_run(name="demo", run_id=run, attempt=2, resumed_step=1)
    assert [o.name for o in store.in_order(run)] == ["b"]


def test_awkward_numbers_survive(store, run):
    values = [NAN, INF, -INF, 0.0, 5e-324, 1.7976931348623157e308]
    pairs = list(itertools.product(values, [None, NAN, INF, -INF, 0.25]))
    for step, (value, stderr) in enumerate(pairs):
        store.add_observation(run, 1, make_observation(step, value, stderr=stderr))
    found = store.observations(run, "train_loss")
    for observation, (value, stderr) in zip(found, pairs, strict=True):
        assert same(observation.value, value)
        assert (observation.stderr is None) == (stderr is None)
        assert stderr is None or same(observation.stderr, stderr)


def test_every_field_of_an_observation_survives(store, run):
    observation = make_observation(
        9,
        1.5,
        name="llc/α",
        unit="1",
        stderr=0.5,
        epoch=2,
        duration_seconds=0.75,
        status=EstimateStatus.UNCONVERGED,
        reason='R-hat "1.7"; żółć',
    )
    store.add_observation(run, 1, observation)
    assert store.observations(run, "llc/α") == [observation]


def test_every_field_of_an_estimate_survives(store, run):
    estimate = make_estimate()
    store.add_observation(run, 1, make_observation(7, name="llc", detail=estimate))
    (observation,) = store.observations(run, "llc")
    for field in dataclasses.fields(estimate):
        before, after = getattr(estimate, field.name), getattr(observation.detail, field.name)
        if field.name == "chain_loss":
            np.testing.assert_array_equal(after, before)
        else:
            assert after == before or same(after, before), field.name
            assert type(after) is type(before), field.name


def test_an_estimate_without_chains_keeps_its_empty_shape(store, run):
    detail = make_estimate(chain_loss=np.empty((4, 0)))
    store.add_observation(run, 1, make_observation(7, name="llc", detail=detail))
    (observation,) = store.observations(run, "llc")
    assert observation.detail.chain_loss.shape == (4, 0)


def test_a_column_is_stored_like_its_observations(store, run):
    column = Column(
        steps=[1, 2, 3], values=[0.5, NAN, INF], epochs=[0, None, 1], timestamps=[1.5, 2.5, 3.5]
    )
    store.add_scalars(run, 1, "val_loss", column)
    first, second, third = store.observations(run, "val_loss")
    assert (first.value, first.epoch, first.timestamp, first.unit) == (0.5, 0, 1.5, "nats")
    assert first.status is EstimateStatus.OK
    assert math.isnan(second.value)
    assert second.status is EstimateStatus.DIVERGED
    assert second.reason == "val_loss is nan"
    assert (third.value, third.epoch, third.timestamp) == (INF, 1, 3.5)


def test_a_column_larger_than_a_statement_is_stored_whole(store, run):
    steps = list(range(3_001))
    values = [float(step) for step in steps]
    store.add_scalars(run, 1, "x", Column(steps, values, [None] * 3_001, values))
    found_steps, found_values, _ = store.history(run, "x")
    assert found_steps.tolist() == steps
    assert found_values.tolist() == values


def test_numpy_scalars_are_stored_as_numbers(store, run):
    store.add_observation(run, 1, make_observation(np.int64(4), np.float32(0.5)))
    (observation,) = store.observations(run, "train_loss")
    assert (observation.step, observation.value) == (4, 0.5)


def test_an_unknown_stream_has_an_empty_history(store, run):
    steps, values, stderrs = store.history(run, "never_seen")
    assert len(steps) == len(values) == len(stderrs) == 0


def test_a_run_is_described(store, run):
    store.add_observation(run, 1, make_observation(17))
    store.end_run(run, 1, RunState.FAILED, "ValueError: boom")
    info = store.run("demo")
    assert (info.id, info.name, info.attempt, info.last_step) == ("r1", "demo", 1, 17)
    assert (info.state, info.reason) == (RunState.FAILED, "ValueError: boom")
    assert info.config == {"seed": 3, "lr": "nan"}
    assert info.started_at <= info.ended_at


def test_a_run_of_this_process_is_running(store, run):
    assert store.run("demo").state is RunState.RUNNING
    assert store.run("demo").last_step is None


def test_runs_are_found_by_id_by_name_and_by_the_beginning_of_the_id(store):
    store.begin_run(name="demo", run_id="aaaa-1")
    latest, _ = store.begin_run(name="demo", run_id="aaaa-2")
    store.begin_run(name="other", run_id="bbbb-1")
    assert store.run("aaaa-1").id == "aaaa-1"
    assert store.run("demo").id == latest
    assert store.run("bbbb").id == "bbbb-1"
    assert [info.id for info in store.runs()] == ["bbbb-1", "aaaa-2", "aaaa-1"]
    with pytest.raises(StoreError, match=r"2 ids begin with 'aaaa': aaaa-2 \(demo\), aaaa-1"):
        store.run("aaaa")
    with pytest.raises(StoreError, match=r"no run 'cccc' .*known runs: other, demo"):
        store.run("cccc")


def test_runs_do_not_mix(store, run):
    other, _ = store.begin_run(name="other")
    store.add_observation(run, 1, make_observation(1, 0.5))
    store.add_observation(other, 1, make_observation(2, 0.25))
    store.add_transition(make_transition(other))
    assert store.history(run, "train_loss")[0].tolist() == [1]
    assert store.history(other, "train_loss")[0].tolist() == [2]
    assert store.transitions(run) == []
    assert len(store.transitions(other)) == 1


def test_names_and_streams_are_listed(store, run):
    store.add_observation(run, 1, make_observation(1, name="b"))
    store.add_observation(run, 1, make_observation(5, 2.5, name="a", unit="1"))
    store.add_observation(run, 1, make_observation(4, 1.5, name="a", unit="1"))
    assert store.names(run) == ["a", "b"]
    first, second = store.streams(run)
    assert (first.name, first.unit, first.count, first.last.value) == ("a", "1", 2, 2.5)
    assert (second.name, second.count) == ("b", 1)


@pytest.mark.parametrize("streamed", [TransitionStatus.ENDED, None])
def test_both_verdicts_on_a_transition_survive(store, run, streamed):
    hindsight = Hindsight(
        verdict=HindsightVerdict.CORRECTED, streamed=streamed, onset_step=70, score=INF
    )
    store.add_transition(make_transition(run))
    store.add_transition(make_transition(run, hindsight=hindsight))
    (found,) = store.transitions(run)
    assert found.hindsight == hindsight
    assert [t.hindsight for _, t in store.transition_changes("t1")] == [None, hindsight]


def test_a_transition_stored_before_there_was_hindsight_is_read(run):
    body = json.loads(encode_transition(make_transition(run)))
    assert "hindsight" not in body
    assert decode_transition(json.dumps(body)).hindsight is None


def test_what_a_later_version_adds_to_a_transition_is_passed_over(run):
    body = json.loads(encode_transition(make_transition(run)))
    assert decode_transition(json.dumps(body | {"foresight": 1})).id == "t1"


def test_a_transition_survives_whole(store, run):
    transition = make_transition(run)
    store.add_transition(transition)
    (found,) = store.transitions(run)
    assert math.isnan(found.after["val_loss"])
    assert math.isnan(found.evidence["val_loss"].value_after)
    alarm = dataclasses.replace(found.evidence["val_loss"], value_after=0.0)
    wanted = dataclasses.replace(transition.evidence["val_loss"], value_after=0.0)
    assert alarm == wanted
    assert dataclasses.replace(found, after={}, evidence={}) == dataclasses.replace(
        transition, after={}, evidence={}
    )


def test_a_transition_stands_as_last_said_and_keeps_each_change(store, run):
    statuses = [TransitionStatus.SUSPECTED, TransitionStatus.CONFIRMED, TransitionStatus.ENDED]
    for status in statuses:
        end = 120 if status is TransitionStatus.ENDED else None
        store.add_transition(make_transition(run, status=status, end_step=end))
    (found,) = store.transitions(run)
    assert (found.status, found.end_step) == (TransitionStatus.ENDED, 120)
    changes = store.transition_changes("t1")
    assert [change.status for _, change in changes] == statuses
    assert [at for at, _ in changes] == sorted(at for at, _ in changes)


# Attempts ---------------------------------------------------------------------------------------


def observe(store, run, attempt, steps):
    for step in steps:
        store.add_observation(run, attempt, make_observation(step, float(attempt)))


def test_a_resume_hides_what_came_after_its_step(store, run):
    observe(store, run, 1, range(10))
    assert store.begin_run(name="demo", run_id=run, attempt=2, resumed_step=5) == (run, 2)
    observe(store, run, 2, [6, 7])
    steps, values, _ = store.history(run, "train_loss")
    assert steps.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert values.tolist() == [1.0] * 6 + [2.0] * 2
    assert len(store.observations(run, "train_loss")) == 8
    assert store.streams(run)[0].count == 8
    assert len(store.history(run, "train_loss", superseded=True)[0]) == 12


def test_an_earlier_resume_cuts_every_attempt_before_it(store, run):
    observe(store, run, 1, range(10))
    store.begin_run(name="demo", run_id=run, attempt=2, resumed_step=8)
    observe(store, run, 2, range(9, 15))
    store.begin_run(name="demo", run_id=run, attempt=3, resumed_step=4)
    observe(store, run, 3, [5])
    steps, values, _ = store.history(run, "train_loss")
    assert steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert values.tolist() == [1.0] * 5 + [3.0]


def test_a_new_fit_that_resumes_nothing_hides_nothing(store, run):
    observe(store, run, 1, [1, 2])
    store.begin_run(name="demo", run_id=run, attempt=2)
    observe(store, run, 2, [3])
    assert store.history(run, "train_loss")[0].tolist() == [1, 2, 3]


def test_late_rows_of_a_superseded_attempt_stay_hidden(store, run):
    store.begin_run(name="demo", run_id=run, attempt=2, resumed_step=5)
    observe(store, run, 1, [4, 6])
    assert store.history(run, "train_loss")[0].tolist() == [4]


def test_one_checkpoint_resumed_twice_makes_two_attempts(store, run):
    assert store.begin_run(name="demo", run_id=run, attempt=2, resumed_step=5) == (run, 2)
    assert store.begin_run(name="demo", run_id=run, attempt=2, resumed_step=5) == (run, 3)
    assert store.run("demo").attempt == 3


def test_a_run_is_as_its_latest_attempt_and_began_with_its_first(store, run):
    began = store.run(run).started_at
    store.end_run(run, 1, RunState.FAILED, "boom")
    store.begin_run(name="demo", run_id=run, attempt=2, resumed_step=5)
    info = store.run(run)
    assert (info.state, info.reason, info.last_step) == (RunState.RUNNING, "", 5)
    assert info.started_at == began
    assert len(store.runs()) == 1


def test_a_transition_after_the_resumed_step_is_hidden_until_found_again(store, run):
    observe(store, run, 1, [90])
    store.add_transition(make_transition(run, 90, status=TransitionStatus.CONFIRMED))
    store.begin_run(name="demo", run_id=run, attempt=2, resumed_step=50)
    assert store.transitions(run) == []
    assert len(store.transitions(run, superseded=True)) == 1
    store.add_transition(make_transition(run, 91, attempt=2))
    (found,) = store.transitions(run)
    assert (found.attempt, found.detected_step) == (2, 91)


def test_a_resume_takes_back_what_was_said_later_of_an_earlier_transition(store, run):
    observe(store, run, 1, [90])
    store.add_transition(make_transition(run, 90, status=TransitionStatus.CONFIRMED))
    observe(store, run, 1, [200])
    store.add_transition(make_transition(run, 90, status=TransitionStatus.WITHDRAWN))
    assert store.transitions(run)[0].status is TransitionStatus.WITHDRAWN
    store.begin_run(name="demo", run_id=run, attempt=2, resumed_step=100)
    assert store.transitions(run)[0].status is TransitionStatus.CONFIRMED


# The file ---------------------------------------------------------------------------------------


def test_the_store_is_read_again_after_it_was_closed(tmp_path):
    with Store(tmp_path / "runs.db") as store:
        run, attempt = store.begin_run(name="demo")
        store.add_observation(run, attempt, make_observation(1))
        store.end_run(run, attempt, RunState.FINISHED)
    with Store(tmp_path / "runs.db", create=False) as again:
        assert again.run("demo").state is RunState.FINISHED
        assert again.history(run, "train_loss")[0].tolist() == [1]


def test_a_closed_store_takes_nothing_and_says_so_when_read(tmp_path):
    store = Store(tmp_path / "runs.db")
    run, attempt = store.begin_run(name="demo")
    store.close()
    store.close()
    store.add_observation(run, attempt, make_observation(1))
    assert store.queue_depth == 0
    with pytest.raises(StoreError, match="is closed"):
        store.runs()


def test_everything_stored_as_json_is_strict_json(tmp_path):
    with Store(tmp_path / "runs.db") as store:
        run, attempt = store.begin_run(name="demo", config={"x": INF, "path": tmp_path})
        store.add_transition(make_transition(run))
        detail = make_estimate()
        store.add_observation(run, attempt, make_observation(7, name="llc", detail=detail))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    raw = sqlite3.connect(tmp_path / "runs.db")
    for table, column in (("attempts", "config"), ("transitions", "body"), ("estimates", "body")):
        (text,) = raw.execute(f"SELECT {column} FROM phasewatch_{table}").fetchone()
        assert json.loads(text, parse_constant=refuse)
    raw.close()


def test_the_default_file_is_in_wal_mode(tmp_path):
    with Store(tmp_path / "runs.db") as store:
        store.begin_run(name="demo")
        raw = sqlite3.connect(tmp_path / "runs.db")
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        raw.close()
    assert [path.name for path in tmp_path.iterdir()] == ["runs.db"]
