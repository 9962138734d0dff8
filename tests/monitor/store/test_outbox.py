"""Messages enter with their transition, once, and leave in order."""

import sqlite3

import pytest

from phasewatch.monitor.core.transitions import Recipient, TransitionKind, TransitionStatus
from phasewatch.monitor.store import outbox as outbox_module
from phasewatch.monitor.store.outbox import Delivery, Mailbox, Outbox
from phasewatch.monitor.store.store import Store
from support.records import make_transition, start_python

SUSPECTED, CONFIRMED, ENDED, WITHDRAWN = TransitionStatus
SIMPLER, GENERAL = TransitionKind.SIMPLIFICATION, TransitionKind.GENERALISATION
PLAIN = Recipient(target="1-json-aa")
EAGER = Recipient(target="2-alertmanager-bb", updates=True)
EARLY = Recipient(target="3-json-cc", from_suspected=True)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "runs.db") as store:
        store.begin_run(name="demo", run_id="demo")
        yield store


def tell(store, *statuses, to=(PLAIN,), transition_id="t1"):
    for status in statuses:
        transition = make_transition("demo", status=status, transition_id=transition_id)
        store.add_transition(transition, to)
    store.flush()


def states(store, recipient=PLAIN):
    return [message.state for message in store.outbox.messages(recipient.target)]


def sender(store):
    return Outbox(store.database)


def test_an_alert_is_entered_at_confirmed_and_once(store):
    tell(store, SUSPECTED)
    assert states(store) == []
    tell(store, CONFIRMED, CONFIRMED)
    assert states(store) == [CONFIRMED]
    (message,) = store.outbox.messages()
    assert message.key == "t1/confirmed/1-json-aa"
    assert message.delivery is Delivery.WAITING


def test_news_go_to_those_who_want_them_and_were_alerted(store):
    tell(store, CONFIRMED, ENDED, to=(PLAIN, EAGER))
    assert states(store) == [CONFIRMED]
    assert states(store, EAGER) == [CONFIRMED, ENDED]
    tell(store, ENDED, to=(EAGER,), transition_id="t2")
    assert len(states(store, EAGER)) == 2


def test_a_withdrawal_follows_only_an_alert(store):
    tell(store, SUSPECTED, WITHDRAWN)
    assert states(store) == []
    tell(store, CONFIRMED, WITHDRAWN, transition_id="t2")
    assert states(store) == [CONFIRMED, WITHDRAWN]


def test_a_target_may_be_told_at_the_first_suspicion(store):
    tell(store, SUSPECTED, CONFIRMED, ENDED, to=(EARLY,))
    assert states(store, EARLY) == [SUSPECTED]


def test_nothing_is_entered_where_nobody_is_to_be_told(store):
    tell(store, CONFIRMED, to=())
    assert store.outbox.messages() == []


def test_a_message_tells_the_transition_as_it_was_then(store):
    store.add_transition(make_transition("demo", status=CONFIRMED, severity=1.0), (EAGER,))
    store.add_transition(make_transition("demo", status=ENDED, severity=2.0, end_step=99), (EAGER,))
    store.flush()
    first, last = store.outbox.messages()
    assert (first.transition.severity, last.transition.severity) == (1.0, 2.0)


def tell_kinds(store, *kinds, status=CONFIRMED, to=(PLAIN,)):
    for kind in kinds:
        store.add_transition(make_transition("demo", status=status, kind=kind), to)
    store.flush()


def kinds_told(store, recipient=PLAIN):
    messages = store.outbox.messages(recipient.target)
    return [(message.state, message.transition.kind, message.told_as) for message in messages]


def test_a_kind_that_changes_is_told_to_whoever_was_told_the_first_once(store):
    tell_kinds(store, SIMPLER, SIMPLER, GENERAL, GENERAL, SIMPLER, to=(PLAIN, EAGER))
    told = [(CONFIRMED, SIMPLER, ()), (CONFIRMED, GENERAL, (SIMPLER,))]
    assert kinds_told(store) == kinds_told(store, EAGER) == told
    keys = [message.key for message in store.outbox.messages(PLAIN.target)]
    assert keys == ["t1/confirmed/1-json-aa", "t1/confirmed/generalisation/1-json-aa"]


def test_the_kind_that_stands_in_the_end_is_told_where_another_was_told_last(store):
    tell_kinds(store, SIMPLER, GENERAL, SIMPLER)
    tell_kinds(store, SIMPLER, SIMPLER, status=ENDED)
    assert kinds_told(store)[2:] == [(ENDED, SIMPLER, (SIMPLER, GENERAL))]


