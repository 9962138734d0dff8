"""The endpoint of a run: its address, its end, its target file."""

import json
import logging
import math
import platform
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.prometheus import sink as prometheus
from phasewatch.monitor.prometheus.sink import PrometheusSink
from support.records import make_observation, start_python
from support.scraping import OPENMETRICS, free_port, scrape


@pytest.fixture
def health():
    return Health()


@pytest.fixture
def serve(health):
    """Starts sinks and closes them."""
    sinks = []

    def start(run="demo", **config):
        sinks.append(PrometheusSink(run, ExporterConfig(**{"port": 0} | config), health))
        return sinks[-1]

    yield start
    for sink in sinks:
        sink.close()


# The server -------------------------------------------------------------------------------------


def test_the_latest_value_is_served_in_both_formats(serve):
    sink = serve()
    sink.emit(make_observation(1, 0.5))
    sink.emit(make_observation(2, 0.25))
    line = 'phasewatch_loss_nats{run="demo",split="train"} 0.25\n'
    assert line in scrape(sink.url)
    text = scrape(sink.url, OPENMETRICS)
    assert line in text
    assert text.endswith("# EOF\n")


def test_health_is_read_at_each_scrape(serve, health):
    sink = serve()
    health.step = 77
    assert 'phasewatch_run_step{run="demo"} 77.0\n' in scrape(sink.url)
    health.state = RunState.FAILED
    assert 'phasewatch_run_state{run="demo",state="failed"} 1.0\n' in scrape(sink.url)


def test_the_default_address_is_loopback(serve):
    sink = serve()
    assert sink._server.socket.getsockname()[0] == "127.0.0.1"
    assert sink.url == f"http://127.0.0.1:{sink.port}/metrics"
    assert ExporterConfig().host == "127.0.0.1"
    assert ExporterConfig().port == 9877


def test_a_port_in_use_is_passed_over(serve):
    first = serve(port=free_port())
    second = serve(run="other", port=first.port)
    assert first.port < second.port < first.port + 50
    assert 'run="other"' in scrape(second.url)


