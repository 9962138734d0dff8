"""One watched run, without any framework: the road of a number, life cycle, failures, resume."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from phasewatch.monitor import Watch
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.meaning import Meanings
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.run import watch as watch_module
from phasewatch.monitor.sampling import estimate_llc
from phasewatch.monitor.store.store import Store
from support.scripted import Fall, Scripted


class Collecting:
    def __init__(self, fails=()) -> None:
        self.observations: list[Observation] = []
        self.transitions = []
        self.closed = 0
        self.fails = fails

    def emit(self, observation):
        if "emit" in self.fails:
            raise OSError("no route")
        self.observations.append(observation)

    def notify(self, transition):
        self.transitions.append(transition)

    def flush(self): ...

    def close(self):
        self.closed += 1


@pytest.fixture
def settings(tmp_path):
    return {
        "run_name": "test",
        "store": str(tmp_path / "runs.db"),
        "exporter": {"enabled": False},
        "observables": ["weight_norm"],
        "every_n_steps": 10,
    }


def feed(watch: Watch, steps, value=lambda step: 1.0) -> None:
    for step in steps:
        watch.observe(step, {"val_loss": value(step)}, epoch=step // 10)


def test_what_opening_the_store_takes_is_in_the_ledger(settings, monkeypatch) -> None:
    real = watch_module.open_store

    def slow(*args):
        time.sleep(0.3)
        return real(*args)

    monkeypatch.setattr(watch_module, "open_store", slow)
    watch = Watch(settings)
    watch.start()
    watch.finish()
    assert watch.health.monitor_seconds_total >= 0.3


def test_numbers_and_tensors_arrive_in_the_store_with_their_exact_steps(settings) -> None:
    with Watch(settings) as watch:
        for step in range(1, 1001):
            watch.observe(step, {"train_loss": torch.tensor(1.0 / step), "accuracy": 0.5})
        steps, values, stderrs = watch.history("train_loss")
    assert steps.tolist() == [*range(1, 1001)]
    np.testing.assert_allclose(values, [1.0 / step for step in range(1, 1001)], rtol=1e-6)
    assert np.isnan(stderrs).all()
    assert watch.history("accuracy")[0].size == 1000


def test_an_estimate_made_outside_is_watched_as_the_watchs_own(settings) -> None:
    model = torch.nn.Linear(2, 1)
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    batch = (x, model(x).detach())

    def loss(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)

    sink = Collecting()
    with Watch(settings, sinks=[sink]) as watch:
        with watch.spending():
            estimate = estimate_llc(model, [batch], loss, n_samples=200)
        watch.observe_estimate(7, estimate, epoch=1)
        watch.observe_estimate(8, replace(estimate, status=EstimateStatus.UNCONVERGED))
        steps, values, stderrs = watch.history("llc")
    assert steps.tolist() == [7, 8]
    assert values[0] == estimate.lambda_hat
    assert stderrs[0] == estimate.lambda_stderr
    assert np.isnan(values[1])
    by_name = {o.name: o for o in sink.observations if o.step == 7}
    assert by_name["llc"].detail.step == 7
    assert by_name["llc"].epoch == 1
    assert by_name["nu_hat"].value == estimate.nu_hat
    assert set(by_name) == {"llc", "nu_hat", "llc/wbic", "llc/waic"}
    assert watch.health.measurements["llc"] == 2
    assert watch.health.monitor_seconds_total >= estimate.duration_seconds


def test_observing_reads_no_value_and_what_is_no_number_is_counted_at_the_drain(settings) -> None:
    class Unreadable:
        reads = 0

        def __float__(self):
            Unreadable.reads += 1
            raise TypeError("no number")

    with Watch(settings) as watch:
        watch.observe(1, {"a": Unreadable()})
        assert Unreadable.reads == 0
    assert Unreadable.reads == 1
    assert watch.health.nonfinite["a"] == 1


def test_a_step_without_scalars_is_no_error(settings) -> None:
    with Watch(settings) as watch:
        watch.observe(1, {})


@pytest.mark.parametrize("name", ["val_loss", "weight_norm"])
def test_a_detector_that_raises_is_put_away_and_counted(settings, name, caplog) -> None:
    class Broken(Scripted):
        def update(self, step, value, stderr=None):
            raise ZeroDivisionError("mine")

    with Watch(settings, detectors={name: Broken(1, 1)}) as watch:
        feed(watch, range(1, 31))
        for step in (10, 20):
            watch.due(step)
            watch.probe(step, torch.nn.Linear(1, 1))
        assert watch.history("val_loss")[0].size == 30
        assert watch.history("weight_norm")[0].size == 2
    assert watch.health.measurement_failures[f"detector of {name}"] == 1
    assert "ZeroDivisionError: mine" in caplog.text


def test_a_transition_travels_to_store_sinks_and_health(settings, caplog) -> None:
    sink = Collecting()
    with (
        caplog.at_level(logging.INFO, logger="phasewatch"),
        Watch(settings, detectors={"val_loss": Scripted(50, 80)}, sinks=[sink]) as watch,
    ):
        feed(watch, range(1, 101), lambda step: 1.0 if step < 50 else 0.1)
    statuses = [t.status for t in sink.transitions]
    assert statuses == [
        TransitionStatus.SUSPECTED,
        TransitionStatus.CONFIRMED,
        TransitionStatus.ENDED,
    ]
    with Store(settings["store"]) as store:
        (stored,) = store.transitions(watch.run_id)
    assert stored == watch.transitions[0]
    assert replace(stored, hindsight=None) == sink.transitions[-1]
    assert (stored.onset_step, stored.detected_step, stored.end_step) == (45, 50, 80)
    assert watch.health.transitions == {(stored.kind, "val_loss"): 1}
    assert set(watch.health.leads) == {"val_loss"}
    lines = [r.message for r in caplog.records if r.message.startswith("transition:")]
    assert len(lines) == 1


def test_two_lines_at_the_end_say_what_was_found_and_where_to_look(settings, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="phasewatch"), Watch(settings):
        pass
    messages = [r.message for r in caplog.records if r.name == "phasewatch"]
    assert messages[0] == "run test finished; transitions: none"
    assert messages[1].startswith("look at it with: phasewatch report test --store ")


def test_a_value_that_did_not_converge_is_stored_but_never_detected(settings) -> None:
    class Bad:
        name, unit = "llc", "1"

        def measure(self, context):
            status = EstimateStatus.UNCONVERGED if context.step == 20 else EstimateStatus.OK
            return Observation(
                name="llc", step=context.step, value=1.0, stderr=0.1, status=status, reason="x"
            )

    detector = Scripted(1000, 1000)
    with Watch(settings, observables=[Bad()], detectors={"llc": detector}) as watch:
        model = torch.nn.Linear(1, 1)
        for step in range(1, 31):
            if watch.due(step):
                watch.probe(step, model)
        assert [step for step, _ in detector.seen] == [10, 30]
        assert watch.history("llc")[0].tolist() == [10, 20, 30]


def test_non_finite_values_are_counted_and_stored(settings) -> None:
    with Watch(settings) as watch:
        feed(watch, range(1, 11), lambda step: float("nan") if step % 2 else 1.0)
    assert watch.health.nonfinite["val_loss"] == 5
    assert np.isnan(watch.history("val_loss")[1]).sum() == 5


def test_a_failing_sink_is_counted_and_the_others_go_on(settings) -> None:
    bad, good = Collecting(fails=("emit",)), Collecting()
    with Watch(settings, sinks=[bad, good]) as watch:
        feed(watch, range(1, 6))
    assert watch.health.sink_failures["Collecting"] == 5
    assert len(good.observations) == 5
    assert bad.closed == good.closed == 1


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, RunState.FINISHED),
        (ValueError("boom"), RunState.FAILED),
        (KeyboardInterrupt(), RunState.INTERRUPTED),
    ],
)
def test_the_end_of_a_run_is_recorded(settings, error, state) -> None:
    watch = Watch(settings)
    try:
        with watch:
            feed(watch, range(1, 4))
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    run = Store(settings["store"]).run("test")
    assert run.state is state
    assert "boom" in run.reason or state is not RunState.FAILED
    assert watch.history("val_loss")[0].tolist() == [1, 2, 3]


def test_finishing_twice_does_nothing_more(settings) -> None:
    sink = Collecting()
    watch = Watch(settings, sinks=[sink])
    watch.start()
    watch.finish()
    watch.finish(RunState.FAILED, "too late")
    assert sink.closed == 1
    assert Store(settings["store"]).run("test").state is RunState.FINISHED


def test_starting_again_is_another_attempt_of_the_same_run(settings) -> None:
    watch = Watch(settings)
    for begin in (0, 5):
        watch.start(step=begin)
        feed(watch, range(begin + 1, begin + 6))
        watch.finish()
    assert watch.attempt == 2
    assert len(Store(settings["store"]).runs()) == 1
    assert watch.history("val_loss")[0].tolist() == [*range(1, 11)]


def test_a_resumed_run_goes_on_and_supersedes_what_it_repeats(settings) -> None:
    def script(watch, steps):
        feed(watch, steps, lambda step: 1.0 if step < 50 else 0.1)

    first = Watch(settings, detectors={"val_loss": Scripted(50, 80)})
    first.start()
    script(first, range(1, 41))
    state = json.loads(json.dumps(first.state_dict()))
    script(first, range(41, 101))  # goes on after the checkpoint, then dies
    first.finish(RunState.FAILED)

    resumed = Watch(settings, detectors={"val_loss": Scripted(50, 80)})
    resumed.load_state_dict(state)
    resumed.load_state_dict(state)
    resumed.start(step=40)
    script(resumed, range(41, 121))
    resumed.finish()

    assert resumed.run_id == first.run_id
    assert resumed.attempt == 2
    assert resumed.history("val_loss")[0].tolist() == [*range(1, 121)]
    assert [t.id for t in resumed.transitions] == [t.id for t in first.transitions]
    assert len(Store(settings["store"]).transitions(resumed.run_id)) == 1


def test_a_saved_state_of_another_detector_is_told_and_left(settings, caplog) -> None:
    class Refusing(Scripted):
        def load_state_dict(self, state):
            raise ValueError("the saved state is of another detector")

    first = Watch(settings, detectors={"val_loss": Scripted(50, 80)})
    first.start()
    feed(first, range(1, 11))
    state = first.state_dict()
    first.finish()
    detector = Refusing(50, 80)
    resumed = Watch(settings, detectors={"val_loss": detector})
    resumed.load_state_dict(state)
    resumed.start(step=10)
    feed(resumed, range(11, 21))
    resumed.finish()
    assert "the detector of val_loss starts afresh" in caplog.text
    assert len(detector.seen) == 10


def test_a_named_store_that_cannot_be_written_is_an_error(settings) -> None:
    settings["store"] = "/proc/nowhere/runs.db"
    with pytest.raises(ConfigError, match=r"store: .*/proc/nowhere"):
        Watch(settings).start()


def test_the_default_store_falls_back_to_memory_and_says_so(
    settings, tmp_path, monkeypatch, caplog
) -> None:
    del settings["store"]
    (tmp_path / "file").write_text("")
    watch = Watch(settings, root=tmp_path / "file" / "below")
    with caplog.at_level(logging.WARNING, logger="phasewatch"), watch:
        feed(watch, range(1, 4))
    assert watch.history("val_loss")[0].tolist() == [1, 2, 3]
    assert watch.health.skipped["store"] == 1
    assert "kept in memory only" in caplog.text


def test_counters_are_born_at_zero(settings) -> None:
    with Watch(settings, sinks=[Collecting()]) as watch:
        assert watch.health.measurements == {"weight_norm": 0}
        assert watch.health.measurement_failures == {"weight_norm": 0}
        assert watch.health.sink_failures == {"Collecting": 0}


def test_the_stored_configuration_names_the_store_without_its_password(settings) -> None:
    path = settings["store"]
    with Watch(settings | {"store": f"sqlite:///{path}"}):
        pass
    assert Store(path).run("test").config["store"] == path


def test_a_failed_joint_measurement_is_dropped_on_every_rank(settings) -> None:
    with Watch(settings, agree=lambda ok: False) as watch:
        watch.due(10)
        watch.probe(10, torch.nn.Linear(1, 1))
        assert watch.history("weight_norm")[0].size == 0
    assert watch.health.measurement_failures["joint"] == 1


def test_without_a_loss_the_llc_is_skipped_with_the_way_out(settings) -> None:
    del settings["observables"]
    with Watch(settings) as watch:
        watch.due(10)
        watch.probe(10, torch.nn.Linear(1, 1))
    assert "loss_fn" in watch.health.skip_reasons["llc"]
    assert watch.history("weight_norm")[0].tolist() == [10]


def test_gradient_norm_and_update_ratio_need_a_look_before_the_step(settings) -> None:
    settings["observables"] = ["gradient_norm", "update_ratio"]
    model = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with Watch(settings) as watch:
        model(torch.tensor([[0.6, 0.8]])).sum().backward()
        watch.before_step(10, model.named_parameters())
        optimizer.step()
        watch.probe(10, model)
        assert watch.history("gradient_norm")[1] == pytest.approx([1.0])
        assert watch.history("update_ratio")[1] == pytest.approx([0.1])


def test_a_transition_is_stored_as_it_ended_without_a_second_notice(settings) -> None:
    sink = Collecting()
    alarm_at, until = 20, 10_000  # its detector never leaves the episode
    with Watch(settings, detectors={"val_loss": Scripted(alarm_at, until)}, sinks=[sink]) as watch:
        feed(watch, range(1, 101), lambda step: 1.0 if step < 15 else 0.1 * 0.9 ** (step - 15))
    (live,) = watch.transitions
    assert live.status is TransitionStatus.CONFIRMED
    assert sink.transitions[-1].severity < 2.0 < live.severity
    assert [t.status for t in sink.transitions] == [
        TransitionStatus.SUSPECTED,
        TransitionStatus.CONFIRMED,
    ]
    with Store(settings["store"], create=False) as store:
        (stored,) = store.transitions(watch.run_id)
    assert stored == live


def test_an_observable_may_say_which_way_is_better_and_the_run_remembers(settings) -> None:
    class Quality:
        name, unit, better = "val_quality", "1", "up"

        def measure(self, context):
            raise NotImplementedError

    settings |= {"better": {"fitness": "up"}}
    with Watch(settings, observables=[Quality()]):
        pass
    with Store(settings["store"], create=False) as store:
        meanings = Meanings.stored(store.run("test").config)
    assert [meanings.of(name).better for name in ("fitness", "val_quality")] == ["up", "up"]
    assert meanings.of("val_quality").held_out
    Quality.better = "sideways"
    with pytest.raises(ConfigError, match="'val_quality' says that 'sideways' is better"):
        Watch(settings, observables=[Quality()])
    with pytest.raises(ConfigError, match=r"better.fitness: got 'best'"):
        Watch(settings | {"better": {"fitness": "best"}})


def test_it_is_told_which_part_of_the_model_moved_more_than_before(settings) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(20, 20), torch.nn.Linear(20, 20))
    with Watch(settings, detectors={"val_loss": Scripted(60, 90)}) as watch:
        for step in range(1, 131):
            with torch.no_grad():
                model[0].weight += 1e-2
                model[1].weight += 1e-3 if step <= 50 else 1e-2
            feed(watch, [step], lambda step: 1.0 if step < 55 else 0.1)
            if watch.due(step):
                watch.probe(step, model)
    (transition,) = watch.transitions
    assert transition.status is TransitionStatus.ENDED
    assert [group for group, _ in transition.where] == ["1", "0"]
    assert transition.where[0][1] == pytest.approx(10.0, rel=0.5)
    assert transition.where[1][1] < 1.5


def test_a_plain_loop_asks_before_the_first_step_what_cannot_be_measured(settings) -> None:
    model = torch.nn.Linear(2, 1)
    watch = Watch(settings | {"observables": ["weight_norm", "llc"]})
    with pytest.raises(ConfigError, match=r"'llc' cannot be measured here: .*give loss_fn="):
        watch.check(model)
    watch = Watch(settings | {"observables": ["llc_validation"]}, probe=[torch.zeros(4, 2)])
    with pytest.raises(ConfigError, match=r"'llc_validation' .*give val_probe="):
        watch.check(model)


def test_asking_changes_nothing_and_skips_what_nobody_named(settings) -> None:
    del settings["observables"]
    model = torch.nn.Linear(2, 1)
    before, state = model.weight.detach().clone(), torch.get_rng_state()
    with Watch(settings) as watch:
        watch.check(model)
        assert watch.health.skipped["llc"] == 1
        watch.due(10)
        watch.probe(10, model)
        assert watch.history("weight_norm")[0].tolist() == [10]
    assert torch.equal(model.weight, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_logged_learning_rate_reaches_what_is_measured(settings) -> None:
    settings["observables"] = ["hessian_top"]
    model = torch.nn.Linear(2, 1)
    loss = lambda model, batch: model(batch).square().mean(dim=1)  # noqa: E731
    with Watch(settings, probe=[torch.ones(8, 2)], loss_fn=loss) as watch:
        watch.probe(10, model)
        watch.observe(20, {"train_loss": 0.1, "lr": 0.5})
        watch.probe(20, model)
        steps, values, _ = watch.history("hessian_top/2_over_lr")
    assert (steps.tolist(), values.tolist()) == ([20], [4.0])


def test_the_forecast_is_logged_once_and_kept_with_the_run(settings, caplog) -> None:
    settings["observables"] = ["weight_norm", "hessian_top"]
    model = torch.nn.Linear(2, 1)
    loss = lambda model, batch: model(batch).square().mean(dim=1)  # noqa: E731
    watch = Watch(settings, probe=[torch.ones(8, 2)], loss_fn=loss)
    with caplog.at_level(logging.INFO, logger="phasewatch"):
        watch.start(expected_steps=100)
        watch.check(model)
    (table,) = [r.message for r in caplog.records if "observable" in r.message]
    assert "on 8 samples in 1 batch" in table
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["weight_norm", "hessian_top"]
    config = watch.store.run(watch.run_id).config
    assert [row["name"] for row in config["forecast"]] == ["weight_norm", "hessian_top"]
    watch.finish()


def test_the_model_that_is_given_is_the_one_that_is_measured(settings) -> None:
    first, second = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    torch.nn.init.constant_(first.weight, 1.0)
    torch.nn.init.constant_(second.weight, 3.0)
    with Watch(settings) as watch:
        for step, model in ((10, first), (20, second)):
            torch.nn.init.zeros_(model.bias)
            watch.due(step)
            watch.probe(step, model)
        _, values, _ = watch.history("weight_norm")
    assert values.tolist() == pytest.approx([2**0.5, 3 * 2**0.5])


def test_the_gradient_norm_under_a_scaler_is_that_of_the_loss(settings) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(torch.ones(4, 3)).square().mean()
    own = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    norm = torch.cat([part.flatten() for part in own]).norm()
    scaler.scale(loss).backward()
    with Watch({**settings, "observables": ["gradient_norm"]}) as watch:
        watch.before_step(10, model.named_parameters(), loss_scale=scaler.get_scale())
        scaler.step(optimizer)
        assert watch.due(10)
        watch.probe(10, model)
        steps, values, _ = watch.history("gradient_norm")
    assert scaler.get_scale() == 65536
    assert steps.tolist() == [10]
    assert values[0] == pytest.approx(float(norm), rel=1e-5)


AROUND = {"checkpoint_on": "suspected", "around": {"keep": 2, "every_n_steps": 10}}


def watched_loop(watch, model, steps) -> None:
    for step in steps:
        watch.observe(step, {"train_loss": 1.0})
        if watch.due(step):
            watch.probe(step, model)


def test_a_loop_that_does_not_say_how_to_save_cannot_have_checkpoints_kept(settings) -> None:
    watch = Watch(settings | AROUND)
    with pytest.raises(ConfigError, match=r"checkpoint_on: got 'suspected'.*save=lambda path"):
        watch.start()
    with pytest.raises(ConfigError, match="save: got 'here'"):
        Watch(settings | AROUND, save="here")


def test_a_plain_loop_keeps_checkpoints_around_a_suspicion_and_its_record_says_where(
    settings, tmp_path
) -> None:
    model = torch.nn.Linear(2, 1)
    saved = []

    def save(path):
        saved.append(path)
        torch.save({"step": int(path.stem.split("=")[1]), "model": model.state_dict()}, path)

    # Measured is every 20 steps: what is saved between is due, too.
    settings |= AROUND | {"every_n_steps": 20}
    options = {"save": save, "root": tmp_path, "detectors": {"train_loss": Fall(60)}}
    with Watch(settings, **options) as watch:
        watched_loop(watch, model, range(1, 201))
        measured = watch.history("weight_norm")[0].tolist()
        run_id = watch.run_id
    assert measured == list(range(20, 201, 20))
    assert len(saved) == 20
    with Store(settings["store"]) as store:
        (transition,) = store.transitions(run_id)
    kept = [path for path in saved if path.exists()]
    assert transition.checkpoints == tuple(map(str, kept))
    assert [path.name for path in kept] == [f"step={n}.pt" for n in (40, 50, 60, 70)]
    assert kept[0].parent == tmp_path / "phasewatch-checkpoints" / run_id
    assert watch.transitions[0].checkpoints == transition.checkpoints


def test_a_save_that_fails_is_counted_and_said_and_the_loop_goes_on(settings, tmp_path, caplog):
    def save(path):
        raise OSError(28, "No space left on device")

    with Watch(settings | AROUND, save=save, root=tmp_path) as watch:
        watched_loop(watch, torch.nn.Linear(2, 1), range(1, 201))
    assert watch.health.measurement_failures["checkpoint"] >= 2
    assert watch.health.measurements["weight_norm"] == 20
    assert caplog.text.count("No space left") == 1


def test_what_was_measured_densely_is_in_the_record_of_the_run(settings, caplog) -> None:
    settings |= {"around": {"denser": 4}, "every_n_steps": 20}
    model = torch.nn.Linear(2, 1)
    with (
        caplog.at_level(logging.INFO, logger="phasewatch"),
        Watch(settings, detectors={"train_loss": Fall(400)}) as watch,
    ):
        watch.finish()
        watch.start(expected_steps=1_000)
        watched_loop(watch, model, range(1, 1_001))
        steps, factors, _ = watch.history("measuring_density")
        measured = watch.history("weight_norm")[0].tolist()
    assert (steps.tolist()[0], factors.tolist()) == (401, [4.0, 1.0])
    assert steps[1] - steps[0] >= 50
    inside = [step for step in measured if 400 < step <= 440]
    assert inside == [405, 410, 415, 420, 425, 430, 435, 440]
    assert [step for step in measured if step > 560] == list(range(580, 1_001, 20))
    assert watch.health.dense_windows == 1
    assert "observables are measured 4 times as often" in caplog.text


def test_a_resumed_run_goes_on_measuring_densely_and_keeping(settings, tmp_path) -> None:
    model = torch.nn.Linear(2, 1)

    def save(path):
        torch.save({"model": model.state_dict()}, path)

    settings |= AROUND
    options = {"save": save, "root": tmp_path}
    first = Watch(settings, **options, detectors={"train_loss": Fall(60)})
    first.start(expected_steps=400)
    watched_loop(first, model, range(1, 66))
    state = json.loads(json.dumps(first.state_dict()))
    watched_loop(first, model, range(66, 75))
    first._sinks.store.flush()
    second = Watch(settings, **options, detectors={"train_loss": Fall(60)})
    second.load_state_dict(state)
    second.start(65, expected_steps=400)
    watched_loop(second, model, range(66, 201))
    second.finish()
    (transition,) = second.transitions
    names = [path.rpartition("/")[2] for path in transition.checkpoints]
    assert {"step=40.pt", "step=50.pt", "step=60.pt", "step=70-attempt=2.pt"} <= set(names)
    with Store(settings["store"]) as store:
        (stored,) = store.transitions(second.run_id)
    assert stored.checkpoints == transition.checkpoints
