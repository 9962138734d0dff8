"""A measurement spread over the training is the same number, and counts only its own time."""

import math

import pytest
import torch

from phasewatch.monitor.core.together import Alone
from phasewatch.monitor.core.work import run_through
from phasewatch.monitor.sampling import measure_llc
from phasewatch.monitor.sampling.measure import llc_steps
from phasewatch.monitor.sampling.stopwatch import Stopwatch, paced


def taken(steps, pauses=None):
    """The result of a generator, and how often it paused."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value, count
        count += 1
        if pauses is not None:
            pauses()


@pytest.mark.parametrize("engine", ["auto", "vmap", "loop", "inplace"])
def test_chains_that_pause_after_each_evaluation_draw_the_same(
    context_of, model, data, quick, engine
):
    whole = measure_llc(context_of(model, [data]), quick(engine=engine))
    flags = []

    def training() -> None:  # what goes on meanwhile finds every switch as it left it
        flags.append(torch.backends.mha.get_fastpath_enabled())

    context = context_of(model, [data], pause=lambda: True)
    steps = llc_steps(context, quick(engine=engine))
    spread, pauses = taken(steps, training)
    assert pauses > 20
    assert set(flags) == {True}
    assert spread.lambda_hat == whole.lambda_hat
    assert spread.status == whole.status


def test_without_a_pause_nothing_is_yielded(context_of, model, data, quick):
    _, pauses = taken(llc_steps(context_of(model, [data]), quick()))
    assert pauses == 0


def test_the_deadline_counts_no_pauses(context_of, model, data, quick, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(Alone, "clock", lambda _: now[0])

    def an_hour() -> None:
        now[0] += 3600.0

    context = context_of(model, [data], pause=lambda: True, deadline_seconds=1.0)
    estimate, _ = taken(llc_steps(context, quick(num_draws=200, max_draws=200)), an_hour)
    assert estimate.num_draws + estimate.num_burnin == 200
    assert estimate.duration_seconds < 1.0


def test_a_measurement_that_is_left_ends_its_session(context_of, model, data, quick):
    steps = llc_steps(context_of(model, [data], pause=lambda: True), quick(engine="inplace"))
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(20):
        next(steps)
    steps.close()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_stopwatch_counts_only_while_it_runs():
    now = [0.0]
    watch = Stopwatch(math.inf, clock=lambda: now[0])
    with watch.running():
        now[0] += 2.0
        assert watch.seconds == 2.0
    now[0] += 50.0
    assert watch.seconds == 2.0


def test_a_session_is_left_when_a_step_raises():
    inside = []

    class Session:
        def __enter__(self):
            inside.append(True)

        def __exit__(self, *_):
            inside.append(False)

    def failing():
        yield
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_through(paced(failing(), lambda: False, Session))
    assert inside == [True, False]
