"""Pushing: what a gateway gets, who we say we are, gateways that fail, the end of a run."""

import base64
import random
import subprocess
import threading
import time
import urllib.error
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from phasewatch.monitor import Watch
from phasewatch.monitor.config.exports import PushgatewayConfig
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.prometheus.push import PushgatewaySink
from support.needs import need_binary
from support.records import make_observation, wait_until
from support.scraping import free_port, scrape
from support.stand_in import StandInServer

SECRET = "s3cret:with/colon"


class Gateway(StandInServer):
    """A stand-in that keeps requests; `status` is what it answers, None answers never."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 202
        self.requests = []
        self.freed = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, dict(self.headers), body.decode()))
        if self.server.status is None:
            self.server.freed.wait(30)
            return
        self.send_response(self.server.status)
        self.end_headers()

    do_DELETE = do_PUT

    def log_message(self, *_):
        pass


@pytest.fixture
def gateway():
    server = Gateway()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.freed.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def health():
    return Health()


@pytest.fixture
def push(gateway, health):
    sinks = []

    def start(run="demo", **config):
        quick = {"url": gateway.url, "interval_seconds": 0.05, "linger_seconds": 0.0}
        sinks.append(PushgatewaySink(run, PushgatewayConfig(**quick | config), health))
        sinks[-1].emit(make_observation(1, 0.25))
        return sinks[-1]

    yield start
    for sink in sinks:
        sink.close()


def test_the_classic_text_is_put_into_the_group_of_the_run(push, gateway):
    push()
    wait_until(lambda: gateway.requests, what="a push")
    method, path, headers, body = gateway.requests[0]
    assert (method, path) == ("PUT", "/metrics/job/phasewatch/run/demo")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "Authorization" not in headers
    assert 'phasewatch_loss_nats{run="demo",split="train"} 0.25\n' in body
    assert "# EOF" not in body
    assert " # {" not in body


def test_later_values_are_pushed_later(push, gateway, health):
    sink = push()
    sink.emit(make_observation(2, 0.125))
    health.step = 2
    line = 'phasewatch_run_step{run="demo"} 2.0'
    wait_until(lambda: gateway.requests and line in gateway.requests[-1][3], what="step 2")
    assert "0.125" in gateway.requests[-1][3]


@pytest.mark.parametrize("run", ["a/b", "żółć", "\udcff", 'say "hi"\n', "x" * 10_000, ".."])
def test_hostile_run_names_make_a_group_of_their_own(push, gateway, run):
    sink = push(run)
    wait_until(lambda: gateway.requests, what="a push")
    _, path, _, body = gateway.requests[0]
    assert path.startswith("/metrics/job/phasewatch/run")
    assert len(path) < 2000
    assert path.isascii()
    labels = {
        sample.labels["run"]
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if "run" in sample.labels
    }
    assert labels == {sink._collector.run}


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.FAILED, RunState.INTERRUPTED])
def test_the_end_is_pushed_and_then_the_group_is_deleted(push, gateway, health, state):
    sink = push(interval_seconds=60.0)
    wait_until(lambda: gateway.requests, what="a push")
    health.state = state
    sink.close()
    assert [method for method, *_ in gateway.requests] == ["PUT", "PUT", "DELETE"]
    assert f'phasewatch_run_state{{run="demo",state="{state}"}} 1.0' in gateway.requests[1][3]
    assert gateway.requests[2][1] == gateway.requests[1][1]


def test_a_run_that_has_not_ended_leaves_its_group(push, gateway):
    sink = push(interval_seconds=60.0)
    sink.close()
    assert {method for method, *_ in gateway.requests} == {"PUT"}


# Passwords ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["env", "file"])
def test_user_and_password_are_sent(push, gateway, tmp_path, monkeypatch, where):
    monkeypatch.setenv("GATEWAY_PASSWORD", SECRET)
    (tmp_path / "password").write_text(SECRET + "\n")
    place = {"env": "GATEWAY_PASSWORD", "file": tmp_path / "password"}[where]
    push(username="me", **{f"password_{where}": place})
    wait_until(lambda: gateway.requests, what="a push")
    sent = gateway.requests[0][2]["Authorization"]
    assert base64.b64decode(sent.removeprefix("Basic ")).decode() == f"me:{SECRET}"


def test_a_password_is_in_no_log_and_in_no_configuration(push, gateway, monkeypatch, caplog):
    monkeypatch.setenv("GATEWAY_PASSWORD", SECRET)
    gateway.status = 401
    sink = push(username="me", password_env="GATEWAY_PASSWORD")
    wait_until(lambda: caplog.records, what="the warning")
    assert "401" in caplog.text
    assert SECRET not in caplog.text + repr(sink._config) + sink._config.model_dump_json()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": f"http://me:{SECRET}@gateway:9091"}, "give user and password as username"),
        ({"url": "gateway:9091"}, "give a URL, as http://gateway:9091"),
        ({"url": "http://a", "username": "me"}, "give username with one of"),
        ({"url": "http://a", "password_env": "A"}, "give username with one of"),
    ],
)
def test_a_wrong_configuration_is_refused_without_secrets(settings, told):
    with pytest.raises(ConfigError, match=told) as caught:
        MonitorConfig.load({"pushgateway": settings})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"password_env": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE.*not in the environment"),
        ({"password_file": "/no/such/file"}, "/no/such/file.*cannot be read"),
    ],
)
def test_a_password_that_is_missing_is_told_before_training(tmp_path, setting, told):
    before = set(threading.enumerate())
    config = {
        "store": str(tmp_path / "runs.db"),
        "pushgateway": {"url": "http://127.0.0.1:1", "username": "me"} | setting,
    }
    with pytest.raises(ConfigError, match=told):
        Watch(config, observables=[]).start()
    assert set(threading.enumerate()) <= before


# Gateways that fail -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 429, 500, 301])
def test_a_gateway_that_refuses_is_counted_and_told_once(push, gateway, health, caplog, status):
    gateway.status = status
    push()
    wait_until(lambda: health.sink_failures["PushgatewaySink"] >= 3, what="three failures")
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"pushing to {gateway.url} failed" in told
    assert str(status) in told
    gateway.status = 202
    number = len(gateway.requests)
    wait_until(lambda: len(gateway.requests) > number + 1, what="further pushes")


def test_nobody_at_the_address_is_counted(health):
    config = PushgatewayConfig(url=f"http://127.0.0.1:{free_port()}", interval_seconds=0.05)
    sink = PushgatewaySink("demo", config, health)
    assert health.sink_failures == {"PushgatewaySink": 0}
    sink.emit(make_observation(1))
    wait_until(lambda: health.sink_failures["PushgatewaySink"] >= 2, what="two failures")
    health.state = RunState.FINISHED
    sink.close()  # nothing to linger for: the default of 30 s is not waited
    assert sink._stop.is_set()
    assert not sink._thread.is_alive()


def test_a_gateway_that_hangs_holds_training_for_no_longer_than_its_timeouts(push, gateway, health):
    gateway.status = None
    sink = push(timeout_seconds=0.3, interval_seconds=60.0)
    for step in range(2, 1000):
        sink.emit(make_observation(step))  # returns at once: another thread waits
    health.state = RunState.FINISHED
    sink.close()
    assert not sink._thread.is_alive()
    assert health.sink_failures["PushgatewaySink"] == 3


def test_pushing_draws_from_no_global_generator(push, gateway, monkeypatch):
    monkeypatch.setenv("GATEWAY_PASSWORD", SECRET)
    before = states()
    push(username="me", password_env="GATEWAY_PASSWORD")
    wait_until(lambda: len(gateway.requests) > 5, what="pushes")
    assert states() == before


def states():
    """States of the global generators."""
    numpy = np.random.get_state()[1].tobytes()  # noqa: NPY002 - the global one is meant
    return random.getstate(), numpy, torch.get_rng_state().numpy().tobytes()


def test_pushing_is_off_by_default():
    assert MonitorConfig().pushgateway is None


def test_a_watch_pushes_also_where_it_serves_nothing(gateway, tmp_path):
    config = {
        "run_name": "demo",
        "store": str(tmp_path / "runs.db"),
        "exporter": {"enabled": False},
        "pushgateway": {"url": gateway.url, "linger_seconds": 0.0},
    }
    with Watch(config, observables=[]) as watch:
        watch.observe(1, {"train_loss": 0.5})
        watch.drain()
        wait_until(lambda: gateway.requests, what="a push")
    assert [method for method, *_ in gateway.requests][-1] == "DELETE"
    assert 'state="finished"} 1.0' in gateway.requests[-2][3]


def test_a_real_pushgateway_takes_it_and_forgets_it(health):
    port = free_port()
    server = subprocess.Popen(
        [need_binary("prometheus-pushgateway"), f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"

    def page():
        try:
            return scrape(f"{url}/metrics")
        except (urllib.error.URLError, ConnectionError):
            return ""

    try:
        wait_until(page, what="the Pushgateway")
        config = PushgatewayConfig(url=url, interval_seconds=0.1, linger_seconds=1.0)
        sink = PushgatewaySink('a/b "c"\\', config, health)
        sink.emit(make_observation(1, 0.25))
        sink.emit(make_observation(1, name="say \n", unit="x" * 10_000))
        health.measured("llc", 0.5, 1)
        wait_until(lambda: "phasewatch_loss_nats" in page(), what="the push")
        assert health.sink_failures["PushgatewaySink"] == 0
        (age,) = [line for line in page().splitlines() if line.startswith("push_time_seconds{")]
        assert r'run="a/b \"c\"\\"' in age
        assert time.time() - float(age.rsplit(" ", 1)[1]) < 60
        health.state = RunState.FINISHED
        closing = threading.Thread(target=sink.close)
        closing.start()
        wait_until(lambda: 'state="finished"} 1' in page(), what="the end")
        closing.join(30)
        assert "phasewatch_" not in page()
        assert health.sink_failures["PushgatewaySink"] == 0
    finally:
        server.terminate()
        server.wait(timeout=30)
