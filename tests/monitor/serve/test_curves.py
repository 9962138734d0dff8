"""Histories in memory: bounded, and read on instead of again."""

from __future__ import annotations

import threading

import pytest

from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.serve.curves import Curves
from phasewatch.monitor.store.store import Store


@pytest.fixture
def store():
    with Store("sqlite://") as opened:
        opened.begin_run(name="r", run_id="r")
        yield opened


def add(store, name, *steps):
    for step in steps:
        store.add_observation("r", 1, Observation(name=name, step=step, value=float(step)))
    store.flush()


def test_what_was_not_asked_for_longest_goes_first(store):
    for name in "abc":
        add(store, name, *range(10))
    curves = Curves(store, max_held=25)
    info = store.run("r")
    for name in "abc":
        assert len(curves.history(info, name).steps) == 10
    assert curves.num_held == 20


def test_a_single_stream_is_held_however_long_it_is(store):
    add(store, "a", *range(50))
    curves = Curves(store, max_held=25)
    assert len(curves.history(store.run("r"), "a").steps) == 50


def test_who_cannot_wait_gets_a_rough_curve_and_the_whole_one_later(store, monkeypatch):
    add(store, "a", *range(1, 10_001))
    read, go_on = store.history, threading.Event()

    def slow(*arguments, every=1, **options):
        assert every > 1 or go_on.wait(30)
        return read(*arguments, every=every, **options)

    monkeypatch.setattr(store, "history", slow)
    curves = Curves(store)
    info = store.run("r")
    ((rough, is_rough),) = curves.histories(info, ["a"], patience=0.0)
    assert is_rough
    assert rough.steps.tolist() == [*range(5, 10_001, 5)]
    go_on.set()
    ((whole, is_rough),) = curves.histories(info, ["a"])
    assert not is_rough
    assert whole.steps.tolist() == [*range(1, 10_001)]
    curves.close()


def test_a_read_that_fails_is_told_and_tried_again(store, monkeypatch):
    add(store, "a", 1)
    curves = Curves(store)
    with monkeypatch.context() as broken:
        broken.setattr(store, "history", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            curves.history(store.run("r"), "a")
    assert curves.history(store.run("r"), "a").values.tolist() == [1.0]


def test_only_what_is_new_is_read(store, monkeypatch):
    add(store, "a", 1, 2, 3)
    curves = Curves(store)
    curves.history(store.run("r"), "a")
    asked = []
    read = store.history

    def watched(*arguments, **options):
        asked.append(options.get("after"))
        return read(*arguments, **options)

    monkeypatch.setattr(store, "history", watched)
    known = store.run("r")
    curves.history(known, "a")
    assert asked == []
    add(store, "a", 4, 5)
    assert curves.history(store.run("r"), "a").values.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert asked == [3]