def test_with_no_port_left_any_free_one_is_taken(serve):
    first = serve(port=free_port())
    second = serve(port=first.port, num_ports=1)
    assert second.port not in (0, first.port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_refused(serve, host):
    with pytest.raises(OSError, match=rf"cannot listen on {host}.*set exporter\.host"):
        serve(host=host)


def test_two_sinks_in_one_process_do_not_meet(serve):
    one, two = serve(run="one"), serve(run="two")
    one.emit(make_observation(1, 0.5))
    assert "phasewatch_loss_nats" not in scrape(two.url)
    assert 'run="two"' not in scrape(one.url)


def test_nothing_is_printed(serve, capfd):
    sink = serve()
    scrape(sink.url)
    sink.close()
    assert capfd.readouterr() == ("", "")


def test_closing_frees_port_and_thread(serve):
    before = set(threading.enumerate())
    sink = serve()
    sink.close()
    sink.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(urllib.error.URLError):
        scrape(sink.url)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", sink.port))


def test_a_scrape_during_training_sees_whole_values(serve, health):
    sink = serve()
    stop = threading.Event()

    def train():
        step = 0
        while not stop.is_set():
            step += 1
            sink.emit(make_observation(step, float(step), name=f"metric_{step % 300}", unit="1"))
            health.nonfinite[f"metric_{step % 300}"] += 1

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(5):
            for family in text_string_to_metric_families(scrape(sink.url)):
                assert all(math.isfinite(sample.value) for sample in family.samples)
    finally:
        stop.set()
        thread.join()


def test_a_forked_worker_does_not_hold_the_port(health):
    code = """
import os, signal, socket, sys, time
from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.prometheus.sink import PrometheusSink
sink = PrometheusSink("demo", ExporterConfig(port=0), Health())
worker = os.fork()
if worker == 0:
    sys.stdin.read()
    os._exit(0)
time.sleep(0.2)
print(sink.port, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = start_python(code)
    port = int(child.stdout.readline())
    child.wait(timeout=30)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    child.communicate()  # closes the worker's input, which ends it


# The target file --------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.FAILED, RunState.INTERRUPTED])
def test_the_target_file_is_there_while_the_run_is(serve, health, tmp_path, state):
    sink = serve(targets_dir=tmp_path / "sd")
    (file,) = (tmp_path / "sd").iterdir()
    assert f"127.0.0.1:{sink.port}" in file.read_text()
    health.state = state
    sink.close()
    assert list((tmp_path / "sd").iterdir()) == []


def test_a_crash_leaves_the_target_file(tmp_path, serve):
    sink = serve(targets_dir=tmp_path)
    sink.close()  # the state still says running: nobody has ended the run
    assert len(list(tmp_path.iterdir())) == 1


def test_the_endpoint_lingers_and_only_then_goes(serve, health, tmp_path, monkeypatch):
    sink = serve(targets_dir=tmp_path, linger_seconds=12.5)
    health.state = RunState.FINISHED
    seen = []

    def sleep(seconds):
        seen.append(
            (seconds, 'state="finished"} 1.0' in scrape(sink.url), len(list(tmp_path.iterdir())))
        )

    monkeypatch.setattr(prometheus.time, "sleep", sleep)
    sink.close()
    assert seen == [(12.5, True, 1)]
    assert list(tmp_path.iterdir()) == []


def as_prometheus(url):
    """A scrape by a Prometheus, which names its time-out."""
    headers = {"X-Prometheus-Scrape-Timeout-Seconds": "10"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as page:
        return page.read().decode()


def test_a_run_that_prometheus_scrapes_waits_until_the_end_was_seen(serve, health, tmp_path):
    sink = serve(targets_dir=tmp_path)
    as_prometheus(sink.url)
    health.state = RunState.FINISHED
    closing = threading.Thread(target=sink.close)
    closing.start()
    closing.join(0.3)
    assert closing.is_alive()
    assert len(list(tmp_path.iterdir())) == 1
    assert 'state="finished"} 1.0' in as_prometheus(sink.url)
    closing.join(20)
    assert not closing.is_alive()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_only_people_have_looked_at_ends_at_once(serve, health, monkeypatch):
    sink = serve()
    scrape(sink.url)
    health.state = RunState.FINISHED
    monkeypatch.setattr(sink._scrapes.end_seen, "wait", lambda seconds: pytest.fail("it waits"))
    sink.close()


def test_a_run_waits_no_longer_than_two_intervals(serve, health, monkeypatch):
    sink = serve()
    clock = iter([100.0, 104.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    sink._scrapes._came()
    sink._scrapes._came()
    monkeypatch.setattr(time, "monotonic", lambda: 105.0)
    assert sink._scrapes.patience_seconds == 104 + 2 * 4 + 5 - 105
    monkeypatch.setattr(time, "monotonic", lambda: 900.0)  # that Prometheus is gone
    assert sink._scrapes.patience_seconds == 0


def test_an_interrupt_while_it_waits_still_withdraws_the_target(
    serve, health, tmp_path, monkeypatch
):
    sink = serve(targets_dir=tmp_path, linger_seconds=5.0)
    health.state = RunState.INTERRUPTED

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prometheus.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sink.close()
    assert list(tmp_path.iterdir()) == []
    assert not sink._thread.is_alive()


def test_the_target_carries_run_experiment_and_host(health, tmp_path):
    sink = PrometheusSink("a/b", ExporterConfig(port=0, targets_dir=tmp_path), health, "primes")
    (file,) = tmp_path.iterdir()
    (group,) = json.loads(file.read_text())
    labels = {"run": "a/b", "experiment": "primes", "host": platform.node()}
    assert group == {"targets": [f"127.0.0.1:{sink.port}"], "labels": labels}
    assert 'experiment="primes",host="' in scrape(sink.url)
    sink.close()


@pytest.mark.parametrize("run", ["../../etc/passwd", "\udcff", "a\nb", "x" * 10_000, "..", "\0"])
def test_a_hostile_run_name_makes_a_target_file_in_the_folder(health, tmp_path, run):
    folder = tmp_path / "targets"
    sink = PrometheusSink(run, ExporterConfig(port=0, targets_dir=folder), health)
    (file,) = folder.iterdir()
    assert len(file.name) < 100
    (group,) = json.loads(file.read_text(encoding="utf-8"))
    assert group["labels"]["run"] == sink.collector.run
    health.state = RunState.FINISHED
    sink.close()
    assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_be_written_is_refused_and_nothing_is_served(serve, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    before = set(threading.enumerate())
    with pytest.raises(OSError, match=r"exporter\.targets_dir .*file.* cannot be written"):
        serve(targets_dir=tmp_path / "file")
    assert set(threading.enumerate()) <= before


def test_the_address_is_logged(serve, caplog):
    with caplog.at_level(logging.INFO):
        sink = serve()
    assert f"metrics of run demo are at {sink.url}" in caplog.text
