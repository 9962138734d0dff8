"""A run that is resumed where its store was lost: who was told what is not lost with it."""

import random

import pytest
import torch

from phasewatch.monitor.alerts.launcher import AlertProcess
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.run.watch import Watch
from phasewatch.monitor.store.outbox import Delivery
from phasewatch.monitor.store.store import Store

FALL = 150


@pytest.fixture(autouse=True)
def _no_sender(monkeypatch):
    """Nothing is sent: messages stay as the test leaves them."""
    monkeypatch.setattr(AlertProcess, "_start", lambda self: None)


def settings(folder):
    return {
        "store": str(folder / "runs.db"),
        "run_name": "demo",
        "observables": [],
        "exporter": {"enabled": False},
        "alerts": {"targets": ["json://127.0.0.1:9/hook"], "picture": False},
    }


def feed(watch, first, last):
    for step in range(first, last + 1):
        level = 3.0 if step <= FALL else 0.02
        watch.observe(
            step, {"val_loss": level * (1 + 0.01 * random.Random(step).uniform(-1.0, 1.0))}
        )
    watch.drain()
    assert watch.store.flush()


def lose(folder):
    for file in folder.glob("runs.db*"):
        file.unlink()


def interrupted(folder, *, delivered):
    """The checkpoint of a run that has told of its fall, and whose store was removed after it."""
    watch = Watch(settings(folder))
    watch.start()
    feed(watch, 1, 200)
    (transition,) = watch.transitions
    assert transition.status is TransitionStatus.ENDED
    if delivered:
        (message,) = watch.store.outbox.messages()
        watch.store.outbox.delivered(message)
    torch.save(watch.state_dict(), folder / "last.ckpt")
    state = torch.load(folder / "last.ckpt", weights_only=True)
    watch.store.close()  # it is killed: it says no more
    watch._sinks = watch._road = None
    lose(folder)
    return state


def resumed(folder, state):
    watch = Watch(settings(folder))
    watch.load_state_dict(state)
    watch.start(200)
    return watch


@pytest.mark.parametrize("delivered", [False, True])
def test_a_resume_into_an_empty_store_tells_what_was_never_told(tmp_path, delivered):
    state = interrupted(tmp_path, delivered=delivered)
    with resumed(tmp_path, state) as watch:
        feed(watch, 201, 240)
        (message,) = watch.store.outbox.messages()
        assert message.delivery is (Delivery.SENT if delivered else Delivery.WAITING)
        assert message.transition.status is TransitionStatus.CONFIRMED
        (found,) = watch.store.transitions(watch.run_id)
        assert found.status is TransitionStatus.ENDED


def test_a_store_lost_after_a_resume_loses_no_message_of_before(tmp_path):
    state = interrupted(tmp_path, delivered=False)
    with resumed(tmp_path, state) as watch:
        feed(watch, 201, 220)
        lose(tmp_path)
        feed(watch, 221, 240)
        (message,) = watch.store.outbox.messages()
        assert message.delivery is Delivery.WAITING


def test_what_was_detected_and_not_yet_handed_to_the_store_is_told_after_a_resume(tmp_path):
    """As where a kill comes between the two."""
    state = interrupted(tmp_path, delivered=False)
    assert list(state["durable"]["transitions"].values()) == ["ended"]
    state["durable"] |= {"messages": [], "transitions": {}}
    with resumed(tmp_path, state) as watch:
        feed(watch, 201, 240)
        (message,) = watch.store.outbox.messages()
        assert message.delivery is Delivery.WAITING


def test_a_target_that_is_new_is_not_told_of_what_was_over(tmp_path):
    state = interrupted(tmp_path, delivered=False)
    state["durable"]["messages"] = []  # nobody was to be told then
    with resumed(tmp_path, state) as watch:
        feed(watch, 201, 240)
        assert watch.store.outbox.messages() == []
        (found,) = watch.store.transitions(watch.run_id)
        assert found.status is TransitionStatus.ENDED


def test_hindsight_withdraws_nothing_of_which_the_rows_are_gone(tmp_path):
    state = interrupted(tmp_path, delivered=True)
    with resumed(tmp_path, state) as watch:
        feed(watch, 201, 400)
    with Store(tmp_path / "runs.db", create=False) as store:
        (transition,) = store.transitions(watch.run_id)
        (message,) = store.outbox.messages()
    assert transition.status is TransitionStatus.ENDED
    assert transition.hindsight is None
    assert message.state is TransitionStatus.CONFIRMED
