"""What is served of a run: every byte of it, in both formats; hostile input; the budget."""

import os
import platform
import re
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from phasewatch.monitor.core import metrics
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.transitions import TransitionKind
from phasewatch.monitor.prometheus import collector as prometheus_collector
from phasewatch.monitor.prometheus.collector import RunCollector
from support.needs import need_binary
from support.records import INF, NAN, make_estimate, make_observation, make_transition

GOLDEN = Path(__file__).parents[2] / "golden"
CLASSIC_TEXT = (GOLDEN / "exposition.txt").read_text(encoding="utf-8")
OPENMETRICS_TEXT = (GOLDEN / "exposition.openmetrics.txt").read_text(encoding="utf-8")


@pytest.fixture
def health():
    return Health()


@pytest.fixture
def collector(monkeypatch):
    """A collector with nothing in it that differs between machines."""
    monkeypatch.setattr(prometheus_collector, "phasewatch_version", lambda: "9.8.7")
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
        beside_seconds_total=1.25,
        thinned_points=6,
        dense_windows=2,
        checkpoints_written=9,
        checkpoint_bytes=4096,
        repairs=1,
        store_queue_depth=7,
        store_dropped=2,
        store_failed=3,
        alert_queue=4,
        alert_sent=3,
        alert_failures=2,
        last_transition=make_transition("demo"),
    )
    health.leads.update(val_loss=None, llc=None)
    health.transitions[TransitionKind.GENERALISATION, "val_loss"] = 1
    health.transitions[TransitionKind.SIMPLIFICATION, "val_loss"] = 1
    health.corrected[TransitionKind.SIMPLIFICATION] = 1
    health.estimates.update({EstimateStatus.OK: 4, EstimateStatus.UNCONVERGED: 1})
    monkeypatch.setattr(time, "time", lambda: 1_700_000_100.5)
    for step, seconds in ((20, 0.25), (40, 0.25), (60, 1.0), (80, 400.0), (100, 0.5)):
        health.measured("llc", seconds, step)
    health.measurement_failures["llc"] = 2
    health.skipped["update_ratio"] = 1
    health.nonfinite["val_loss"] = 1
    health.detector_scores["val_loss"] = 0.75
    health.sink_failures["Logger"] = 6
    collector = RunCollector("demo", health, "primes")
    collector.runbook_url = "http://node:9877/runbook"
    collector.keep(make_observation(119, 0.5))
    collector.keep(make_observation(120, 0.25))
    collector.keep(make_observation(100, NAN, name="val_loss"))
    collector.keep(make_observation(100, 12.5, name="llc", unit="1", detail=make_estimate()))
    collector.keep(make_observation(100, 3.5, name="gradient_norm", unit="nats/weight"))
    collector.keep(make_observation(100, 7.0, name="weight_norm", unit="weight"))
    collector.keep(make_observation(100, 2.0, name="weight_norm/head", unit="weight"))
    collector.keep(make_observation(100, 0.001, name="update_ratio", unit="1"))
    collector.keep(make_observation(100, name='say "hi"\\n', unit="1", stderr=0.125))
    return collector


# The text ---------------------------------------------------------------------------------------


def test_the_classic_text_byte_for_byte(collector):
    assert generate_latest(collector).decode() == CLASSIC_TEXT


def test_the_openmetrics_text_byte_for_byte(collector):
    assert generate_openmetrics(collector).decode() == OPENMETRICS_TEXT


def test_our_own_texts_are_those_of_prometheus_client(collector):
    assert collector.text(openmetrics=False) == generate_latest(collector)
    assert collector.text(openmetrics=True) == generate_openmetrics(collector)
    collector.keep(make_observation(130, 1e300, name="later", unit="1"))
    collector.keep(make_observation(130, -0.0, name="zero", unit="1"))
    collector.keep(make_observation(130, 123456789.5, name="many", unit="1"))
    assert collector.text(openmetrics=False) == generate_latest(collector)
    assert collector.text(openmetrics=True) == generate_openmetrics(collector)


def test_both_texts_say_the_same(collector):
    """But for the examples, and the units, which the classic text does not know."""
    lines = [line.partition(" # ")[0] for line in OPENMETRICS_TEXT.splitlines()]
    samples = [line for line in CLASSIC_TEXT.splitlines() if not line.startswith("#")]
    assert [line for line in lines if line and not line.startswith("#")] == samples
    units = re.findall(r"^# UNIT (\S+) (\S+)$", OPENMETRICS_TEXT, re.MULTILINE)
    assert units == [
        (metric.name.removesuffix("_total"), metric.unit)
        for metric in metrics.METRICS
        if metric.unit
    ]


def test_the_openmetrics_text_is_read_by_a_strict_parser(collector):
    text = generate_openmetrics(collector).decode()
    families = list(openmetrics_parser.text_string_to_metric_families(text))
    assert len(families) == len(metrics.METRICS)


def test_everything_in_the_table_is_served_and_nothing_else(collector):
    served = re.findall(r"^# TYPE (\S+) ", CLASSIC_TEXT, re.MULTILINE)
    assert served == [metric.name for metric in metrics.METRICS]


def test_labels_are_those_of_the_table(collector):
    families = {family.name: family for family in collector.collect()}
    for metric in metrics.METRICS:
        family = families[metric.name.removesuffix("_total").removesuffix("_info")]
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels) - {"run_id", "attempt"}
            for label, allowed in metrics.CLOSED_LABELS.items():
                assert sample.labels.get(label, allowed[0]) in allowed


