"""The endpoint: every byte of it, its ports, its end."""

import logging
import math
import os
import platform
import re
import socket
import threading
import urllib.error
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from phasewatch.monitor import metrics
from phasewatch.monitor.config import ExporterConfig
from phasewatch.monitor.health import Health
from phasewatch.monitor.sinks import prometheus
from phasewatch.monitor.sinks.prometheus import PrometheusSink, RunCollector
from phasewatch.monitor.types import EstimateStatus, RunState, TransitionKind
from support.records import INF, NAN, make_estimate, make_observation, make_transition, start_python
from support.scraping import OPENMETRICS, free_port, scrape

CLASSIC_TEXT = (Path(__file__).parents[2] / "golden" / "exposition.txt").read_text(encoding="utf-8")


@pytest.fixture
def health():
    return Health()


@pytest.fixture
def collector(monkeypatch):
    """A collector with nothing in it that differs between machines."""
    monkeypatch.setattr(prometheus, "_version", lambda: "9.8.7")
    monkeypatch.setattr(platform, "python_version", lambda: "3.11.7")
    monkeypatch.setattr(platform, "node", lambda: "node")
    monkeypatch.setattr(os, "getpid", lambda: 42)
    health = Health(
        step=120,
        epoch=3,
        last_step_timestamp=1_700_000_000.25,
        steps_per_second=12.5,
        overhead_ratio=0.04,
        overhead_budget=0.05,
        monitor_seconds_total=2.5,
        repairs=1,
        store_queue_depth=7,
        store_dropped=2,
        store_failed=3,
        last_transition=make_transition("demo"),
    )
    health.transitions[TransitionKind.GENERALISATION] = 1
    health.estimates.update({EstimateStatus.OK: 4, EstimateStatus.UNCONVERGED: 1})
    health.measurements["llc"] = 5
    health.measurement_seconds["llc"] = 1.5
    health.measurement_failures["llc"] = 2
    health.skipped["update_ratio"] = 1
    health.nonfinite["val_loss"] = 1
    health.detector_scores["val_loss"] = 0.75
    health.sink_failures["Logger"] = 6
    collector = RunCollector("demo", health)
    collector.keep(make_observation(119, 0.5))
    collector.keep(make_observation(120, 0.25))
    collector.keep(make_observation(100, NAN, name="val_loss"))
    collector.keep(make_observation(100, 12.5, name="llc", unit="1", detail=make_estimate()))
    collector.keep(make_observation(100, name='say "hi"\\n', unit="1", stderr=0.125))
    return collector


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


# The text ---------------------------------------------------------------------------------------


def test_the_classic_text_byte_for_byte(collector):
    assert generate_latest(collector).decode() == CLASSIC_TEXT


def test_the_openmetrics_text_byte_for_byte(collector):
    assert generate_openmetrics(collector).decode() == openmetrics_of(CLASSIC_TEXT)


def test_the_openmetrics_text_is_read_by_a_strict_parser(collector):
    text = generate_openmetrics(collector).decode()
    families = list(openmetrics_parser.text_string_to_metric_families(text))
    assert len(families) == len(metrics.METRICS)


def openmetrics_of(classic):
    """The same content as OpenMetrics spells it: families without suffix, and units."""
    lines = []
    for line in classic.splitlines():
        if line.startswith("# "):
            _, word, name, rest = line.split(" ", 3)
            metric = {metric.name: metric for metric in metrics.METRICS}[name]
            family = name.removesuffix("_total").removesuffix("_info")
            if word == "TYPE":
                rest = metric.type.value
            lines.append(f"# {word} {family} {rest}")
            if word == "TYPE" and metric.unit:
                lines.append(f"# UNIT {family} {metric.unit}")
        else:
            lines.append(line)
    return "\n".join([*lines, "# EOF", ""])


def test_everything_in_the_table_is_served_and_nothing_else(collector):
    served = re.findall(r"^# TYPE (\S+) ", CLASSIC_TEXT, re.MULTILINE)
    assert served == [metric.name for metric in metrics.METRICS]


def test_labels_are_those_of_the_table(collector):
    families = {family.name: family for family in collector.collect()}
    for metric in metrics.METRICS:
        family = families[metric.name.removesuffix("_total").removesuffix("_info")]
        for sample in family.samples:
            assert set(sample.labels) == set(metric.labels)
            for label, allowed in metrics.CLOSED_LABELS.items():
                assert sample.labels.get(label, allowed[0]) in allowed


def test_counters_that_can_be_known_are_born_at_zero(health):
    text = generate_latest(RunCollector("demo", health)).decode()
    for kind in TransitionKind:
        assert f'phasewatch_transitions_total{{kind="{kind.value}",run="demo"}} 0.0\n' in text
    for status in EstimateStatus:
        assert f'phasewatch_estimates_total{{run="demo",status="{status.value}"}} 0.0\n' in text
    for metric in metrics.METRICS:
        if metric.type is metrics.MetricType.COUNTER and metric.labels == ("run",):
            assert f'{metric.name}{{run="demo"}} 0.0\n' in text


def test_a_stream_has_its_nonfinite_counter_before_the_first_such_value(health):
    collector = RunCollector("demo", health)
    collector.keep(make_observation(1))
    text = generate_latest(collector).decode()
    assert 'phasewatch_nonfinite_values_total{observable="train_loss",run="demo"} 0.0\n' in text


@pytest.mark.parametrize("run", ['"', "\\", "a\nb", "a\rb\0", "\udcff", "}{", "x" * 500, "żółć"])
def test_hostile_names_arrive_whole(health, run):
    collector = RunCollector(run, health)
    collector.keep(make_observation(1, name=run, unit=run))
    text = generate_latest(collector).decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    label = metrics.label_value(run)
    assert {s.labels["run"] for s in samples if "run" in s.labels} == {label}
    (value,) = [s for s in samples if s.name == "phasewatch_observable_value"]
    assert (value.labels["observable"], value.labels["unit"]) == (label, label)


def test_values_that_are_not_finite_are_served_as_such(health):
    collector = RunCollector("demo", health)
    for name, value in (("a", NAN), ("b", INF), ("c", -INF)):
        collector.keep(make_observation(1, value, name=name, unit="1"))
    text = generate_latest(collector).decode()
    found = dict(re.findall(r'value\{observable="(\w)",run="demo",unit="1"\} (\S+)', text))
    assert found == {"a": "NaN", "b": "+Inf", "c": "-Inf"}


def test_series_beyond_the_budget_are_left_out_and_counted(health, monkeypatch):
    monkeypatch.setattr(metrics, "MAX_SERIES", 100)
    collector = RunCollector("demo", health)
    for index in range(150):
        collector.keep(make_observation(1, name=f"metric_{index}", unit="1"))
    collector.keep(make_observation(2, 0.75, name="metric_0", unit="1"))
    families = {family.name: family.samples for family in collector.collect()}
    served = sum(len(samples) for samples in families.values())
    assert served == 100 + 3  # the infos and the count itself come on top
    assert families["phasewatch_exporter_refused_values"][0].value == 50
    # 27 series of the run, then a value for each stream kept, then its counter of NaNs.
    assert families["phasewatch_exporter_omitted_series"][0].value == 27 + 100 + 100 - 100
    assert families["phasewatch_observable_value"][0].value == 0.75


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
from phasewatch.monitor.config import ExporterConfig
from phasewatch.monitor.health import Health
from phasewatch.monitor.sinks.prometheus import PrometheusSink
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
