"""Stored history as OpenMetrics: what is in it, thinned, repeated, and taken by promtool."""

import io
import math
import subprocess
from itertools import pairwise

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from phasewatch.monitor.core import metrics
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.core.transitions import TransitionKind, TransitionStatus
from phasewatch.monitor.prometheus.backfill import History
from phasewatch.monitor.store.store import Store
from support.needs import need_binary
from support.records import NAN, make_estimate, make_observation, make_transition

BEGIN = 1_700_000_000.0


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "runs.db") as store:
        store.begin_run(name='demo "x"\n', run_id="aaaa1111")
        yield store


def add(store, step, value=0.5, *, at, **changes):
    store.add_observation(
        "aaaa1111", 1, make_observation(step, value, timestamp=BEGIN + at, **changes)
    )


def samples(store, interval=1.0):
    """Samples by name: (labels but run, value, seconds since the begin)."""
    run = store.run("aaaa1111")
    text = io.StringIO()
    written = History(store, run, interval_seconds=interval).write(text)
    found = {}
    number = 0
    for family in text_string_to_metric_families(text.getvalue()):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("run") == metrics.label_value(run.name)
            assert labels.pop("run_id") == run.id
            at = round(float(sample.timestamp) - BEGIN, 3)
            found.setdefault(sample.name, []).append((labels, sample.value, at))
            number += 1
    assert number == written.num_samples
    return found


def test_values_keep_their_times(store):
    for step, at in ((1, 0.25), (2, 1.5), (3, 3.75)):
        add(store, step, step / 4, at=at)
    found = samples(store)
    split = {"split": "train"}
    assert found["phasewatch_loss_nats"] == [
        (split, 0.25, 0.25),
        (split, 0.5, 1.5),
        (split, 0.75, 3.75),
    ]
    assert [(value, at) for _, value, at in found["phasewatch_run_step"]] == [
        (1, 0.0),
        (2, 1.0),
        (3, 3.0),
    ]


def test_only_the_last_value_of_an_interval_is_kept(store):
    for step in range(1, 101):
        add(store, step, float(step), at=step / 40)
    seconds = [(value, at) for _, value, at in samples(store)["phasewatch_loss_nats"]]
    assert seconds == [(39, 0.975), (79, 1.975), (100, 2.5)]
    assert len(samples(store, 0.0)["phasewatch_loss_nats"]) == 100


def test_values_within_a_millisecond_are_one_sample(store):
    for step in range(1, 11):
        add(store, step, float(step), at=1 + step * 1e-5)
    assert [value for _, value, _ in samples(store, 0.0)["phasewatch_loss_nats"]] == [10]


def test_a_rare_value_is_repeated_while_the_run_lives(store):
    add(store, 1, 12.5, name="accuracy", unit="1", at=0.0)
    for step in range(2, 20):
        add(store, step, at=20.0 * step)
    for step in (20, 21):  # an hour of nothing lies before
        add(store, step, at=4000.0 + 20 * step)
    times = [at for _, _, at in samples(store)["phasewatch_observable_value"]]
    assert times[0] == 0.0
    gaps = [later - earlier for earlier, later in pairwise(times) if later < 380]
    assert len(gaps) >= 5
    assert all(30 <= gap <= 100 for gap in gaps)
    assert not [at for at in times if 380 < at < 4400]
    assert times[-1] == 4420.0


def test_estimates_have_error_status_and_diagnostics(store):
    estimate = make_estimate(rhat=1.5, ess=40.0)
    add(store, 1, 12.5, at=0.0, name="llc", unit="1", stderr=0.25, detail=estimate)
    found = samples(store)
    where = {"observable": "llc"}
    assert found["phasewatch_lambda_hat"][0] == (where, 12.5, 0.0)
    assert found["phasewatch_llc_rhat"][0] == (where, 1.5, 0.0)
    assert found["phasewatch_llc_ess"][0] == (where, 40.0, 0.0)
    status = {labels["status"]: value for labels, value, _ in found["phasewatch_llc_status"]}
    assert status == {s.value: float(s is EstimateStatus.UNCONVERGED) for s in EstimateStatus}
    assert "phasewatch_observable_value" not in found


def test_a_transition_is_counted_from_zero_when_it_was_detected(store, monkeypatch):
    run = store.run("aaaa1111")
    start = run.started_at
    for number, at in (("1", 10.0), ("2", 70.0)):
        store.add_transition(
            make_transition(
                "aaaa1111",
                detected_step=int(at),
                transition_id=number,
                detected_at=start + at,
                status=TransitionStatus.ENDED,
            )
        )
    store.add_transition(make_transition("aaaa1111", transition_id="3"))  # only suspected
    found = samples(store)
    transitions = found["phasewatch_transitions_total"]
    counts = [(value, round(at + BEGIN - start)) for _, value, at in transitions]
    assert counts == [(0, 0), (1, 10), (2, 70)]
    labels, _, _ = transitions[0]
    assert labels == {"kind": TransitionKind.GENERALISATION, "observable": "val_loss"}
    assert [value for _, value, _ in found["phasewatch_last_transition_step"]] == [10, 70]


def test_the_end_says_how_the_run_ended(store):
    add(store, 1, at=0.0)
    store.end_run("aaaa1111", 1, RunState.FAILED, "boom")
    found = samples(store, 0.0)["phasewatch_run_state"]
    last = {labels["state"]: value for labels, value, _ in found}
    assert last == {state.value: float(state is RunState.FAILED) for state in RunState}


def test_what_has_no_time_or_goes_back_in_time_is_left_out_and_counted(store):
    add(store, 1, 1.0, at=10.0)
    add(store, 2, 2.0, at=5.0)
    add(store, 3, 3.0, at=-BEGIN)
    text = io.StringIO()
    written = History(store, store.run("aaaa1111"), interval_seconds=1.0).write(text)
    assert written.num_left_out == 2
    assert [value for _, value, _ in samples(store)["phasewatch_loss_nats"]] == [1.0]


def test_values_that_are_not_finite_are_written_as_such(store):
    add(store, 1, NAN, at=0.0)
    ((_, value, _),) = samples(store)["phasewatch_loss_nats"]
    assert math.isnan(value)


def test_promtool_makes_blocks_of_hostile_names(store, tmp_path):
    for name in ('say "hi"', "a\nb", "back\\", "x" * 10_000, "\udcff", "żółć"):
        add(store, 1, at=1.0, name=name, unit=name[:5])
    file = tmp_path / "history.om"
    with file.open("w", encoding="utf-8") as out:
        History(store, store.run("aaaa1111"), interval_seconds=1.0).write(out)
    command = ["tsdb", "create-blocks-from", "openmetrics", str(file), str(tmp_path / "data")]
    made = subprocess.run([need_binary("promtool"), *command], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    assert [path for path in (tmp_path / "data").iterdir() if (path / "index").exists()]
