"""Only the user and the system end training; what hangs is named; who is slow waits in a queue."""

# ruff: noqa: NPY002 - what users draw from is the legacy generator
import random
import signal
import sys
import threading
import time

import pytest

from phasewatch.monitor.alerts import queued
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.stray import let_through
from phasewatch.monitor.run import watchdog as watchdog_module
from phasewatch.monitor.run.watch import Watch
from phasewatch.monitor.run.watchdog import Watchdog
from phasewatch.monitor.store.store import Store
from support.records import wait_until


class Odd(BaseException):
    pass


STRAY = [SystemExit(3), GeneratorExit(), Odd("odd"), MemoryError("boom"), RecursionError()]


class Calls:
    """A sink that does something at every call."""

    def __init__(self, act):
        self.act = act
        self.seen = []

    def emit(self, observation):
        self.act()
        self.seen.append(observation.step)

    def notify(self, transition):
        self.act()

    def flush(self):
        self.act()

    def close(self):
        self.act()


def throw(error):
    def act():
        raise error

    return act


def settings(tmp_path, **more):
    quiet = {"exporter": {"enabled": False}, "observables": {}, "run_name": "r"}
    return {"store": str(tmp_path / "runs.db"), **quiet, **more}


def feed(watch, num=20):
    for step in range(1, num + 1):
        watch.observe(step, {"train_loss": 1.0})
    watch.drain()


@pytest.mark.parametrize("error", STRAY, ids=lambda error: type(error).__name__)
def test_no_sink_ends_training(tmp_path, error):
    with Watch(settings(tmp_path), sinks=[Calls(throw(error))]) as watch:
        feed(watch)
    assert watch.health.sink_failures["Calls"] >= 20
    with Store(tmp_path / "runs.db") as store:
        assert store.run("r").state == "finished"


@pytest.mark.parametrize("error", STRAY, ids=lambda error: type(error).__name__)
def test_no_observable_ends_training(tmp_path, error):
    from torch import nn

    class Bad:
        name, unit = "bad", "1"

        def measure(self, context):
            raise error

    watch = Watch(settings(tmp_path, every_n_steps=1, observables={}), observables=[Bad()])
    model = nn.Linear(2, 1)
    with watch:
        for step in range(1, 4):
            watch.observe(step, {"train_loss": 1.0})
            if watch.due(step):
                watch.probe(step, model)
    assert watch.health.measurement_failures["bad"] >= 1


def test_ctrl_c_gets_through(tmp_path):
    watch = Watch(settings(tmp_path), sinks=[Calls(throw(KeyboardInterrupt()))])
    watch.start()
    with pytest.raises(KeyboardInterrupt):
        feed(watch)


def test_a_signal_of_the_system_gets_through_whatever_it_raises():
    def handler(*_):
        sys.exit(143)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(SystemExit):
            let_through(caught.value)
    finally:
        signal.signal(signal.SIGUSR1, before)
    let_through(caught.value)  # no handler any more: like any other failure
    let_through(SystemExit(143))


def test_what_is_no_observation_is_a_failure_with_a_name(tmp_path, caplog):
    from torch import nn

    class Text:
        name, unit = "text", "1"

        def measure(self, context):
            return "not an observation"

    with Watch(settings(tmp_path, every_n_steps=1), observables=[Text()]) as watch:
        watch.observe(1, {"train_loss": 1.0})
        watch.probe(1, nn.Linear(2, 1))
    assert watch.health.measurement_failures["text"] == 1
    assert "it must give Observations" in caplog.text


# Slow sinks -------------------------------------------------------------------------------------


def test_a_slow_sink_is_moved_behind_a_queue_and_loses_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(queued, "SLOW_SECONDS", 0.01)
    monkeypatch.setattr(queued, "PATIENCE_SECONDS", 0.0)
    sink = Calls(lambda: time.sleep(0.02))
    with Watch(settings(tmp_path), sinks=[sink]) as watch:
        begin = time.perf_counter()
        feed(watch, 50)
        fed = time.perf_counter() - begin
        assert len(sink.seen) < 50
    assert sink.seen == [*range(1, 51)]
    assert fed < 50 * 0.02
    assert caplog.text.count("from now on it works behind a queue") == 1
    assert watch.health.sink_failures["Calls"] == 0


def test_a_sink_is_moved_for_what_it_takes_again_and_again_not_for_one_hiccup(monkeypatch):
    seconds = iter([0.2, *[0.01] * 10, 0.2, 0.01, 0.2, 0.2, 9.0])
    now = 0.0

    def clock():
        return now

    def call(_):
        nonlocal now
        now += next(seconds)

    monkeypatch.setattr(queued.time, "perf_counter", clock)
    calls = queued.QueuedCalls(Calls(lambda: None), lambda error: None)
    for _ in range(13):
        calls.call(call)
    assert not calls.is_queued
    for _ in range(2):
        calls.call(call)
    assert calls.is_queued
    calls.close()


