"""The user's code that does not come back is ended, and nothing else ever is."""

import os
import signal
import threading
import time

import pytest
import torch
from torch import nn

from phasewatch.monitor.alerts import queued
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.run import watchdog as watchdog_module
from phasewatch.monitor.run.watch import Watch
from phasewatch.monitor.run.watchdog import HungError, Watchdog
from support.records import wait_until

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGURG"), reason="there is no such signal")

FOR_EVER = 10.0**6
PATIENCE = 0.2


def ours(file, code):
    """A function of phasewatch, as it were, in a file of that name."""
    names = {"__name__": "phasewatch.made_up"}
    exec(compile(code, file, "exec"), names)
    return names["function"]


make = ours("caller.py", "def function(dog, what, act):\n    with dog.over(what):\n        act()")
"""Calls something of the user's, watched."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watchdog_module, "LOOK_SECONDS", 0.02)


@pytest.fixture(autouse=True)
def handler():
    """The signal's handler is put back in the end."""
    before = signal.getsignal(signal.SIGURG)
    yield
    assert signal.getsignal(signal.SIGURG) == before


@pytest.fixture
def dog():
    dog = Watchdog()
    dog.patience_seconds = PATIENCE
    yield dog
    dog.close()


class Acts:
    """An observable that does something first."""

    name, unit = "mine", "1"

    def __init__(self, act):
        self.act = act
        self.num_calls = 0

    def measure(self, context):
        self.num_calls += 1
        self.act()
        return Observation(name=self.name, step=context.step, value=1.0, unit="1")


def spin():
    while True:
        pass


def settings(tmp_path, **more):
    quiet = {"exporter": {"enabled": False}, "observables": {}, "run_name": "r"}
    quiet |= {"store": str(tmp_path / "runs.db"), "patience_seconds": PATIENCE}
    return {**quiet, "every_n_steps": 2, **more}


def train(watch=None, steps=8):
    """Weights after a training that draws, measured or not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(1, steps + 1):
        loss = model(torch.randn(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch.observe(step, {"train_loss": loss.detach()})
            if watch.due(step):
                watch.probe(step, model)
    return [parameter.detach().clone() for parameter in model.parameters()], torch.get_rng_state()


@pytest.mark.parametrize(
    "hang",
    [
        lambda: time.sleep(FOR_EVER),
        lambda: threading.Event().wait(),
        spin,
        lambda: (torch.manual_seed(9), torch.randn(3), time.sleep(FOR_EVER)),
    ],
    ids=["sleeps", "waits", "works for ever", "draws, then sleeps"],
)
def test_an_observable_that_hangs_is_ended_and_training_goes_on_bit_for_bit(tmp_path, hang):
    weights, numbers = train()
    bad = Acts(hang)
    with Watch(settings(tmp_path), observables=[bad]) as watch:
        seen, drawn = train(watch)
    assert all(map(torch.equal, seen, weights))
    assert torch.equal(drawn, numbers)
    assert bad.num_calls == 1, "it is not tried again"
    assert "did not come back" in watch.health.skip_reasons["mine"]
    assert "patience_seconds" in watch.health.skip_reasons["mine"]
    assert watch.history("train_loss")[0].tolist() == [*range(1, 9)]


def test_what_swallows_the_end_is_ended_again(tmp_path):
    def stubborn():
        try:
            time.sleep(FOR_EVER)
        except BaseException:
            time.sleep(FOR_EVER)

    with Watch(settings(tmp_path), observables=[Acts(stubborn)]) as watch:
        train(watch)
    assert "did not come back" in watch.health.skip_reasons["mine"]


def test_a_sink_that_hangs_is_ended_and_no_longer_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(queued, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(queued, "PATIENCE_SECONDS", 0.1)
    released, here = threading.Event(), []

    class Sink:
        def emit(self, observation):
            here.append(threading.current_thread())
            released.wait()

        def notify(self, transition):
            pass

        flush = close = lambda self: None

    with Watch(settings(tmp_path), sinks=[Sink()]) as watch:
        train(watch)
    assert here.count(threading.main_thread()) == 1
    assert watch.health.sink_failures["Sink"] >= 1
    released.set()


def sleep(seconds=FOR_EVER):
    time.sleep(seconds)


def test_what_works_is_given_longer_than_what_stands_still(dog):
    def work():
        begin = time.monotonic()
        while time.monotonic() < begin + 2:
            sum(range(1000))

    dog.patience_seconds = 1.0
    make(dog, "a call", work)
    with pytest.raises(HungError, match=r"^a call did not come back in"):
        make(dog, "a call", sleep)


def test_what_waits_in_short_naps_stands_still(dog):
    def nap():
        while True:
            time.sleep(PATIENCE / 2)

    with pytest.raises(HungError):
        make(dog, "a call", nap)


def test_what_is_ours_is_never_ended_only_named(dog, monkeypatch):
    """Whatever of ours is open inside, as weights that are lent, is left in order."""
    monkeypatch.setattr(watchdog_module, "HANG_SECONDS", 0.1)
    chains = ours("engine.py", "def function(loss):\n    loss(); done.append(True)")
    done = chains.__globals__["done"] = []
    make(dog, "llc", lambda: chains(lambda: time.sleep(3 * PATIENCE)))
    assert done
    assert "llc" in dog.told


def test_another_thread_is_only_named(dog, monkeypatch):
    monkeypatch.setattr(watchdog_module, "HANG_SECONDS", 0.1)
    make(dog, "another", lambda: None)  # the main thread listens, and moves on
    ended = []

    def call():
        make(dog, "a call", lambda: time.sleep(3 * PATIENCE))
        ended.append(True)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert ended
    assert "a call" in dog.told


def test_a_process_of_a_group_is_only_named(dog, monkeypatch):
    """Else the others would wait for what this one has left."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    make(dog, "a call", lambda: time.sleep(3 * PATIENCE))


