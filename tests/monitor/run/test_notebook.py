"""The table of a run in a notebook: what it shows, how often, and when there is none."""

from __future__ import annotations

import sys
import types

import pytest

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.meaning import Meanings
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.run import notebook
from phasewatch.monitor.run.notebook import EVERY_SECONDS, MAX_ROWS, SHARE, LiveTable
from phasewatch.monitor.run.watch import Watch
from support.history import transition

HOSTILE = "<img src=x onerror=alert(1)>"


class Screen:
    """Keeps every picture; each takes `seconds` of its own clock."""

    def __init__(self, seconds=0.0):
        self.pictures, self.now, self.seconds = [], 0.0, seconds

    def show(self, picture):
        self.pictures.append(picture)
        self.now += self.seconds

    def clock(self):
        return self.now

    @property
    def latest(self):
        return self.pictures[-1]["text/html"]


def table(screen, name="mine", health=None):
    return LiveTable(name, health or Health(), Meanings(), screen.show, screen.clock)


def seen(name, step=1, value=0.5, **more):
    return Observation(name=name, step=step, value=value, **more)


def test_it_shows_the_latest_values_with_their_errors_and_what_was_found():
    screen, health = Screen(), Health(step=1200, steps_per_second=250.0, overhead_ratio=0.031)
    made = table(screen, HOSTILE, health)
    made.emit(seen("weight_norm"))
    made.emit(seen("train_loss", 1100))
    made.emit(seen("train_loss", 1200, 0.25))
    made.emit(seen("llc", 900, 12.0, stderr=0.4, status=EstimateStatus.UNCONVERGED))
    made.notify(transition(status=TransitionStatus.CONFIRMED))
    health.state = RunState.FINISHED
    made.close()
    shown = screen.latest
    assert "<img" not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown
    assert "finished, step 1,200, 250 steps a second, monitoring takes 3.1 % of the time" in shown
    assert "<td>train_loss</td><td>0.25</td><td>1,200</td>" in shown
    assert "<td>llc</td><td>12 ± 0.4 (unconverged)</td><td>900</td>" in shown
    assert shown.index("train_loss") < shown.index("weight_norm"), "what leads comes first"
    assert "<li>generalisation, from step 500; severity 1.25</li>" in shown
    assert "finished at step 1,200, generalisation at step 500" in screen.pictures[-1]["text/plain"]


def test_what_is_withdrawn_says_so():
    screen = Screen()
    made = table(screen)
    for status in (TransitionStatus.CONFIRMED, TransitionStatus.WITHDRAWN):
        made.notify(transition(status=status))
    made.close()
    assert screen.latest.count("<li>") == 1
    assert "withdrawn: it was no generalisation" in screen.latest


def test_of_many_streams_it_shows_some_and_counts_the_others():
    screen = Screen()
    made = table(screen)
    for index in range(MAX_ROWS + 30):
        made.emit(seen(f"metric_{index}"))
    made.close()
    assert screen.latest.count("<tr><td>") == MAX_ROWS
    assert "and 30 more" in screen.latest


def test_it_is_drawn_at_most_once_a_second_and_once_at_the_end():
    screen = Screen()
    made = table(screen)
    for step in range(1000):
        made.emit(seen("train_loss", step))
        screen.now = step / 250
    assert len(screen.pictures) == 4
    made.close()
    assert len(screen.pictures) == 5
    assert "<td>999</td>" in screen.latest


def test_a_slow_front_end_sees_it_less_often():
    screen = Screen(seconds=0.02)
    made = table(screen)
    made.emit(seen("train_loss"))
    for part, pictures in ((0.9, 1), (1.1, 2)):
        screen.now = 0.02 + part * max(EVERY_SECONDS, 0.02 / SHARE)
        made.emit(seen("train_loss"))
        assert len(screen.pictures) == pictures


class Display:
    """IPython's, as far as it is called: a first display, and its handle."""

    def __init__(self, fails=False):
        self.made, self.updates, self.fails = [], [], fails

    def display(self, picture, *, raw, display_id):
        assert raw
        if self.fails:
            raise OSError("the front end is gone")
        self.made.append((display_id, picture))
        return types.SimpleNamespace(update=self.update)

    def update(self, picture, *, raw):
        assert raw
        self.updates.append(picture)


@pytest.fixture
def ipython(monkeypatch):
    """Stands for a process in which IPython runs; returns what sets its kernel."""

    def put(kernel, **settings):
        display = Display(**settings)
        shell = types.SimpleNamespace(kernel=kernel)
        package = types.ModuleType("IPython")
        package.get_ipython = lambda: shell
        module = types.ModuleType("IPython.display")
        module.display = display.display
        monkeypatch.setitem(sys.modules, "IPython", package)
        monkeypatch.setitem(sys.modules, "IPython.display", module)
        return display

    return put


def run(**settings):
    settings = {"store": "sqlite://", "exporter": {"enabled": False}, "observables": []} | settings
    with Watch(settings) as watch:
        for step in range(1, 20):
            watch.observe(step, {"train_loss": 1.0 / step})
    return watch


def test_a_run_in_a_notebook_has_one_display_and_brings_it_up_to_date(ipython):
    display = ipython(kernel=object())
    watch = run()
    ((key, _),) = display.made
    assert watch.run_id in key
    assert "finished, step 19" in display.updates[-1]["text/html"]
    assert watch.health.sink_failures["LiveTable"] == 0


def test_the_next_fit_has_a_display_of_its_own(ipython):
    display = ipython(kernel=object())
    for _ in range(2):
        run(run_name="again")
    assert len({key for key, _ in display.made}) == 2


def test_without_a_kernel_or_switched_off_or_in_a_child_nothing_is_shown(ipython, monkeypatch):
    display = ipython(kernel=None)
    run()
    display = ipython(kernel=object())
    run(notebook=False)
    monkeypatch.setattr(notebook.multiprocessing, "parent_process", lambda: object())
    run()
    assert display.made == []
    monkeypatch.delitem(sys.modules, "IPython")
    run()
    assert "IPython" not in sys.modules


def test_a_front_end_that_fails_is_counted_and_the_run_goes_on(ipython):
    ipython(kernel=object(), fails=True)
    watch = run()
    assert watch.health.sink_failures["LiveTable"] >= 1
    assert watch.history("train_loss").steps.tolist() == [*range(1, 20)]
