"""The thread beside training: order, failures, threads that end, forks, and nothing lost."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch

from phasewatch.monitor import Watch
from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.meaning import THINNING
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.replay.recorded import compare, replay
from phasewatch.monitor.run import road, watch
from phasewatch.monitor.run.budget import GRACE_SECONDS
from phasewatch.monitor.run.portions import split
from phasewatch.monitor.store.store import Store
from phasewatch.monitor.transitions import thinning
from phasewatch.monitor.transitions.pipeline import Detection
from support.records import make_estimate
from support.scripted import Scripted

THREAD = "phasewatch-road"


@pytest.fixture
def settings(tmp_path):
    return {
        "run_name": "test",
        "store": str(tmp_path / "runs.db"),
        "exporter": {"enabled": False},
        "observables": [],
        "every_n_steps": 10,
    }


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def curve(num: int, falls: tuple[int, ...], seed: int = 0):
    """A loss on plateaus, with falls by a factor of five within a few steps."""
    steps = np.arange(1, num + 1)
    fallen = sum(0.5 + 0.5 * np.tanh((steps - at) / 6.0) for at in falls)
    noise = 0.02 * np.random.default_rng(seed).standard_normal(num)
    return np.exp(1.0 - 1.6 * fallen + noise)


def feed(watch: Watch, curves, drain_every: int | None = None) -> None:
    for index in range(len(next(iter(curves.values())))):
        watch.observe(index + 1, {name: float(v[index]) for name, v in curves.items()}, epoch=0)
        if drain_every and index % drain_every == 0:
            watch.drain()


def found(watch: Watch):
    return [
        (t.kind, t.onset_step, t.detected_step, t.end_step, t.status) for t in watch.transitions
    ]


def test_what_is_found_depends_neither_on_the_thread_nor_on_the_cuts(settings, monkeypatch) -> None:
    curves = {"train_loss": curve(3000, (900, 2000)), "val_loss": curve(3000, (1400,), 1)}
    results = []
    for beside, every in ((True, None), (True, 37), (True, 411), (False, 100)):
        if not beside:
            monkeypatch.setattr(Detection, "is_ours", False)
        with Watch(settings) as watched:
            feed(watched, curves, every)
            watched.drain()
            assert bool(threads()) is beside
        results.append(found(watched))
        with Store(settings["store"]) as store:
            outcome = replay(store, store.run(watched.run_id))
            pairs = compare(store.transitions(watched.run_id), outcome.transitions)
            assert {str(pair.verdict) for pair in pairs} == {"same"}
    assert len(results[0]) >= 2
    assert all(result == results[0] for result in results)


def test_the_training_thread_does_not_wait_for_the_detectors(settings, monkeypatch) -> None:
    held = threading.Event()
    detect = Detection.take_columns

    def slow(self, columns, *others):
        held.wait(30)
        return detect(self, columns, *others)

    monkeypatch.setattr(Detection, "take_columns", slow)
    with Watch(settings) as watched:
        for step in range(1, 1001):
            watched.observe(step, {"train_loss": 1.0})
        assert watched._road.num_waiting > 0
        held.set()
        watched.drain()
        assert watched._road.num_waiting == 0
        assert watched._detection.state_dict()["seen"] == {"train_loss": 1000}
        assert watched.health.step == 1000


def test_a_checkpoint_holds_everything_that_was_observed_before_it(settings) -> None:
    with Watch(settings) as watched:
        feed(watched, {"train_loss": curve(700, (300,))})
        state = watched.state_dict()
    assert state["detection"]["seen"] == {"train_loss": 700}


def test_a_checkpoint_waits_only_so_long_and_says_what_is_missing(
    settings, monkeypatch, caplog
) -> None:
    held = threading.Event()
    monkeypatch.setattr(watch, "STATE_SECONDS", 0.2)
    monkeypatch.setattr(road.Road, "_detect", lambda self, columns: held.wait(30))
    with Watch(settings) as watched:
        feed(watched, {"train_loss": np.ones(300)})
        begin = time.monotonic()
        watched.state_dict()
        assert time.monotonic() - begin < 10.0
        assert "300 points behind this checkpoint" in caplog.text
        held.set()


def test_threads_end_with_the_run_and_with_a_run_that_is_forgotten(settings) -> None:
    with Watch(settings) as watched:
        assert not threads()  # nothing to do, no thread
        watched.observe(1, {"a": 1.0})
        watched.drain()
        (thread,) = threads()
        assert thread.daemon
    assert not threads()
    forgotten = Watch(settings)
    forgotten.start()
    forgotten.observe(1, {"a": 1.0})
    forgotten.drain()
    (thread,) = threads()
    store = forgotten.store
    del forgotten
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    store.close()


@pytest.mark.parametrize("where", ["take_columns", "refresh_scores"])
def test_a_failure_in_the_thread_is_counted_told_once_and_survived(
    settings, monkeypatch, caplog, where
) -> None:
    def broken(self, *arguments):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(Detection, where, broken)
    with Watch(settings) as watched:
        for begin in (0, 10, 20):
            for step in range(begin + 1, begin + 11):
                watched.observe(step, {"train_loss": 1.0})
            watched.drain()
        assert threads()
        assert watched.history("train_loss")[0].tolist() == [*range(1, 31)]
    assert watched.health.measurement_failures["monitor"] >= 3
    assert caplog.text.count("ZeroDivisionError: inside") == 1


def test_even_a_value_that_ends_threads_does_not_end_this_one(settings, monkeypatch) -> None:
    calls = []

    def leaving(self, columns, *others):
        calls.append(threading.current_thread().name)
        raise SystemExit

    monkeypatch.setattr(Detection, "take_columns", leaving)
    with Watch(settings) as watched:
        for step in (1, 2):
            watched.observe(step, {"train_loss": 1.0})
            watched.drain()
        assert calls == [THREAD, THREAD]
        assert watched.history("train_loss")[0].tolist() == [1, 2]


class Noting:
    """A sink that notes who calls it."""

    latest_only = False

    def __init__(self) -> None:
        self.callers: set[str] = set()
        self.said: list[tuple[str, int]] = []

    def emit(self, observation):
        self.callers.add(threading.current_thread().name)
        self.said.append((observation.name, observation.step))

    def notify(self, transition):
        self.callers.add(threading.current_thread().name)
        self.said.append((str(transition.status), transition.detected_step))

    def flush(self): ...

    def close(self): ...


@pytest.mark.parametrize("seconds", [0.5, 1e4])
def test_for_looking_back_at_the_end_no_more_is_kept_than_half_of_what_is_there(
    settings, seconds
) -> None:
    with Watch(settings) as watched:
        watched.observe(1, {"train_loss": 1.0})
        watched.drain()
        watched._road.cpu_seconds = seconds
        watched._refresh_health(watched._sinks)
        kept = watched._planner.closing_seconds
    assert kept == min(watch.CLOSING_SHARE * seconds, GRACE_SECONDS / 2)


def test_a_sink_of_the_users_is_called_from_the_training_thread_in_order(settings) -> None:
    sink = Noting()
    with Watch(settings, sinks=[sink]) as watched:
        feed(watched, {"train_loss": curve(1500, (700,))}, drain_every=100)
    assert sink.callers == {threading.current_thread().name}
    steps = [step for name, step in sink.said if name == "train_loss"]
    assert steps == [*range(1, 1501)]
    confirmed = next(i for i, (what, _) in enumerate(sink.said) if what == "confirmed")
    before = [step for name, step in sink.said[:confirmed] if name == "train_loss"]
    assert sink.said[confirmed][1] <= max(before)


class Estimates(Noting):
    takes_scalars = False


def test_a_sink_that_takes_no_scalars_is_shown_what_carries_a_detail_and_transitions(
    settings, monkeypatch
) -> None:
    entered = []
    monkeypatch.setattr(
        "phasewatch.monitor.run.sinks.unfelt",
        lambda: entered.append(None) or contextlib.nullcontext(),
    )
    sink = Estimates()
    with Watch(settings, sinks=[sink]) as watched:
        feed(watched, {"train_loss": curve(1500, (700,))}, drain_every=100)
        watched.observe_estimate(1501, make_estimate())
    names = {name for name, _ in sink.said}
    assert "train_loss" not in names
    assert {"llc", "confirmed"} <= names
    assert len(entered) < 15  # fifteen hundred values cost training no delivery


def test_a_detector_of_the_users_runs_in_the_training_thread(settings) -> None:
    callers = set()

    class Mine(Scripted):
        def update(self, step, value, stderr=None):
            callers.add(threading.current_thread().name)
            return super().update(step, value, stderr)

    with Watch(settings, detectors={"train_loss": Mine(50, 80)}) as watched:
        feed(watched, {"train_loss": curve(600, (45,)), "other": np.ones(600)})
        assert not threads()
    assert callers == {threading.current_thread().name}
    assert watched.transitions[0].status is TransitionStatus.ENDED


def random_states():
    numbers = np.random.get_state()[1].tolist()  # noqa: NPY002 - what training draws from
    return random.getstate(), numbers, torch.get_rng_state().tolist()


def test_the_thread_draws_no_random_numbers(settings) -> None:
    settings["alerts"] = {"targets": ["json://127.0.0.1:9"], "grace_seconds": 0.0}
    with Watch(settings) as watched:
        feed(watched, {"a": np.ones(10)})
        watched.drain()
        before = random_states()
        feed(watched, {"train_loss": curve(1500, (700,)), "accuracy": curve(1500, (900,), 1)})
        watched.drain()
        assert watched.transitions
        assert random_states() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_has_no_part_in_it_and_never_waits(settings) -> None:
    with Watch(settings) as watched:
        feed(watched, {"train_loss": np.ones(300)})
        watched.drain()
        watched.observe(301, {"train_loss": 1.0})
        with watched._road.lock:  # held when the child is born
            child = os.fork()
            if child == 0:
                try:
                    watched.observe(302, {"train_loss": 1.0})
                    watched.drain()
                    ok = watched.transitions == [] and not threads()
                    os._exit(0 if ok else 1)
                finally:
                    os._exit(2)
        deadline = time.monotonic() + 20
        while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert done == (child, 0)
        assert watched.history("train_loss")[0].tolist() == [*range(1, 302)]


def test_a_process_that_ends_without_finishing_the_run_loses_nothing(settings) -> None:
    program = f"""
        from phasewatch.monitor import Watch
        watch = Watch({settings!r})
        watch.start()
        for step in range(1, 1001):
            watch.observe(step, {{"train_loss": 1.0 / step}})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)
    with Store(settings["store"]) as store:
        steps, values, _ = store.history(store.run("test").id, "train_loss")
    assert steps.tolist() == [*range(1, 1001)]
    np.testing.assert_allclose(values, 1.0 / np.arange(1, 1001))


