"""What a run says of itself in a prompt and in a notebook."""

from __future__ import annotations

import pytest

from phasewatch.callbacks import TransitionMonitor
from phasewatch.monitor.core.errors import PhasewatchError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.run.watch import Watch
from support.history import estimate
from support.watched import sigmoid

HOSTILE = "<img src=x onerror=alert(1)>"
SETTINGS = {"store": "sqlite://", "exporter": {"enabled": False}, "observables": []}


def watched(name=HOSTILE, steps=400):
    """A run whose validation loss falls abruptly, still going on."""
    watch = Watch({**SETTINGS, "run_name": name})
    watch.start()
    for step in range(1, steps + 1):
        values = {"train_loss": 0.01, "val_loss": 4.0 - 3.99 * float(sigmoid(step, 200, 5))}
        watch.observe(step, values)
    watch.drain()
    return watch


@pytest.fixture(scope="module")
def run():
    watch = watched()
    yield watch
    watch.finish()


def test_a_prompt_shows_state_step_and_transitions(run):
    assert repr(run).startswith(f"<Watch {HOSTILE!r}: running at step 400, generalisation at step ")
    assert repr(Watch(SETTINGS | {"run_name": "new"})) == "<Watch 'new': not begun>"


def test_a_notebook_shows_the_same_as_text(run):
    shown = run._repr_html_()
    assert "<img" not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown
    assert "running, step 400" in shown
    (found,) = run.transitions
    assert f"severity {found.severity:.3g}" in shown


def test_a_plot_shows_the_run_while_it_goes_on_and_after_its_end(run):
    for watch in (run, watched("short", 20)):
        if watch is not run:
            watch.finish()
        (axis,) = watch.plot().axes
        assert sorted(axis.get_legend_handles_labels()[1]) == ["train_loss", "val_loss"]
        assert watch.plot()._repr_png_().startswith(b"\x89PNG")


def test_what_has_not_begun_has_no_plot():
    for one in (Watch(SETTINGS), TransitionMonitor(store="sqlite://", exporter=False)):
        with pytest.raises(PhasewatchError, match="nothing has been watched yet"):
            one.plot()


def test_a_monitor_says_what_its_run_says(run):
    monitor = TransitionMonitor(run_name="mine", exporter=False)
    assert repr(monitor) == "<TransitionMonitor 'mine': not begun>"
    assert "not begun" in monitor._repr_html_()
    monitor._watch = run
    assert repr(monitor) == repr(run).replace("Watch", "TransitionMonitor", 1)
    assert monitor._repr_html_() == run._repr_html_()
    assert len(monitor.plot().axes) == 1


def test_an_estimate_says_its_error_and_its_status():
    made = estimate(40, 12.0, EstimateStatus.UNCONVERGED)
    assert str(made) == "λ̂ = 12 ± 0.6 at step 40: unconverged (drift 0.31 is above 0.2)"
    shown = made._repr_html_()
    assert "<dt>R-hat</dt><dd>1.02</dd>" in shown
    assert "1,400 × sample" in shown