def test_a_kind_that_is_corrected_since_the_first_suspicion_is_told(store):
    tell_kinds(store, SIMPLER, status=SUSPECTED, to=(EARLY,))
    tell_kinds(store, SIMPLER, GENERAL, to=(EARLY,))
    assert kinds_told(store, EARLY) == [
        (SUSPECTED, SIMPLER, ()),
        (CONFIRMED, GENERAL, (SIMPLER,)),
    ]


def test_a_correction_reaches_a_target_that_is_no_longer_named(store):
    tell_kinds(store, SIMPLER)
    tell_kinds(store, GENERAL, to=(Recipient(target="2-json-cc"),))
    assert [kind for _, kind, _ in kinds_told(store)] == [SIMPLER, GENERAL]


def test_the_transition_and_its_messages_are_written_together_or_not_at_all(store, monkeypatch):
    def fail(*_):
        raise ValueError("no")

    monkeypatch.setattr("phasewatch.monitor.store.rows.enter", fail)
    tell(store, CONFIRMED)
    assert store.transitions("demo") == []
    assert store.outbox.messages() == []
    assert store.num_dropped == 1


def test_messages_of_a_target_come_one_after_the_other(store):
    tell(store, CONFIRMED, transition_id="a")
    tell(store, CONFIRMED, transition_id="b")
    box = sender(store)
    first = box.first(Mailbox(target=PLAIN.target))
    assert first.transition.id == "a"
    assert box.claim(first)
    box.failed(first, "HTTP 500")
    assert box.first(Mailbox(target=PLAIN.target)).transition.id == "a"
    assert box.first(Mailbox(target=PLAIN.target)).last_error == "HTTP 500"
    assert box.claim(first)
    box.delivered(first)
    assert box.first(Mailbox(target=PLAIN.target)).transition.id == "b"
    assert box.num_waiting([Mailbox(target=PLAIN.target)]) == 1
    sent, waiting = box.messages()
    assert (sent.delivery, sent.tries, sent.last_error) == (Delivery.SENT, 2, "")
    assert sent.sent_at >= sent.created_at
    assert waiting.tries == 0


def test_two_senders_do_not_send_the_same_message(store, monkeypatch):
    tell(store, CONFIRMED)
    one, two = sender(store), sender(store)
    message = one.first(Mailbox(target=PLAIN.target))
    assert one.claim(message)
    assert not two.claim(message)
    assert one.claim(message)  # its own
    monkeypatch.setattr(outbox_module, "CLAIM_SECONDS", -1.0)
    assert one.claim(message)  # and dies: the claim has run out
    assert two.claim(message)
    two.delivered(message)
    assert not one.claim(message)


def test_the_claim_of_a_process_that_is_gone_ends_with_it(store):
    tell(store, CONFIRMED)
    child = start_python(
        """
import sys
from phasewatch.monitor.store.outbox import Mailbox
from phasewatch.monitor.store.store import Store
store = Store(sys.argv[1], create=False)
message = store.outbox.first(Mailbox(target=sys.argv[2]))
print(store.outbox.claim(message), flush=True)
sys.stdin.read()
""",
        store.where,
        PLAIN.target,
    )
    try:
        assert child.stdout.readline() == "True\n"
        box = sender(store)
        message = box.first(Mailbox(target=PLAIN.target))
        assert not box.claim(message)
    finally:
        child.kill()
        child.communicate()
    assert box.claim(message)


def test_a_target_that_asked_for_time_gets_it(store):
    tell(store, CONFIRMED)
    box = sender(store)
    message = box.first(Mailbox(target=PLAIN.target))
    box.failed(message, "HTTP 429", not_before=2e10)
    assert box.first(Mailbox(target=PLAIN.target)) is None
    box.failed(message, "HTTP 429", not_before=1.0)
    assert box.first(Mailbox(target=PLAIN.target)) is not None


def test_what_waits_for_another_secret_is_adopted_within_its_run_only(store):
    old, new = Recipient(target="1-json-aaaaaaaa"), "1-json-bbbbbbbb"
    store.add_transition(make_transition("demo", status=CONFIRMED, transition_id="a"), (old,))
    store.flush()
    box = sender(store)
    assert box.first(Mailbox(target=new, run_id="another")) is None
    assert box.first(Mailbox(target=new)) is None
    assert box.num_waiting([Mailbox(target=new, run_id="another")]) == 0
    assert box.first(Mailbox(target=new, run_id="demo")).transition.id == "a"
    assert box.first(Mailbox(target=old.target, run_id="another")).transition.id == "a"
    assert box.first(Mailbox(target="2-json-aaaaaaaa", run_id="demo")) is None


