"""Every query of the dashboards and alert rules returns data of a real run on a real Prometheus."""

import re
import subprocess
import sys
import time

import numpy as np
import pytest

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.grafana.shipped import shipped_rules
from support.dashboards import alert_queries, boards, queries_of, variables
from support.live_prometheus import Prometheus, make_watch, wait_for_ready
from support.records import wait_until

SCALARS = ("train_loss", "val_loss", "accuracy")
RUNS = ('grok "p=53"', "grok.seed=1")

# What is empty in a run that goes well, and why.
EMPTY = {
    "run/λ̂ of $llc/B": "every estimate passed its checks",
    "run/$family/B": "norms are exact: they have no standard error",
    "run/$family/C": "norms are exact: they have no standard error",
    "run/$family/D": "norms passed their checks",
    "alert/Run crashed": "nobody crashed",
    "alert/Value not finite": "every value was finite",
}


def train(watch, model, batch):
    """A loss that falls by far at step 600, and a model measured at its minimum."""
    generator = np.random.default_rng(0)
    for step in range(1, 1201):
        value = 2.0 if step < 600 else 0.02
        noise = np.exp(0.02 * generator.standard_normal(3))
        named = zip(SCALARS, value * noise, strict=True)
        watch.before_step(step, model.named_parameters())
        watch.observe(step, dict(named), epoch=step // 100)
        if watch.due(step):
            watch.probe(step, model)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """With two runs that have each had a transition and go on."""
    folder = tmp_path_factory.mktemp("prometheus")
    server = Prometheus(folder)
    watches = [make_watch(run, seed, folder) for seed, run in enumerate(RUNS)]
    try:
        for watch, _, _ in watches:
            watch.start()
            watch.observe(0, dict.fromkeys(SCALARS, 2.0))
            watch.drain()
        # A counter must have been seen at zero, or its first step cannot be seen as a step.
        seen = 'count(count by (run) (phasewatch_transitions_total{kind="unclassified"}))'
        wait_for_ready(server)
        wait_until(
            lambda: [s["value"][1] for s in server.query(seen)] == ["2"],
            seconds=60,
            what="the first scrape of both runs",
        )
        time.sleep(1.5)  # three scrapes: rates need two samples
        for watch, model, batch in watches:
            train(watch, model, batch)
            assert watch.transitions
        wait_until(
            lambda: len(server.query("phasewatch_last_transition_step")) == 2,
            seconds=60,
            what="the scrape of the transitions",
        )
        time.sleep(1.5)
        yield server
    finally:
        for watch, _, _ in watches:
            watch.finish()
        server.process.terminate()
        server.process.wait(timeout=30)


def choose(server, board):
    """A value for each variable, as Grafana fills it in: one, or an alternative of all."""
    values = {}
    for variable in variables(board):
        found = server.values_of(variable["query"], values)
        if variable.get("regex"):
            pattern = re.compile(variable["regex"].strip("/"))
            found = sorted({pattern.search(value)[1] for value in found})
        assert found, f"variable {variable['name']} has no value"
        repeated = any(panel.get("repeat") == variable["name"] for panel in board["panels"])
        if variable["multi"] and not repeated:
            quoted = (re.escape(value).replace("\\", "\\\\") for value in found)
            values[variable["name"]] = f"({'|'.join(quoted)})".replace('"', '\\"')
        else:
            values[variable["name"]] = found[0].replace("\\", "\\\\").replace('"', '\\"')
    return values


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(boards()))
def test_every_query_of_a_dashboard_returns_data(prometheus, name):
    board = boards()[name]
    values = choose(prometheus, board)
    empty = {q.where: q.expr for q in queries_of(name, board) if not prometheus.ask(q, values)}
    untold = {where for where, expr in empty.items() if "alert_failures" in expr}  # no targets
    assert empty.keys() - untold == {where for where in EMPTY if where.startswith(f"{name}/")}


@pytest.mark.slow
def test_every_query_of_an_alert_rule_returns_data(prometheus):
    empty = {q.where for q in alert_queries() if not prometheus.ask(q, {})}
    assert empty == {where for where in EMPTY if where.startswith("alert/")}
    assert {title for title, _ in firing(prometheus)} == {"Transition"}
    assert {run for _, run in firing(prometheus)} == set(RUNS)