def test_a_signal_that_the_user_listens_to_is_his():
    heard = []
    before = signal.signal(signal.SIGURG, lambda *_: heard.append(True))
    try:
        dog = Watchdog()
        dog.patience_seconds = PATIENCE
        make(dog, "a call", lambda: time.sleep(3 * PATIENCE))
        dog.close()
        os.kill(os.getpid(), signal.SIGURG)
        wait_until(lambda: heard, what="the user's handler")
        assert len(heard) == 1
    finally:
        signal.signal(signal.SIGURG, before)


def test_the_signal_does_nothing_where_nothing_hangs(dog):
    def call():
        os.kill(os.getpid(), signal.SIGURG)
        time.sleep(0.01)

    make(dog, "a call", call)
    call()


def test_two_watchdogs_share_the_signal(dog):
    other = Watchdog()
    other.patience_seconds = PATIENCE
    make(dog, "a call", lambda: make(other, "another", lambda: None))
    other.close()
    with pytest.raises(HungError):
        make(dog, "a call", sleep)


def test_the_end_never_reaches_what_comes_after_the_call(monkeypatch):
    """Calls that come back just when their patience is over: ended or not, and nothing else."""
    monkeypatch.setattr(watchdog_module, "LOOK_SECONDS", 0.001)
    dog = Watchdog()
    dog.patience_seconds = 0.004
    ended, reached = 0, 0
    for number in range(400):
        try:
            make(dog, "a call", lambda: sleep(0.00003 * number))  # noqa: B023
        except HungError:
            ended += 1
        for _ in range(200):  # training
            reached += 1
    dog.close()
    assert 0 < ended < 400
    assert reached == 400 * 200


def test_an_observable_within_its_patience_is_measured(tmp_path):
    slow = Acts(lambda: time.sleep(PATIENCE / 4))
    with Watch(settings(tmp_path, patience_seconds=30), observables=[slow]) as watch:
        train(watch)
        assert watch.history("mine")[0].tolist() == [2, 4, 6, 8]