def test_where_no_thread_can_be_started_the_training_thread_does_it(
    settings, monkeypatch, caplog
) -> None:
    start = threading.Thread.start

    def refuse(self):
        if self.name == THREAD:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Watch(settings) as watched:
        feed(watched, {"train_loss": curve(1500, (700,))})
    assert watched.transitions
    assert watched.history("train_loss")[0].size == 1500
    assert caplog.text.count("no thread can be started") == 1


def test_more_than_the_stores_queue_holds_is_not_lost(settings, monkeypatch) -> None:
    monkeypatch.setattr("phasewatch.monitor.store.store.CAPACITY", 500)
    monkeypatch.setattr(Store.__init__, "__kwdefaults__", {"create": True, "capacity": 500})
    with Watch(settings) as watched:
        feed(watched, {f"m{i}": np.ones(600) for i in range(20)})
        assert all(watched.history(f"m{i}")[0].size == 600 for i in range(20))
    assert watched.health.store_dropped == 0


def test_thinning_is_counted_told_once_stored_and_replayed_and_loses_nothing(
    settings, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(thinning, "ALLOWANCE_SECONDS", 0.0)
    monkeypatch.setattr(watch, "DETECTION_SHARE", 1e-6)
    curves = {f"metric{i}": curve(4000, (), i) for i in range(12)}
    curves = {"train_loss": curve(4000, (2000,)), **curves, "late_loss": curve(4000, (3000,), 99)}
    with caplog.at_level(logging.WARNING, logger="phasewatch"), Watch(settings) as watched:
        feed(watched, curves, drain_every=250)
        for name, values in curves.items():
            np.testing.assert_array_equal(
                watched.history(name, include_unconverged=True).values, values
            )
        levels = watched.history(THINNING)
    assert levels[0].size > 0
    assert watched.health.thinned_points > 4000
    assert watched.health.store_dropped == 0
    assert caplog.text.count("phasewatch_thinned_points_total") == 1
    onsets = [t.onset_step for t in watched.transitions]
    assert any(abs(onset - 2000) <= 64 for onset in onsets), onsets
    with Store(settings["store"]) as store:
        outcome = replay(store, store.run(watched.run_id))
        pairs = compare(store.transitions(watched.run_id), outcome.transitions)
    assert {str(pair.verdict) for pair in pairs} == {"same"}


def test_a_thinned_run_goes_on_thinned_after_a_resume(settings, monkeypatch) -> None:
    monkeypatch.setattr(thinning, "ALLOWANCE_SECONDS", 0.0)
    monkeypatch.setattr(watch, "DETECTION_SHARE", 1e-6)
    curves = {f"metric{i}": np.ones(1000) for i in range(12)}
    first = Watch(settings)
    first.start()
    feed(first, curves, drain_every=250)
    state = first.state_dict()
    first.finish()
    level, thinned = first._thinner.level, first.health.thinned_points
    assert level > 0
    second = Watch(settings)
    second.load_state_dict(state)
    second.start(step=1000)
    assert second._thinner.level == level
    assert second.health.thinned_points == 0 < thinned  # it counts this process
    second.finish()


def test_the_time_of_the_threads_is_counted(settings) -> None:
    with Watch(settings) as watched:
        feed(watched, {"train_loss": curve(2000, ())})
        watched.drain()
        during = watched.health.beside_seconds_total
    assert 0.0 < during <= watched.health.beside_seconds_total


def test_transitions_can_be_read_while_they_are_found(settings) -> None:
    with Watch(settings) as watched:
        curves = {f"loss{i}": curve(2000, (300 + 100 * i,), i) for i in range(8)}
        for index in range(2000):
            watched.observe(index + 1, {name: float(v[index]) for name, v in curves.items()})
            onsets = [t.onset_step for t in watched.transitions]
            assert onsets == sorted(onsets)
        watched.drain()
        assert watched.transitions


def test_parts_keep_every_point_and_never_cut_within_a_step() -> None:
    steps = sorted([*range(1, 1001), 500, 500])
    dense = Column(steps, [0.0] * len(steps), [None] * len(steps), [0.0] * len(steps))
    sparse = Column([3, 500, 1000], [0.0] * 3, [None] * 3, [0.0] * 3)
    parts = list(split({"dense": dense, "sparse": sparse}, 100))
    assert len(parts) > 5
    for name, column in (("dense", dense), ("sparse", sparse)):
        assert [step for part in parts if name in part for step in part[name].steps] == column.steps
    ends = [max(c.steps[-1] for c in part.values()) for part in parts]
    begins = [min(c.steps[0] for c in part.values()) for part in parts]
    assert all(end < begin for end, begin in zip(ends, begins[1:], strict=False))


def test_columns_whose_steps_go_back_stay_together() -> None:
    steps = [*range(500), *range(500)]
    column = Column(steps, [0.0] * 1000, [None] * 1000, [0.0] * 1000)
    assert list(split({"a": column}, 10)) == [{"a": column}]