def test_every_series_of_a_run_says_which_run_it_is(health):
    collector = RunCollector("demo", health, run_id="a1b2", attempt=3)
    collector.keep(make_observation(1))
    for text in (generate_latest(collector).decode(), collector.text(openmetrics=False).decode()):
        lines = [x for x in text.splitlines() if not x.startswith(("#", "phasewatch_build"))]
        assert lines
        assert [line for line in lines if 'run="demo",run_id="a1b2"' not in line] == []
        assert 'attempt="3"' in next(x for x in lines if x.startswith("phasewatch_run_info"))


def test_counters_that_can_be_known_are_born_at_zero(health):
    health.leads["val_loss"] = None
    text = generate_latest(RunCollector("demo", health)).decode()
    for kind in TransitionKind:
        labels = f'kind="{kind.value}",observable="val_loss",run="demo"'
        assert f"phasewatch_transitions_total{{{labels}}} 0.0\n" in text
    for status in EstimateStatus:
        assert f'phasewatch_estimates_total{{run="demo",status="{status.value}"}} 0.0\n' in text
    for metric in metrics.METRICS:
        if metric.type is metrics.MetricType.COUNTER and metric.labels == ("run", "run_id"):
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


def test_series_beyond_the_budget_are_left_out_and_counted(health, monkeypatch, caplog):
    monkeypatch.setattr(metrics, "MAX_SERIES", 100)
    collector = RunCollector("demo", health)
    num_own = served(collector) - 3
    for index in range(150):
        collector.keep(make_observation(1, name=f"metric_{index}", unit="1"))
    collector.keep(make_observation(2, 0.75, name="metric_0", unit="1"))
    assert served(collector) == 100 + 3  # the infos and the count itself come on top
    families = {family.name: family.samples for family in collector.collect()}
    assert families["phasewatch_exporter_refused_values"][0].value == 50
    # The series of the run, then a value for each stream kept, then its counter of NaNs.
    assert families["phasewatch_exporter_omitted_series"][0].value == num_own + 100 + 100 - 100
    assert families["phasewatch_observable_value"][0].value == 0.75
    (told,) = [record.getMessage() for record in caplog.records]
    assert "more than 100 streams" in told
    assert "'metric_100'" in told


def served(collector):
    return sum(len(family.samples) for family in collector.collect())


def test_ten_thousand_distinct_observables_are_bounded_and_told(health, caplog):
    collector = RunCollector("demo", health)
    for index in range(10_000):
        name = f"metric_{index}"
        health.leads[name] = None
        collector.keep(make_observation(1, name=name, unit="1"))
        health.measured(name, 0.1, 1)
    health.transitions[TransitionKind.GENERALISATION, "metric_9999"] = 2
    assert served(collector) <= metrics.MAX_SERIES + 3
    families = {family.name: family.samples for family in collector.collect()}
    assert families["phasewatch_exporter_refused_values"][0].value == 5_000
    omitted = families["phasewatch_exporter_omitted_series"][0].value
    assert omitted > 150_000  # for each: 15 series of its measurements; NaNs of those kept
    transitions = families["phasewatch_transitions"]
    assert len(transitions) == len(TransitionKind) * (metrics.MAX_LEADS + 1)
    other = {"run": "demo", "kind": "generalisation", "observable": metrics.OTHER}
    assert [sample.value for sample in transitions if sample.labels == other] == [2]
    assert sum(sample.value for sample in transitions) == 2
    assert "more than 5000 streams" in caplog.text


def test_names_that_are_changed_are_told_once(health, caplog):
    collector = RunCollector("x" * 10_000, health)
    for index in range(3):
        collector.keep(make_observation(1, name=f"a\n{index}", unit="1"))
    run, stream = [record.getMessage() for record in caplog.records]
    assert "is served with the label run=" in run
    name = "a\n0"
    assert stream == f"stream {name!r} is served as {metrics.label_value(name)!r}"


HOSTILE = [
    'say "hi"',
    "a\nb",
    "back\\slash\\",
    "x" * 10_000,
    "\udcff\ud800",
    "}{=,# EOF",
    "\x1b[2J\0",
]


def test_a_hostile_page_is_read_back_by_every_parser(health):
    collector = RunCollector("\n".join(HOSTILE), health, experiment=HOSTILE[4])
    for text in HOSTILE:
        collector.keep(make_observation(1, name=text, unit=text))
        health.leads[text] = None
        health.transitions[TransitionKind.ACQUISITION, text] = 1
        health.measured(text, 0.5, 1)
        health.skipped[text] = health.sink_failures[text] = 1
    evidence = {text: make_transition("demo").evidence["val_loss"] for text in HOSTILE}
    health.last_transition = make_transition(
        "demo", transition_id='"\n' * 500, kind=TransitionKind.ACQUISITION, evidence=evidence
    )
    registry = CollectorRegistry()
    registry.register(collector)
    classic, openmetrics = collector.text(openmetrics=False), collector.text(openmetrics=True)
    assert (classic, openmetrics) == (generate_latest(registry), generate_openmetrics(registry))
    assert max(map(len, classic.splitlines())) < 10 * metrics.MAX_LABEL
    wanted = {metrics.label_value(text) for text in HOSTILE}
    for families in (
        text_string_to_metric_families(classic.decode()),
        openmetrics_parser.text_string_to_metric_families(openmetrics.decode()),
    ):
        samples = [sample for family in families for sample in family.samples]
        values = [s for s in samples if s.name == "phasewatch_observable_value"]
        assert {sample.labels["observable"] for sample in values} == wanted
        assert {s.labels["run"] for s in samples if "run" in s.labels} == {
            metrics.label_value("\n".join(HOSTILE))
        }
    check = subprocess.run(
        [need_binary("promtool"), "check", "metrics"], input=classic, capture_output=True
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")
