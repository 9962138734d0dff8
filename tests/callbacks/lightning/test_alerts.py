"""Alerts that fail in every way leave training equal bit for bit, and cost it no time."""

import time

import lightning.pytorch as pl
import pytest

from phasewatch.callbacks import TransitionMonitor
from phasewatch.monitor.config.alerts import AlertsConfig
from phasewatch.monitor.core.transitions import TransitionStatus
from support.bitwise import differences, quietly
from support.records import make_transition
from support.targets import Answer, FailingSmtp, http_target, notify
from support.training import make_trainer, record_case, unmonitored
from support.zoo import find

CASE = "dropout and BatchNorm"


class Announcer(pl.Callback):
    """Says after every step that there was a transition, and then lets the sender try."""

    def __init__(self, monitor):
        self.monitor = monitor

    def on_train_batch_end(self, trainer, module, *_):
        watch = self.monitor.watch
        name = f"t{trainer.global_step}"
        for status in (TransitionStatus.CONFIRMED, TransitionStatus.ENDED):
            notify(watch, make_transition(watch.run_id, status=status, transition_id=name))
        watch.drain()

    def on_train_end(self, trainer, module):
        watch = self.monitor.watch
        deadline = time.monotonic() + 60
        while watch.health.alert_failures < 4 and time.monotonic() < deadline:
            watch._sinks.refresh()
            time.sleep(0.05)


@pytest.mark.slow
def test_training_is_not_touched_by_alerts_that_fail(tmp_path):
    made = []
    smtp = FailingSmtp()
    with http_target() as server_error, http_target() as busy, http_target() as rude:
        server_error.always = Answer(500)
        busy.always = Answer(429, {"Retry-After": "1"})
        rude.always = Answer(drop=True)
        urls = [smtp.url, server_error.url, busy.url, rude.url, "json://127.0.0.1:9/nobody"]

        def monitors():
            monitor = TransitionMonitor(
                run_name="demo",
                store=tmp_path / "runs.db",
                every_n_steps=3,
                observables=["weight_norm"],
                exporter=False,
                alerts=AlertsConfig(targets=tuple(urls), updates=True, grace_seconds=0.0),
            )
            made.append(monitor)
            return [monitor, Announcer(monitor)]

        try:
            watched = record_case(find(CASE), tmp_path, monitors=monitors)
        finally:
            smtp.close()
        assert smtp.num_mails >= 1
        assert smtp.largest > 10_000, "the picture went along"
        assert server_error.seen
        assert busy.seen
        assert rude.seen
    assert differences(unmonitored(CASE), watched) == []
    health = made[0].watch.health
    assert health.alert_failures >= 4
    assert health.alert_sent == 0
    assert health.alert_queue >= 5 * watched.num_steps


def test_a_list_of_urls_will_do():
    monitor = TransitionMonitor(alerts=["json://localhost/secret"])
    assert monitor.config.alerts == AlertsConfig(targets=("json://localhost/secret",))


def test_a_rehearsal_alerts_nobody(tmp_path):
    monitor = TransitionMonitor(alerts=["json://127.0.0.1:9"], observables=[])
    case = find("multilayer perceptron")
    trainer = make_trainer(tmp_path, [monitor], fast_dev_run=True)
    quietly(lambda: trainer.fit(case.build(), **case.loaders()))
    assert monitor.watch.config.alerts.targets == ()
