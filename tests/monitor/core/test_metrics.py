"""The table of metrics keeps its own rules, and everything served stands in it."""

import dataclasses
import re

import pytest

from phasewatch.monitor.core import metrics
from phasewatch.monitor.core.metrics import METRICS, MetricType, label_value

EVERY = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


def test_every_metric_of_the_module_is_in_the_table_once():
    defined = {item.name for item in vars(metrics).values() if isinstance(item, metrics.Metric)}
    names = [metric.name for metric in METRICS]
    assert set(names) == defined
    assert len(names) == len(set(names))


@EVERY
def test_names_are_legal_and_ours(metric):
    assert re.fullmatch(r"phasewatch_[a-z]+(_[a-z]+)*", metric.name)


@EVERY
def test_counters_and_they_alone_end_in_total(metric):
    assert metric.name.endswith("_total") == (metric.type is MetricType.COUNTER)
    assert metric.name.endswith("_info") == (metric.type is MetricType.INFO)


@EVERY
def test_the_unit_is_in_the_name_and_is_a_base_unit(metric):
    stem = metric.name.removesuffix("_total")
    assert not metric.unit or stem.endswith(f"_{metric.unit}")
    assert metric.unit in {"", "seconds", "ratio", "nats", "rows", "series", "messages", "bytes"}
    for unit in ("seconds", "ratio", "nats"):
        assert not stem.endswith(f"_{unit}") or metric.unit == unit
    assert not re.search(r"(milli|micro)?(minutes|hours|ms|percent|bytes_kb)$", stem)


@EVERY
def test_every_series_of_a_run_carries_its_name_and_no_step_or_message(metric):
    assert metric.labels[0] == "run" or metric is metrics.BUILD
    assert metric.labels[1] == "run_id" or metric is metrics.BUILD
    named = {"run", "run_id", "attempt", "experiment", "observable", "unit", "sink", "what"}
    allowed = named | {"host", "pid", "url", "version", "python"} | set(metrics.CLOSED_LABELS)
    assert set(metric.labels) <= allowed


@EVERY
def test_every_metric_has_a_sentence_of_help(metric):
    assert metric.help.endswith(".")
    assert "\n" not in metric.help


def test_the_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        metrics.RUN_STEP.name = "other"


@pytest.mark.parametrize("text", ["demo", "żółć", 'say "hi"', "back\\slash", "a b/c", ""])
def test_a_readable_label_is_left_as_it_is(text):
    assert label_value(text) == text


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\0b", "a\udc80b", "\x1b[31m", "x" * 201])
def test_an_unreadable_label_is_made_readable_and_stays_its_own(text):
    label = label_value(text)
    assert label.isprintable()
    assert len(label) <= metrics.MAX_LABEL
    assert label.encode("utf-8")
    assert label != label_value(text + "!")
