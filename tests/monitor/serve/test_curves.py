"""Histories in memory: bounded, and read on instead of again."""

from __future__ import annotations

import pytest

from phasewatch.monitor.core.types import Observation
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