def test_a_slow_sink_that_raises_is_counted_and_one_that_hangs_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(queued, "SLOW_SECONDS", 0.01)
    monkeypatch.setattr(queued, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(queued, "CLOSE_SECONDS", 0.2)
    hang = threading.Event()
    turns = []

    def act():
        turns.append(1)
        if len(turns) == 1:
            time.sleep(0.02)
        elif len(turns) == 2:
            raise SystemExit(4)
        else:
            hang.wait(60)

    with Watch(settings(tmp_path), sinks=[Calls(act)]) as watch:
        feed(watch, 10)
    hang.set()
    assert watch.health.sink_failures["Calls"] == 2  # the one that raised, and the rest at the end


# What hangs -------------------------------------------------------------------------------------


def test_what_training_waits_for_is_named_with_its_place(monkeypatch, caplog):
    monkeypatch.setattr(watchdog_module, "HANG_SECONDS", 0.2)
    dog = Watchdog()
    with dog.over("the measurement of llc at step 30"):
        wait_until(lambda: dog.told, what="the watchdog")
    with dog.over("sink Other"):
        pass
    dog.close()
    assert dog.told[0] == "the measurement of llc at step 30"
    assert "sink Other" not in dog.told
    assert "the monitor has waited" in caplog.text
    assert ", in " in caplog.text


def test_an_observation_passes_the_queue_as_it_is():
    sink = Calls(lambda: None)
    calls = queued.QueuedCalls(sink, lambda error: None)
    calls.call(lambda s: s.emit(Observation(name="a", step=3, value=1.0, unit="1")))
    assert (sink.seen, calls.is_queued) == ([3], False)


def draw():
    import numpy as np

    return random.random(), np.random.rand(), np.random.randn()


@pytest.mark.parametrize("seconds", [0.0, 0.08], ids=["quick", "behind a queue"])
def test_a_sink_that_draws_takes_no_number_from_training(tmp_path, monkeypatch, seconds):
    import numpy as np

    def seed():
        random.seed(3)
        np.random.seed(3)

    monkeypatch.setattr(queued, "PATIENCE_SECONDS", 0.02)
    seed()
    expected = [draw() for _ in range(12)]
    sink = Calls(lambda: (draw(), time.sleep(seconds), draw()))
    seed()
    numbers = []
    with Watch(settings(tmp_path), sinks=[sink]) as watch:
        for step in range(1, 11):
            watch.observe(step, {"train_loss": 1.0})
            watch.drain()
            numbers.append(draw())
    numbers += [draw(), draw()]
    assert len(sink.seen) == 10
    assert numbers == expected


def test_a_detector_that_draws_takes_no_number_from_training(tmp_path):
    class Drawing:
        min_points, active = 1, False

        def __init__(self):
            self.drawn = []

        def update(self, step, value, stderr=None):
            self.drawn.append(draw())

    random.seed(3)
    expected = [random.random() for _ in range(5)]
    detector = Drawing()
    random.seed(3)
    with Watch(settings(tmp_path), detectors={"train_loss": detector}) as watch:
        feed(watch)
        assert [random.random() for _ in range(5)] == expected
    assert len(detector.drawn) == 20


def test_a_sink_that_draws_from_torchs_generator_is_refused_and_counted(tmp_path):
    import torch

    before = torch.get_rng_state()
    with Watch(settings(tmp_path), sinks=[Calls(lambda: torch.randn(2))]) as watch:
        feed(watch)
    assert torch.equal(torch.get_rng_state(), before)
    assert watch.health.sink_failures["Calls"] >= 20


class Uncopyable:
    """Models and data that cannot be measured, each for a reason of its own."""

    @staticmethod
    def scripted():
        import torch

        return torch.jit.script(torch.nn.Linear(4, 1)), [(torch.ones(8, 4), torch.ones(8, 1))]

    @staticmethod
    def refusing():
        import torch

        class Refusing(torch.nn.Linear):
            def __deepcopy__(self, memo):
                raise NotImplementedError("no copies")

        return Refusing(4, 1), [(torch.ones(8, 4), torch.ones(8, 1))]

    @staticmethod
    def unreadable():
        import torch

        class Unreadable(torch.utils.data.Dataset):
            def __len__(self):
                return 8

            def __getitem__(self, index):
                raise OSError(5, "Input/output error")

        return torch.nn.Linear(4, 1), Unreadable()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Uncopyable.scripted, "ScriptModule"),
        (Uncopyable.refusing, "no copies"),
        (Uncopyable.unreadable, "Input/output error"),
    ],
)
def test_what_cannot_be_measured_is_refused_where_it_is_named_and_else_left_out(
    tmp_path, make, reason
):
    def loss(m, b):
        return (m(b[0]) - b[1]).square().sum(1)

    model, data = make()
    quiet = settings(tmp_path, every_n_steps=2)
    del quiet["observables"]
    with Watch(quiet, probe=data, loss_fn=loss) as watch:
        watch.check(model)
        for step in range(1, 5):
            watch.observe(step, {"train_loss": 1.0})
            if watch.due(step):
                watch.probe(step, model)
    assert reason in watch.health.skip_reasons["llc"]
    assert watch.history("train_loss")[0].tolist() == [1, 2, 3, 4]
    with (
        pytest.raises(ConfigError, match=reason),
        Watch(quiet, probe=data, loss_fn=loss, observables=["llc"]) as watch,
    ):
        watch.check(model)
