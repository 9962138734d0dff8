"""How a courier works through the messages of its target."""

import time
from datetime import datetime

import pytest

from phasewatch.monitor.alerts import courier as alert_courier
from phasewatch.monitor.alerts.courier import couriers
from phasewatch.monitor.alerts.delivery import DeliveryError
from phasewatch.monitor.alerts.worker import Worker
from phasewatch.monitor.config.alerts import AlertsConfig, resolve_targets
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.store.outbox import Delivery
from phasewatch.monitor.store.store import Store
from support.records import make_transition

JSON, MANAGER = "json://host/secret", "alertmanager://host"


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return time.time()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(alert_courier, "time", clock)
    monkeypatch.setattr(alert_courier.random, "uniform", lambda low, high: 1.0)
    return clock


class Sent(list):
    """Alerts delivered; `errors` come first."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def deliver(self, target, alert):
        if self.errors:
            raise self.errors.pop(0)
        self.append(alert)


@pytest.fixture
def sent(monkeypatch):
    sent = Sent()
    monkeypatch.setattr(alert_courier, "deliver", sent.deliver)
    return sent


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "runs.db") as store:
        store.begin_run(name="demo", run_id="demo")
        yield store


def set_up(store, tmp_path, *, url=JSON, num=1, **settings):
    """A courier with some alerts to send."""
    config = AlertsConfig(targets=(url,), **({"picture": False} | settings))
    targets = resolve_targets(config)
    for number in range(num):
        transition = make_transition(
            "demo", 90 + number, status=TransitionStatus.CONFIRMED, transition_id=f"t{number}"
        )
        store.add_transition(transition, tuple(t.recipient(config) for t in targets))
    store.flush()
    said = []
    (courier,) = couriers(store, targets, config, tmp_path, run_id="demo", say=said.append)
    return courier, said


def test_messages_leave_in_order_each_once(store, tmp_path, sent):
    courier, said = set_up(store, tmp_path, num=3)
    while courier.step():
        pass
    assert [alert.transition.id for alert in sent] == ["t0", "t1", "t2"]
    assert not courier.step()
    assert (courier.counts.sent, courier.counts.failed) == (3, 0)
    assert said == []


def test_a_failure_is_tried_again_later_and_later_and_holds_up_what_follows(
    store, tmp_path, clock, sent
):
    courier, said = set_up(store, tmp_path, num=2)
    sent.errors += [DeliveryError("HTTP 500")] * 12
    waits = []
    while not sent:
        before = clock.now
        while not sent and courier.counts.failed == len(waits):
            courier.step()
            clock.now += 0.5
        waits.append(clock.now - before)
    assert waits[1:5] == [1.0, 2.0, 4.0, 8.0]
    assert max(waits) == alert_courier.MAX_RETRY_SECONDS
    assert sent[0].transition.id == "t0"
    assert courier.counts.failed == 12
    assert said == [
        f"{courier.target.name} did not take an alert: HTTP 500; it waits in the outbox and is "
        "tried again",
        f"{courier.target.name} takes alerts again",
    ]


def test_a_message_that_is_refused_for_ever_holds_up_no_other(
    store, tmp_path, clock, sent, monkeypatch
):
    courier, _ = set_up(store, tmp_path, num=4)

    def picky(target, alert):
        if alert.transition.id == "t0":
            sent.errors.append(alert.key)
            raise DeliveryError("HTTP 400", has_answered=True)
        sent.append(alert)

    monkeypatch.setattr(alert_courier, "deliver", picky)
    for _ in range(200):
        while courier.step():
            pass
        clock.now += 1.0
    assert [alert.transition.id for alert in sent] == ["t1", "t2", "t3"]
    assert 3 <= len(sent.errors) <= 12
    assert [m.delivery.value for m in store.outbox.messages()] == ["waiting", *["sent"] * 3]


def test_a_service_that_refuses_everything_is_left_alone_for_longer_and_longer(
    store, tmp_path, clock, sent
):
    courier, _ = set_up(store, tmp_path, num=30)
    sent.errors += [DeliveryError("HTTP 500", has_answered=True) for _ in range(500)]
    for _ in range(600):
        while courier.step():
            pass
        clock.now += 1.0
    assert 500 - len(sent.errors) < 40


def test_what_was_delivered_and_cannot_be_noted_is_not_sent_again(
    store, tmp_path, clock, sent, monkeypatch
):
    courier, _ = set_up(store, tmp_path, num=2)
    noted = courier._outbox.delivered
    locked = OSError("database is locked")

    def refuse(message):
        raise locked

    courier._outbox.delivered = refuse
    for _ in range(5):
        with pytest.raises(OSError, match="locked"):
            courier.step()
    assert len(sent) == 1
    assert courier.num_unnoted == 1
    courier._outbox.delivered = noted
    while courier.step():
        pass
    assert [alert.transition.id for alert in sent] == ["t0", "t1"]
    assert courier.num_unnoted == 0
    assert [m.delivery.value for m in store.outbox.messages()] == ["sent", "sent"]


def test_the_end_of_a_run_does_not_wait_for_the_next_try(store, tmp_path, clock, sent):
    courier, _ = set_up(store, tmp_path)
    sent.errors += [DeliveryError("HTTP 500")]
    courier.step()
    courier.step()
    assert sent == []
    courier.retry_now()
    courier.step()
    assert len(sent) == 1


def test_a_target_that_says_when_is_left_alone_till_then(store, tmp_path, sent):
    courier, _ = set_up(store, tmp_path)
    sent.errors += [DeliveryError("HTTP 429", retry_after=3600.0)]
    courier.step()
    courier.retry_now()
    courier.step()
    assert sent == []
    (message,) = store.outbox.messages()
    assert message.not_before == pytest.approx(time.time() + 3600, abs=60)
    assert message.last_error == "HTTP 429"


def test_what_exceeds_the_rate_waits(store, tmp_path, sent):
    courier, _ = set_up(store, tmp_path, num=3, max_per_hour=2)
    while courier.step():
        pass
    assert len(sent) == 2
    assert courier.is_held
    while courier.step(is_urgent=True):
        pass
    assert len(sent) == 3


def test_messages_wait_in_quiet_hours(store, tmp_path, sent):
    now = datetime.now().astimezone()
    quiet = f"{now:%H:%M}-{(now.hour + 2) % 24:02}:00"
    courier, _ = set_up(store, tmp_path, quiet_hours=quiet)
    assert not courier.step()
    assert courier.is_held
    assert sent == []
    courier.step(is_urgent=True)
    assert len(sent) == 1


def test_alertmanager_has_its_own_quiet_hours_and_limits(store, tmp_path, sent):
    now = datetime.now().astimezone()
    quiet = f"{now:%H:%M}-{(now.hour + 2) % 24:02}:00"
    courier, _ = set_up(store, tmp_path, url=MANAGER, num=2, quiet_hours=quiet, max_per_hour=1)
    while courier.step():
        pass
    assert len(sent) == 2


def test_what_lasts_is_sent_again_to_alertmanager_until_it_ends(store, tmp_path, clock, sent):
    courier, _ = set_up(store, tmp_path, url=MANAGER)
    courier.step()
    courier.refresh_lasting()
    assert len(sent) == 1  # not yet
    for expected in (2, 3):
        clock.now += alert_courier.REFRESH_SECONDS
        courier.refresh_lasting()
        assert len(sent) == expected
        assert courier.has_lasting
    ended = make_transition("demo", status=TransitionStatus.ENDED, transition_id="t0", end_step=99)
    store.add_transition(ended, (courier.target.recipient(AlertsConfig()),))
    store.flush()
    courier.step()
    assert sent[-1].is_over
    clock.now += alert_courier.REFRESH_SECONDS
    courier.refresh_lasting()
    assert len(sent) == 4
    assert not courier.has_lasting


def test_an_alert_has_a_picture_of_its_run(store, tmp_path, sent):
    courier, _ = set_up(store, tmp_path, picture=True)
    courier.step()
    assert sent[0].picture.read_bytes().startswith(b"\x89PNG")


def test_an_alert_does_not_wait_for_a_picture_that_cannot_be_drawn(
    store, tmp_path, sent, monkeypatch
):
    def fail(*_):
        raise ValueError("no")

    monkeypatch.setattr("phasewatch.monitor.reports.png.write_picture", fail)
    courier, said = set_up(store, tmp_path, picture=True, num=2)
    while courier.step():
        pass
    assert [alert.picture for alert in sent] == [None, None]
    (note,) = said
    assert "ValueError: no" in note
    assert courier.counts.failed == 0


def test_a_message_that_cannot_be_written_is_counted_told_once_and_put_off(
    store, tmp_path, clock, sent
):
    courier, said = set_up(store, tmp_path)
    for _ in range(2):
        courier.record_failure(KeyError("kind"))
    assert courier.counts.failed == 2
    (note,) = said
    assert "KeyError: 'kind'" in note
    assert "waits in the outbox" in note
    assert not courier.step()
    assert not sent
    courier.retry_now()
    assert courier.step()
    assert len(sent) == 1


def test_whatever_is_raised_at_work_reaches_the_account(monkeypatch):
    class Clumsy:
        def __init__(self):
            self.fails = [ValueError("first"), SystemExit()]
            self.failures_seen = []

        def step(self):
            raise self.fails.pop(0)

        def record_failure(self, error):
            self.failures_seen.append(error)

    clumsy = Clumsy()
    monkeypatch.setattr("phasewatch.monitor.alerts.worker.POLL_SECONDS", 0.0)
    with pytest.raises(SystemExit):
        Worker._work(None, clumsy)
    assert [str(error) for error in clumsy.failures_seen] == ["first"]


def test_a_plugin_that_raises_is_a_failed_try_without_secrets(monkeypatch):
    (target,) = resolve_targets(AlertsConfig(targets=("json://host/TOPSECRET",)))

    def explode(url, alert):
        raise RuntimeError(f"cannot reach {url}")

    monkeypatch.setattr("phasewatch.monitor.alerts.apprise.send_by_apprise", explode)
    with pytest.raises(DeliveryError, match="RuntimeError") as caught:
        alert_courier.deliver(target, None)
    assert "TOPSECRET" not in str(caught.value)


def test_a_message_that_was_sent_stays_sent(store, tmp_path, sent):
    courier, _ = set_up(store, tmp_path)
    courier.step()
    assert [m.delivery for m in store.outbox.messages()] == [Delivery.SENT]


def test_a_message_that_is_refused_is_tried_without_its_picture(store, tmp_path, sent):
    courier, _ = set_up(store, tmp_path, picture=True)
    sent.errors += [DeliveryError("HTTP 413")]
    courier.step()
    courier.retry_now()
    courier.step()
    assert [alert.picture for alert in sent] == [None]
