"""Running observables: failures, refusals, back-off, and what is told."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import replace

import pytest
import torch

from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError, UnknownNameError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.work import Cost, run_through
from phasewatch.monitor.observables import selected
from phasewatch.monitor.run.budget import GRACE_SECONDS
from phasewatch.monitor.run.measurements import Measuring
from phasewatch.monitor.run.roster import Roster
from phasewatch.monitor.run.subject import Given
from support.planned import Clock


class Constant:
    unit = "1"

    def __init__(self, name="constant", error=None, refuse=None) -> None:
        self.name = name
        self.error = error
        self.refuse = refuse
        self.calls: list[int] = []
        self.draws: list[float] = []

    def check(self, context):
        if self.refuse:
            raise RefusedError(self.refuse)

    def measure(self, context):
        self.calls.append(context.step)
        self.draws.append(float(torch.rand((), generator=context.generator)))
        if self.error:
            raise self.error
        return Observation(name=self.name, step=context.step, value=1.0)


def context(step: int) -> MeasureContext:
    return MeasureContext(
        step=step,
        epoch=3,
        copied=lambda: torch.nn.Linear(1, 1),
        params={},
        buffers={},
        generator=torch.Generator(),
    )


def make(*items, **settings) -> tuple[Measuring, Health]:
    health = Health()
    config = MonitorConfig.load({"every_n_steps": 1} | settings)
    return Measuring(Roster(config, health, items or None), health), health


def run(measuring: Measuring, steps) -> list[Observation]:
    return [o for step in steps for o in measuring.measure(step, context(step))]


def test_results_get_epoch_time_and_duration_and_are_counted() -> None:
    measuring, health = make(Constant())
    (observation,) = run(measuring, [1])
    assert observation.epoch == 3
    assert observation.timestamp > 0
    assert observation.duration_seconds > 0
    assert health.measurements["constant"] == 1


def test_a_failure_is_counted_said_once_and_followed_by_a_pause(caplog) -> None:
    bad, good = Constant("bad", error=ValueError("broken")), Constant("good")
    measuring, health = make(bad, good)
    with caplog.at_level(logging.WARNING, logger="phasewatch"):
        run(measuring, range(1, 21))
    assert bad.calls == [1, 3, 7, 15]
    assert good.calls == [*range(1, 21)]
    assert health.measurement_failures["bad"] == 4
    assert [r.message for r in caplog.records if "bad" in r.message] == [
        "measuring bad at step 1 failed: ValueError: broken; training goes on, further failures "
        "are counted in phasewatch_measurement_failures_total"
    ]


def test_after_a_success_the_pause_starts_anew() -> None:
    flaky = Constant(error=ValueError("broken"))
    measuring, _ = make(flaky)
    run(measuring, range(1, 4))
    flaky.error = None
    run(measuring, range(4, 9))
    assert flaky.calls == [1, 3, 7, 8]


def test_keyboard_interrupt_is_not_swallowed() -> None:
    measuring, _ = make(Constant(error=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(measuring, [1])


def test_a_refusal_in_mid_run_skips_it_with_its_reason() -> None:
    refusing = Constant(error=RefusedError("no heads"))
    measuring, health = make(refusing)
    run(measuring, range(1, 4))
    assert refusing.calls == [1]
    assert health.skipped["constant"] == 1
    assert health.skip_reasons["constant"] == "no heads"


def test_what_the_user_named_and_cannot_be_measured_is_an_error_before_the_first_step() -> None:
    measuring, _ = make(Constant(refuse="no attention heads found"))
    with pytest.raises(ConfigError, match="'constant' cannot be measured here: no attention heads"):
        measuring.roster.check(context(0))


def test_what_is_on_by_default_and_cannot_be_measured_is_skipped() -> None:
    health = Health()
    measuring = Measuring(Roster(MonitorConfig(), health), health)
    measuring.roster.skip("llc", "no loss")
    assert "llc" not in measuring.roster.names
    assert health.skipped["llc"] == 1


def test_an_unknown_observable_is_named_beside_the_known_ones() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown observable 'lcc' .*'llc'\?\); known: .*llc"
    ):
        make("lcc")


def test_an_object_that_is_no_observable_is_refused() -> None:
    with pytest.raises(ConfigError, match="lacks one of name, unit, measure"):
        make(object())


def test_one_name_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        make(Constant(), Constant())


def test_the_generator_depends_on_seed_step_and_name_alone() -> None:
    alone, beside = Constant("a"), Constant("a")
    run(make(alone)[0], [1, 2])
    run(make(Constant("b"), beside)[0], [1, 2])
    assert alone.draws == beside.draws
    assert alone.draws[0] != alone.draws[1]


def test_own_state_of_observables_travels() -> None:
    class Stateful(Constant):
        count = 0

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    first = Stateful()
    first.count = 7
    second = Stateful()
    make(second)[0].load_state_dict(make(first)[0].state_dict())
    assert second.count == 7


def test_the_forecast_says_what_the_run_has_no_room_for_and_how_to_get_it() -> None:
    expensive = Constant("dear")
    expensive.cost = Cost.GRADIENT
    measuring, _ = make(expensive, every_n_steps=None)
    measuring.planner.start(0, 1000)
    measuring.planner.predict("dear", 90.0, 1.0)
    measuring.planner.expect(10.0)
    (row,) = measuring.roster.forecast()
    assert (row.first, row.count, row.seconds) == ("–", 0, 90.0)
    assert row.note == (
        "one takes 90 s, this run's budget has 2.4 s left; raise overhead, or give it "
        "every_n_steps, which no budget holds back"
    )


def test_the_forecast_counts_the_turns_of_a_cadence() -> None:
    measuring, _ = make(Constant(), observables={"constant": {"every_n_steps": 20}})
    measuring.planner.start(0, 1000)
    (row,) = measuring.roster.forecast()
    assert (row.first, row.count, row.note) == ("step 20", 50, "")


def parts_of_all(*given, **settings) -> tuple[Measuring, Health]:
    health = Health()
    config = MonitorConfig.load({"every_n_steps": 1} | settings)
    return Measuring(Roster(config, health, given or None), health), health


def test_all_stands_for_everything_that_needs_no_arguments() -> None:
    for measuring, _ in (parts_of_all("all"), parts_of_all(observables="all")):
        assert list(measuring.roster.names) == selected("all")


def test_a_name_beside_all_comes_first_and_once() -> None:
    own = Constant()
    measuring, _ = parts_of_all("all", own, "weight_norm")
    assert measuring.roster.names[:2] == ("constant", "weight_norm")
    assert sorted(measuring.roster.names) == sorted({*selected("all"), "constant"})


def test_settings_of_one_beside_all_are_its_own() -> None:
    settings = {"all": {}, "refined_llc": {"parameters": {"max_parts": 1}}}
    with pytest.raises(ConfigError, match="max_parts is 1"):
        parts_of_all(observables=settings)


def test_of_all_what_does_not_fit_is_left_out_without_a_warning(caplog) -> None:
    measuring, health = parts_of_all("all")
    with caplog.at_level(logging.INFO, logger="phasewatch"):
        measuring.roster.check(context(0))  # a context without a loss
    assert "llc" not in measuring.roster.names
    assert health.skipped["llc"] == 1
    (told,) = [r for r in caplog.records if r.message.startswith("llc is not measured: ")]
    assert told.levelno == logging.INFO
    assert "loss_fn=" in told.message
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []


def test_what_is_named_beside_all_is_still_an_error_where_it_does_not_fit() -> None:
    measuring, _ = parts_of_all("all", "llc")
    with pytest.raises(ConfigError, match="'llc' cannot be measured here: there is no probe loss"):
        measuring.roster.check(context(0))


def test_what_is_on_by_default_and_does_not_fit_is_a_warning(caplog) -> None:
    measuring, _ = parts_of_all()
    with caplog.at_level(logging.INFO, logger="phasewatch"):
        measuring.roster.check(context(0))
    (told,) = [r for r in caplog.records if r.message.startswith("llc is not measured: ")]
    assert told.levelno == logging.WARNING


class Slow(Constant):
    """Takes a hundred steps of a second each, by a clock of its own."""

    cost = Cost.SAMPLING

    def __init__(self, clock, done=lambda step: None) -> None:
        super().__init__("slow")
        self.clock = clock
        self.done = done

    def measure(self, context):
        return run_through(self.measure_in_steps(context))

    def measure_in_steps(self, context):
        self.calls.append(context.step)
        for step in range(100):
            self.clock[0] += 1.0
            self.done(step)
            yield
        return Observation(name=self.name, step=context.step, value=1.0)


def slow(monkeypatch, *, done=lambda step: None, **settings):
    now = [0.0]
    measuring, health = make(Slow(now, done), **settings)
    measuring.planner.ledger.clock = lambda: now[0]
    measuring.planner.start(0, 1000)
    return measuring, health, now


def test_a_measurement_that_holds_up_training_shows_itself(monkeypatch, caplog) -> None:
    measuring, _, _ = slow(monkeypatch)
    measuring.planner.predict("slow", 100.0, 1.0)
    with caplog.at_level(logging.INFO, logger="phasewatch"):
        (found,) = measuring.measure(1, context(1))
    assert found.duration_seconds == 100.0
    messages = [record.message for record in caplog.records]
    assert messages[0] == "measuring slow of step 1: 2 s, about 98 s to go"
    assert 3 <= len(messages) <= 8


def test_within_a_budget_a_measurement_is_spread_over_the_training(monkeypatch) -> None:
    measuring, health, now = slow(monkeypatch, every_n_steps=None, overhead=0.05)
    measuring.planner.predict("slow", 100.0, 1.0)
    measuring.planner.loss_fell()
    found = []
    for step in range(1, 2500):
        now[0] += 1.0
        if measuring.planner.due(step):
            with measuring.planner.spending():
                found += measuring.measure(step, context(step))
    assert [o.step for o in found] == [measuring.roster.observables["slow"].calls[0]]
    assert found[0].duration_seconds == 100.0
    assert health.measurements["slow"] == 1
    assert measuring.planner.ledger.overhead_ratio <= 0.05


def test_a_signal_ends_what_is_being_measured_after_one_evaluation(monkeypatch) -> None:
    heard, after = [], []

    def done(step) -> None:
        if step == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        elif heard:
            after.append(step)

    theirs = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        measuring, health, _ = slow(monkeypatch, done=done)
        assert measuring.measure(1, context(1)) == []
        assert callable(signal.getsignal(signal.SIGTERM))
        assert not measuring.planner.due(2)
    finally:
        signal.signal(signal.SIGTERM, theirs)
    assert heard == [signal.SIGTERM]
    assert len(after) <= 1
    assert health.unfinished["slow"] == 1


def test_what_takes_gradients_or_chains_begins_one_at_a_time() -> None:
    class Costly(Constant):
        def __init__(self, name, cost):
            super().__init__(name)
            self.cost = cost

    costs = {"step": Cost.STEP, "forward": Cost.FORWARD, "a": Cost.GRADIENT, "b": Cost.SAMPLING}
    measuring, _ = make(
        *(Costly(name, cost) for name, cost in costs.items()), every_n_steps=None, overhead=0.05
    )
    assert measuring.planner.due_names(1) == ("step", "forward")
    measuring.planner.loss_fell()
    assert measuring.planner.due_names(2) == ("step", "forward", "a")


def test_a_subclass_with_a_measure_of_its_own_is_measured_by_it() -> None:
    class Base(Constant):
        def measure_in_steps(self, context):
            yield
            return Observation(name=self.name, step=context.step, value=1.0)

    class Own(Base):
        def measure(self, context):
            return Observation(name=self.name, step=context.step, value=2.0)

    class Both(Own):
        def measure_in_steps(self, context):
            yield
            return Observation(name=self.name, step=context.step, value=3.0)

    found = [run(make(kind())[0], [1])[0].value for kind in (Base, Own, Both)]
    assert found == [1.0, 2.0, 3.0]


class SlowToSee(Given):
    """A subject whose weights take two seconds to see."""

    def __init__(self, context, clock):
        super().__init__(context)
        self.clock = clock

    def live_context(self, step, epoch):
        self.clock.now += 2.0
        return self.context(step, epoch)


def test_what_seeing_the_weights_takes_is_booked_to_those_that_read_them() -> None:
    measuring, _ = make("weight_norm", "update_ratio")
    clock = measuring.planner.ledger.clock = Clock()
    measuring.turn(1, SlowToSee(replace(context(1), params={"w": torch.ones(2)}), clock))
    assert sum(a.seconds for a in measuring.planner.accounts.values()) == pytest.approx(2.0)


@pytest.mark.parametrize(("closing", "calls"), [(0.0, [9]), (GRACE_SECONDS, [])])
def test_the_last_turn_leaves_what_the_end_itself_takes(closing, calls) -> None:
    item = Constant()
    measuring, _ = make(item, every_n_steps=None, overhead=0.05)
    measuring.planner.predict("constant", 1.0, 0.1)
    measuring.planner.closing_seconds = closing
    measuring.last_turn(9, Given(context(9)), None)
    assert item.calls == calls
