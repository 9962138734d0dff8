"""Running observables: failures, refusals, back-off, and what is told."""

from __future__ import annotations

import logging

import pytest
import torch

from phasewatch.monitor.config import MonitorConfig
from phasewatch.monitor.errors import ConfigError, RefusedError, UnknownNameError
from phasewatch.monitor.health import Health
from phasewatch.monitor.measuring import Measuring
from phasewatch.monitor.observables import selected
from phasewatch.monitor.types import Cost, MeasureContext, Observation


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
    return Measuring(config, health, items or None), health


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
        measuring.check(context(0))


def test_what_is_on_by_default_and_cannot_be_measured_is_skipped() -> None:
    health = Health()
    measuring = Measuring(MonitorConfig(), health)
    measuring.skip("llc", "no loss")
    assert "llc" not in measuring.names
    assert health.skipped["llc"] == 1


def test_an_unknown_observable_is_named_beside_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown observable 'lcc'; known: .*llc"):
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


def test_too_few_measurements_within_the_budget_are_told_once(caplog) -> None:
    measuring, _ = make(Constant(), every_n_steps=None)
    measuring.planner.due(1)
    measuring.planner.charge("constant", 1, 1.0)
    measuring.planner.expect(10.0)
    with caplog.at_level(logging.WARNING, logger="phasewatch"):
        measuring.tell_if_few()
        measuring.tell_if_few()
    (record,) = caplog.records
    assert "constant will be measured about 2 times" in record.message
    assert "every_n_steps" in record.message


def parts_of_all(*given, **settings) -> tuple[Measuring, Health]:
    health = Health()
    config = MonitorConfig.load({"every_n_steps": 1} | settings)
    return Measuring(config, health, given or None), health


def test_all_stands_for_everything_that_needs_no_arguments() -> None:
    for measuring, _ in (parts_of_all("all"), parts_of_all(observables="all")):
        assert list(measuring.names) == selected("all")


def test_a_name_beside_all_comes_first_and_once() -> None:
    own = Constant()
    measuring, _ = parts_of_all("all", own, "weight_norm")
    assert measuring.names[:2] == ("constant", "weight_norm")
    assert sorted(measuring.names) == sorted({*selected("all"), "constant"})


def test_settings_of_one_beside_all_are_its_own() -> None:
    settings = {"all": {}, "refined_llc": {"parameters": {"max_parts": 1}}}
    with pytest.raises(ConfigError, match="max_parts is 1"):
        parts_of_all(observables=settings)


def test_of_all_what_does_not_fit_is_left_out_without_a_warning(caplog) -> None:
    measuring, health = parts_of_all("all")
    with caplog.at_level(logging.INFO, logger="phasewatch"):
        measuring.check(context(0))  # a context without a loss
    assert "llc" not in measuring.names
    assert health.skipped["llc"] == 1
    (told,) = [r for r in caplog.records if r.message.startswith("llc is not measured: ")]
    assert told.levelno == logging.INFO
    assert "loss_fn=" in told.message
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []


def test_what_is_named_beside_all_is_still_an_error_where_it_does_not_fit() -> None:
    measuring, _ = parts_of_all("all", "llc")
    with pytest.raises(ConfigError, match="'llc' cannot be measured here: there is no probe loss"):
        measuring.check(context(0))


def test_what_is_on_by_default_and_does_not_fit_is_a_warning(caplog) -> None:
    measuring, _ = parts_of_all()
    with caplog.at_level(logging.INFO, logger="phasewatch"):
        measuring.check(context(0))
    (told,) = [r for r in caplog.records if r.message.startswith("llc is not measured: ")]
    assert told.levelno == logging.WARNING


def test_a_long_first_measurement_is_told_once(monkeypatch, caplog) -> None:
    monkeypatch.setattr("phasewatch.monitor.measuring.LONG_SECONDS", 0.0)
    measuring, _ = make(Constant(), every_n_steps=None, overhead=0.05)
    with caplog.at_level(logging.INFO, logger="phasewatch"):
        for step in (1, 2, 3):
            measuring.planner._accounts["constant"].cost = None
            measuring.measure(step, context(step))
    (record,) = caplog.records
    assert record.message.startswith("the first measurement of constant, at step 1, took 0 s; all")
    assert "limited by 5% of the time (`overhead`)" in record.message


def test_what_takes_gradients_or_chains_begins_one_at_a_time() -> None:
    class Costly(Constant):
        def __init__(self, name, cost):
            super().__init__(name)
            self.cost = cost

    costs = {"step": Cost.STEP, "forward": Cost.FORWARD, "a": Cost.GRADIENT, "b": Cost.SAMPLING}
    measuring, _ = make(
        *(Costly(name, cost) for name, cost in costs.items()), every_n_steps=None, overhead=0.05
    )
    assert measuring.planner.due_names(1) == ("step", "forward", "a")
