"""Transitions as annotations, written to a stand-in that is held to Grafana's published API."""

import contextlib
import os
import random
import threading
import time

import numpy as np
import pytest
import torch

from phasewatch.monitor import Watch
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.errors import ConfigError, GrafanaError
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.grafana import annotations as module
from phasewatch.monitor.grafana.annotations import GrafanaAnnotations
from support.grafana import TOKEN, FakeGrafana
from support.records import make_observation, make_transition, wait_until
from support.scraping import free_port

RUN = 'grok "p=53"'
START = 1_700_000_000.25  # of make_observation's step 0


@pytest.fixture
def server():
    fake = FakeGrafana()
    yield fake
    fake.close()
    assert fake.faults == []


@pytest.fixture
def make_sink(server):
    made = []

    def make(url=server.url, **options):
        made.append(GrafanaAnnotations(url, RUN, **{"token": TOKEN} | options))
        return made[-1]

    yield make
    for sink in made:
        with contextlib.suppress(GrafanaError):
            sink.close()


def confirmed(**changes):
    return make_transition("r1", **{"status": TransitionStatus.CONFIRMED} | changes)


def ended(**changes):
    return confirmed(status=TransitionStatus.ENDED, end_step=120, **changes)


def observe(sink, *steps):
    for step in steps:
        sink.emit(make_observation(step))


def wait_for(server, count=1, **fields):
    def there():
        return len(server.annotations) == count and all(
            server.annotations[count].get(key) == value for key, value in fields.items()
        )

    wait_until(there, what=f"{count} annotations with {fields}")
    return server.annotations[count]


def test_a_region_goes_from_onset_to_detection_and_then_to_the_end(server, make_sink):
    sink = make_sink()
    observe(sink, 70, 90)
    sink.notify(confirmed(onset_step=80, detected_at=START + 90))
    found = wait_for(server)
    assert found["time"] == round(1000 * (START + 80))  # between two observed steps
    assert found["timeEnd"] == round(1000 * (START + 90))
    assert found["tags"] == ["phasewatch", "generalisation", f"run:{RUN}", "transition:t1"]
    assert found["text"].startswith("generalisation, from step 80<br>What: generalisation: ")
    assert "detected at step 90" in found["text"]
    assert "val_loss: 2 → nan" in found["text"]
    observe(sink, 120)
    sink.notify(ended(onset_step=80, detected_at=START + 90))
    found = wait_for(server, timeEnd=round(1000 * (START + 120)))
    assert "ended at step 120" in found["text"]
    assert [method for method, _ in server.requests] == ["GET", "POST", "PATCH"]


def test_a_suspicion_is_not_written_nor_its_withdrawal(server, make_sink):
    sink = make_sink()
    sink.notify(make_transition("r1"))
    sink.notify(confirmed(transition_id="t2"))
    sink.notify(make_transition("r1", status=TransitionStatus.WITHDRAWN))
    sink.close()
    assert [a["tags"][3] for a in server.annotations.values()] == ["transition:t2"]


def test_a_withdrawal_of_what_was_written_is_marked(server, make_sink):
    sink = make_sink()
    sink.notify(confirmed())
    wait_for(server)
    sink.notify(confirmed(status=TransitionStatus.WITHDRAWN))
    sink.close()
    assert "withdrawn" in server.annotations[1]["tags"]


def test_after_a_resume_the_same_annotation_is_changed(server, make_sink):
    first = make_sink()
    first.notify(confirmed())
    first.close()
    second = make_sink()
    second.notify(ended())
    second.close()
    assert "ended at step 120" in server.annotations[1]["text"]
    assert len(server.annotations) == 1


def test_names_are_escaped_in_the_text(server, make_sink):
    sink = make_sink()
    sink.notify(confirmed(before={"<b>": 1.0}, after={"<b>": 2.0}))
    sink.close()
    assert "&lt;b&gt;: 1 → 2" in server.annotations[1]["text"]


def failure_of(sink):
    """What is raised: by the call itself, where the thread was quicker, else by a later one."""
    with pytest.raises(GrafanaError) as raised, contextlib.closing(sink):
        sink.notify(confirmed())
    return str(raised.value)


def test_what_passes_is_tried_again_and_each_failure_is_raised_once(server, make_sink, monkeypatch):
    monkeypatch.setattr(module, "MAX_BACKOFF_SECONDS", 0.01)
    server.failures = [503, 0, 429]
    sink = make_sink()
    messages = []

    def call(method, argument):
        try:
            method(argument)
        except GrafanaError as error:
            messages.append(str(error))

    call(sink.notify, confirmed())
    wait_for(server)
    for step in range(1, 6):
        call(sink.emit, make_observation(step))
    assert len(messages) == 3
    assert "503" in messages[0]
    assert "cannot be reached" in messages[1]
    assert "429" in messages[2]
    assert len(server.annotations) == 1


def test_a_refusal_is_not_tried_again(server, make_sink):
    server.forbidden = [("POST", "/annotations")]
    message = failure_of(make_sink())
    assert "403" in message
    assert "may not write annotations" in message
    assert len(server.writes) == 1


def test_a_wrong_token_is_told_and_not_shown(server, make_sink):
    message = failure_of(make_sink(token="glsa_wrong_123"))
    assert "401" in message
    assert "glsa_wrong_123" not in message


def test_a_page_in_place_of_the_api_is_told(server, make_sink):
    message = failure_of(make_sink(url=f"{server.url}/d/abc"))
    assert "not JSON" in message
    assert "start page" in message


