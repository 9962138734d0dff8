"""A store that is lost takes no message along, and has none sent twice."""

from dataclasses import replace

import pytest

from phasewatch.monitor.core.transitions import Recipient, TransitionKind, TransitionStatus
from phasewatch.monitor.store.outbox import Delivery
from phasewatch.monitor.store.store import Store
from support.records import make_observation, make_transition

TOLD, WAITS = Recipient(target="1-json-aa", updates=True), Recipient(target="2-json-bb")
OPEN = make_transition("r1", status=TransitionStatus.CONFIRMED)
OVER = replace(OPEN, status=TransitionStatus.ENDED, end_step=120)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


def forget(path):
    for file in path.parent.iterdir():
        file.unlink()


def told(store):
    """Key and delivery of every message, and what a message of it would say."""
    return [(m.key, m.delivery, m.sent_at, m.transition.kind) for m in store.outbox.messages()]


def tell(store):
    """Two targets are to be told of a transition that is over; one has been."""
    store.begin_run(name="demo", run_id="r1")
    store.add_observation("r1", 1, make_observation(100))
    for transition in (OPEN, OVER):
        store.add_transition(transition, (TOLD, WAITS))
    assert store.flush()
    message, *_ = store.outbox.messages(TOLD.target)
    store.outbox.delivered(message)


def resume(store, state, *, attempt=2, transitions=(OVER,), run_id="r1"):
    store.begin_run(name="demo", run_id=run_id, attempt=attempt, resumed_step=100)
    store.take_over(run_id, attempt, 100, state, "r1", transitions)


def test_a_resume_into_an_empty_store_finds_messages_as_they_stood(path):
    with Store(path) as store:
        tell(store)
        before = told(store)
        assert [delivery for _, delivery, _, _ in before] == ["sent", "waiting", "waiting"]
        state = store.carry("r1", 5.0)
    forget(path)
    with Store(path) as store:
        resume(store, state)
        assert told(store) == before
        resume(store, state, attempt=3)
        assert told(store) == before, "a second resume of the checkpoint enters nothing"


def test_a_kind_that_was_corrected_keeps_who_was_told_what(path):
    corrected = replace(OPEN, kind=TransitionKind.SIMPLIFICATION)
    with Store(path) as store:
        tell(store)
        store.add_transition(corrected, (TOLD,))
        assert store.flush()
        before = told(store)
        state = store.carry("r1", 5.0)
    forget(path)
    with Store(path) as store:
        resume(store, state, transitions=[corrected])
        assert told(store) == before
        store.add_transition(corrected, (TOLD,))  # a resumed run comes to it again
        assert store.flush()
        assert told(store) == before


def test_what_was_delivered_after_the_checkpoint_is_known_to_the_resumed_run(path):
    """A process that outlived its training has delivered it; then the store is removed."""
    with Store(path) as store:
        tell(store)
        state = store.carry("r1", 5.0)
        for message in store.outbox.messages(delivery=Delivery.WAITING):
            store.outbox.delivered(message)
        before = told(store)
    with Store(path) as store:
        resume(store, state)
        assert told(store) == before, "what the checkpoint says is older than the store"
        forget(path)
        store.add_observation("r1", 2, make_observation(101))
        assert store.flush()
        assert told(store) == before
        (found,) = store.transitions("r1")
        assert found.status is TransitionStatus.ENDED


def test_what_waited_before_a_resume_waits_in_a_store_that_is_made_anew(path):
    with Store(path) as store:
        tell(store)
        before = told(store)
        state = store.carry("r1", 5.0)
    with Store(path) as store:
        resume(store, state)
        forget(path)
        store.add_observation("r1", 2, make_observation(101))
        assert store.flush()
        assert told(store) == before
        state = store.carry("r1", 5.0)
    forget(path)
    with Store(path) as store:  # and once more, from a checkpoint of the resumed run
        resume(store, state, attempt=3)
        assert told(store) == before


def test_a_message_whose_acknowledgement_the_store_lacks_is_settled(path):
    """As when the store is brought back from a copy that is older than the checkpoint."""
    with Store(path) as store:
        tell(store)
        before = told(store)
        state = store.carry("r1", 5.0)
    forget(path)
    with Store(path) as store:
        store.begin_run(name="demo", run_id="r1")
        for transition in (OPEN, OVER):
            store.add_transition(transition, (TOLD, WAITS))
        assert store.flush()
        resume(store, state)
        assert told(store) == before


def test_a_checkpoint_made_while_the_store_cannot_be_read_holds_what_was_said(path):
    with Store(path) as store:
        store.begin_run(name="demo", run_id="r1")
        store.add_transition(OPEN, (TOLD,))
        assert store.flush()
        store._read_messages = lambda run_id: False
        state = store.carry("r1", 5.0)
    forget(path)
    with Store(path) as store:
        resume(store, state, transitions=[OPEN])
        (message,) = store.outbox.messages()
        assert message.delivery is Delivery.WAITING


def test_a_branch_leaves_messages_to_the_run_they_are_of(path):
    with Store(path) as store:
        tell(store)
        before = told(store)
        state = store.carry("r1", 5.0)
        resume(store, state, run_id="r2", attempt=1)
        assert told(store) == before
    forget(path)
    with Store(path) as store:
        resume(store, state, run_id="r2", attempt=1)
        assert told(store) == []


def test_a_checkpoint_of_an_earlier_version_knows_nothing_of_messages(path):
    with Store(path) as store:
        tell(store)
        state = store.carry("r1", 5.0)
        del state["messages"]
    forget(path)
    with Store(path) as store:
        resume(store, state)
        assert told(store) == []