def test_a_message_that_is_put_off_holds_up_only_what_follows_of_its_transition(store):
    tell(store, CONFIRMED, transition_id="a", to=(EAGER,))
    tell(store, ENDED, transition_id="a", to=(EAGER,))
    tell(store, CONFIRMED, transition_id="b", to=(EAGER,))
    box = sender(store)
    mine = Mailbox(target=EAGER.target)
    first = box.first(mine)
    second = box.first(mine, {first.id})
    assert (second.transition.id, second.state) == ("b", CONFIRMED)
    assert box.first(mine, {first.id, second.id}) is None


def test_a_withdrawal_reaches_a_target_that_is_no_longer_named(store):
    gone, now = Recipient(target="1-slack-aaaaaaaa"), Recipient(target="1-json-bbbbbbbb")
    for status, recipient in ((CONFIRMED, gone), (WITHDRAWN, now)):
        store.add_transition(
            make_transition("demo", status=status, transition_id="a"), (recipient,)
        )
    store.flush()
    assert [(m.target, m.state) for m in store.outbox.messages()] == [
        (gone.target, CONFIRMED),
        (gone.target, WITHDRAWN),
    ]


def test_a_changed_secret_is_no_new_target(store):
    old = Recipient(target="1-json-aaaaaaaa", updates=True)
    new = Recipient(target="1-json-bbbbbbbb", updates=True)
    for status, recipient in ((CONFIRMED, old), (CONFIRMED, new), (ENDED, new)):
        store.add_transition(
            make_transition("demo", status=status, transition_id="a"), (recipient,)
        )
    store.flush()
    assert [(m.target, m.state) for m in store.outbox.messages()] == [
        (old.target, CONFIRMED),
        (old.target, ENDED),
    ]


def test_an_alert_withdrawn_before_a_try_is_dropped_with_its_withdrawal(store):
    tell(store, CONFIRMED, WITHDRAWN)
    box = sender(store)
    assert not box.claim(box.first(Mailbox(target=PLAIN.target)))
    assert [m.delivery for m in box.messages()] == [Delivery.DROPPED] * 2
    assert box.num_waiting([Mailbox(target=PLAIN.target)]) == 0


def test_an_alert_that_may_have_arrived_is_withdrawn_in_words(store):
    tell(store, CONFIRMED)
    box = sender(store)
    message = box.first(Mailbox(target=PLAIN.target))
    assert box.claim(message)
    box.failed(message, "timed out")
    tell(store, WITHDRAWN)
    assert box.claim(box.first(Mailbox(target=PLAIN.target)))
    box.delivered(message)
    assert box.first(Mailbox(target=PLAIN.target)).state is WITHDRAWN


def test_open_alerts_are_those_delivered_and_not_over(store):
    for name, statuses in {"a": [CONFIRMED], "b": [CONFIRMED, ENDED], "c": [CONFIRMED]}.items():
        tell(store, *statuses, to=(EAGER,), transition_id=name)
    box = sender(store)
    for _ in range(3):
        message = box.first(Mailbox(target=EAGER.target))
        box.claim(message)
        box.delivered(message)
    assert [m.transition.id for m in box.open_alerts(EAGER.target, "demo")] == ["a"]
    assert box.open_alerts(EAGER.target, "another run") == []


def test_a_resumed_run_that_finds_a_transition_again_does_not_tell_it_again(store):
    tell(store, CONFIRMED)
    box = sender(store)
    message = box.first(Mailbox(target=PLAIN.target))
    box.claim(message)
    box.delivered(message)
    store.begin_run(name="demo", run_id="demo", attempt=2, resumed_step=5)
    again = make_transition("demo", status=CONFIRMED, attempt=2)
    store.add_transition(again, (PLAIN,))
    store.flush()
    assert [m.delivery for m in box.messages()] == [Delivery.SENT]


def test_a_store_of_before_there_were_alerts_is_read_and_gets_the_table(tmp_path):
    path = tmp_path / "old.db"
    with Store(path) as store:
        store.begin_run(name="demo", run_id="demo")
    raw = sqlite3.connect(path)
    raw.execute("DROP TABLE phasewatch_outbox")
    raw.commit()
    raw.close()
    with Store(path, create=False) as store:
        assert store.outbox.messages() == []
    with Store(path) as store:
        tell(store, CONFIRMED)
        assert states(store) == [CONFIRMED]