def test_a_token_does_not_follow_a_redirection(server, make_sink):
    server.failures = [302]
    assert "302" in failure_of(make_sink())
    assert len(server.requests) == 1


def test_training_never_waits_for_a_slow_grafana(server, make_sink):
    server.delay_seconds = 30.0
    sink = make_sink(timeout_seconds=0.5)
    before = threading.active_count()
    start = time.monotonic()
    for number in range(1000):
        with contextlib.suppress(GrafanaError):  # too many wait, or it did not answer in time
            sink.notify(confirmed(transition_id=f"t{number}"))
            observe(sink, number)
    with pytest.raises(GrafanaError, match=rf"{module.MAX_PENDING} annotations were not written"):
        sink.close()
    assert time.monotonic() - start < server.delay_seconds / 2  # far from one answer
    assert threading.active_count() <= before + 2  # the sink's thread, and the server's


def test_only_the_latest_state_waits(server, make_sink):
    sink = make_sink(url=f"http://127.0.0.1:{free_port()}")
    for _ in range(10):
        with contextlib.suppress(GrafanaError):  # nobody is there
            sink.notify(confirmed())
    assert len(sink._pending) == 1


def global_states():
    legacy = np.random.get_state()[1].tolist()  # noqa: NPY002 - the one that users' code draws from
    return random.getstate(), legacy, torch.get_rng_state().tolist()


def test_the_thread_draws_from_no_global_generator(server, make_sink, monkeypatch):
    monkeypatch.setattr(module, "MAX_BACKOFF_SECONDS", 0.01)
    server.failures = [500, 0]
    states = global_states()
    sink = make_sink()
    with contextlib.suppress(GrafanaError):
        sink.notify(confirmed())
    wait_for(server)
    assert global_states() == states


def test_without_a_transition_there_is_no_thread_and_no_call(server, make_sink):
    sink = make_sink()
    observe(sink, *range(10_000))
    sink.flush()
    sink.close()
    assert sink._thread is None
    assert server.requests == []
    assert len(sink._times._steps) <= 2048


def test_times_of_steps_are_kept_within_bounds_and_near():
    times = module._StepTimes(capacity=64)
    assert times.at(5, 1.5) == 1.5
    for step in range(10_000):
        times.note(step, 100.0 + step)
        times.note(step, 0.0)  # the first of a step counts
    assert len(times._steps) <= 64
    assert times.at(5_000, 0.0) == pytest.approx(5_100.0)
    assert times.at(-7, 0.0) == 100.0


# ---- in a watched run


@pytest.fixture
def settings(tmp_path, server, monkeypatch):
    monkeypatch.setenv("PHASEWATCH_GRAFANA_TOKEN", TOKEN)
    return {
        "run_name": RUN,
        "observables": [],
        "store": str(tmp_path / "store.db"),
        "exporter": {"enabled": False},
        "grafana": {"url": server.url},
    }


def fall(watch):
    """A loss that falls by far at step 600."""
    generator = np.random.default_rng(0)
    for step in range(1, 1201):
        value = 2.0 if step < 600 else 0.02
        watch.observe(step, {"train_loss": value * np.exp(0.02 * generator.standard_normal())})


def test_a_watched_run_writes_its_transition(settings, server):
    with Watch(settings) as watch:
        fall(watch)
        assert watch.health.sink_failures["GrafanaAnnotations"] == 0
    written = [t for t in watch.transitions if t.status is not TransitionStatus.SUSPECTED]
    assert written
    assert len(server.annotations) == len(written)
    found = server.annotations[1]
    assert f"run:{RUN}" in found["tags"]
    assert found["timeEnd"] >= found["time"]
    assert os.environ["PHASEWATCH_GRAFANA_TOKEN"] not in (watch.config.model_dump_json())


def trained(watch=None):
    """Weights and states of the generators after a short training with dropout."""
    torch.manual_seed(0)
    random.seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(1, 101):
        loss = model(torch.randn(16, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch.observe(step, {"train_loss": loss.detach()})
            for sink in watch._sinks._sinks:  # as often as there could be a transition
                with contextlib.suppress(GrafanaError):
                    sink.notify(confirmed(transition_id=f"t{step}"))
    return [p.tolist() for p in model.parameters()], global_states()


def test_training_is_the_same_bit_for_bit_beside_a_failing_grafana(settings, server):
    server.failures = [503, 0, 500] * 10
    plain = trained()
    with Watch(settings | {"grafana": {"url": server.url, "timeout_seconds": 1.0}}) as watch:
        assert trained(watch) == plain
    assert server.requests


def test_a_grafana_that_is_away_is_counted_and_training_goes_on(settings, server, caplog):
    settings["grafana"] = {"url": f"http://127.0.0.1:{free_port()}", "timeout_seconds": 1.0}
    with Watch(settings) as watch:
        fall(watch)
    assert watch.transitions
    assert watch.health.sink_failures["GrafanaAnnotations"] > 0
    assert "sink GrafanaAnnotations failed" in caplog.text
    assert TOKEN not in caplog.text


def test_a_missing_token_is_told_before_the_first_step(settings, monkeypatch):
    monkeypatch.delenv("PHASEWATCH_GRAFANA_TOKEN")
    with pytest.raises(ConfigError, match="no token for Grafana"):
        Watch(settings).start()


def test_the_configuration_has_no_place_for_a_token():
    with pytest.raises(ConfigError, match=r"grafana\.token: unknown key"):
        MonitorConfig.load({"grafana": {"url": "http://h", "token": "x"}})