def firing(server):
    """Title and run of what would be alerted: query A over threshold C."""
    found = set()
    for rule, query in zip(shipped_rules()["rules"], alert_queries(), strict=True):
        (threshold,) = rule["data"][1]["model"]["conditions"][0]["evaluator"]["params"]
        for series in server.ask(query, {}):
            if float(series["value"][1]) > threshold:
                found.add((rule["title"], series["metric"]["run"]))
    return found


KILLED = """
import sys, time
from phasewatch.monitor import Watch
settings = {"run_name": "killed", "observables": [], "store": sys.argv[1] + "/killed.db",
            "exporter": {"port": 0, "targets_dir": sys.argv[1] + "/targets"}}
with Watch(settings) as watch:
    while True:
        time.sleep(0.1)
"""


@pytest.mark.slow
def test_runs_that_go_wrong_are_alerted_with_their_names(tmp_path):
    server = Prometheus(tmp_path)
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    watch, _, _ = make_watch("failed", 0, tmp_path, linger_seconds=5.0)
    try:
        wait_for_ready(server)
        watch.start()
        watch.observe(1, {"train_loss": 1.0})
        watch.drain()
        there = "count(phasewatch_nonfinite_values_total) and count(phasewatch_run_state) > 4"
        wait_until(lambda: server.query(there), seconds=60, what="the first scrape of both runs")
        assert firing(server) == set()
        watch.observe(2, {"train_loss": float("nan")})
        watch.drain()
        expected = {("Value not finite", "failed")}
        wait_until(lambda: firing(server) == expected, seconds=60, what="the NaN")
        killed.kill()
        expected |= {("Run crashed", "killed")}
        wait_until(lambda: firing(server) == expected, seconds=60, what="the kill")
        watch.finish(RunState.FAILED, "made to fail")  # it lingers for the last scrapes
        expected = {("Run failed", "failed"), ("Run crashed", "killed")}  # its values are gone
        wait_until(lambda: firing(server) == expected, seconds=60, what="the failure")
        (gone,) = [q for q in queries_of("overview", boards()["overview"]) if "/Gone/" in q.where]
        (count,) = server.ask(gone, {"run": ".*"})
        assert count["value"][1] == "1"
    finally:
        killed.kill()
        killed.wait(timeout=30)
        watch.finish()
        server.process.terminate()
        server.process.wait(timeout=30)


@pytest.mark.slow
def test_marks_of_transitions_are_named_and_lie_at_their_detection(prometheus):
    board = boards()["run"]
    (query,) = [q for q in queries_of("run", board) if q.where == "run/Transitions"]
    found = prometheus.ask(query, {"run": RUNS[1], "run_id": ".*"})
    assert {series["metric"]["run"] for series in found} == {RUNS[1]}
    kinds = {series["metric"]["kind"] for series in found}
    (when,) = prometheus.query(f'phasewatch_last_transition_timestamp_seconds{{run="{RUNS[1]}"}}')
    counted = prometheus.query(f'phasewatch_transitions_total{{run="{RUNS[1]}"}} > 0')
    assert kinds == {series["metric"]["kind"] for series in counted}
    for series in found:
        times = {float(value) for _, value in series["values"]}
        assert float(when["value"][1]) * 1000 in times


@pytest.mark.slow
def test_tables_for_the_chart_against_steps_can_be_merged_by_time_and_run(prometheus):
    board = boards()["compare"]
    values = choose(prometheus, board)
    found = {q.where: prometheus.ask(q, values) for q in queries_of("compare", board)}
    steps = found["compare/λ̂ against step/A"]
    lambdas = found["compare/λ̂ against step/B"]
    for series in (*steps, *lambdas):
        assert set(series["metric"]) == {"run", "run_id"}
    for run in RUNS:
        at = [
            {time for time, _ in series["values"]}
            for series in (*steps, *lambdas)
            if series["metric"]["run"] == run
        ]
        assert len(at) == 2
        assert at[0] & at[1]
