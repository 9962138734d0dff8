"""From a training run to a webhook: exporter, real Prometheus, rules, real Alertmanager."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from phasewatch.monitor.core.errors import PhasewatchError
from phasewatch.monitor.operations.doctor import examine
from phasewatch.monitor.operations.doctor_links import LinkState
from phasewatch.monitor.operations.doctor_runs import Runs
from support.alerting import quick_stack
from support.promtool import RULES
from support.records import wait_until
from support.scraping import free_port, scrape

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
RUN = 'grok "p=53"\\'
PATIENCE = {"seconds": 90.0}

GROUPS = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
RULE_OF = {rule.get("alert") or rule["record"]: rule for group in GROUPS for rule in group["rules"]}


def seen(stack, run=RUN):
    wait_until(lambda: stack.state_of(run) == "running", what="the first samples", **PATIENCE)
    time.sleep(3)  # some points before the loss falls


def arrives(inbox, name, status="firing"):
    wait_until(lambda: inbox.alerts(status, alertname=name), what=f"{name} {status}", **PATIENCE)
    return inbox.alerts(status, alertname=name)[0]


MAY_HAVE = {"observable", "experiment", "host"}
"""Which stream saw it first; what the target file adds."""


def labelled(alert, **labels):
    found = {k: v for k, v in alert["labels"].items() if k not in MAY_HAVE}
    return len(found.pop("run_id", "")) == 32 and found == labels  # the run's identity


def test_a_transition_is_one_alert_with_its_text_and_is_resolved_later(stack, inbox, start):
    run = start(RUN, targets_dir=str(stack.targets))
    seen(stack)
    run.tell("drop")
    alert = arrives(inbox, "PhasewatchTransition")
    assert labelled(
        alert,
        alertname="PhasewatchTransition",
        severity="info",
        kind="generalisation",
        run=RUN,
        job="phasewatch",
        instance=run.address,
    )
    assert alert["annotations"]["summary"] == f"Run {RUN}: generalisation"
    assert re.match(
        r"The model has changed in kind: generalisation(, seen first by val_loss,)? from step \d+, "
        r"detected at step \d+",
        alert["annotations"]["description"],
    )
    link = alert["annotations"]["runbook_url"]
    assert link == f"http://{run.address}/runbook#phasewatchtransition"
    assert 'id="phasewatchtransition"' in scrape(link.partition("#")[0])
    arrives(inbox, "PhasewatchTransition", "resolved")
    run.tell("end")
    assert run.wait() == 0
    wait_until(lambda: not stack.query("up"), what="the target's removal", **PATIENCE)
    time.sleep(8)  # longer than any `for` here
    assert len(inbox.alerts(alertname="PhasewatchTransition")) == 1
    assert inbox.names == {"PhasewatchTransition"}, "a run that ended well is not told of"


def test_a_killed_run_is_told_and_another_of_its_name_does_not_hide_it(stack, inbox, start):
    run = start(RUN, targets_dir=str(stack.targets))
    seen(stack)
    run.kill()
    alert = arrives(inbox, "PhasewatchRunCrashed")
    assert labelled(
        alert,
        alertname="PhasewatchRunCrashed",
        severity="critical",
        run=RUN,
        job="phasewatch",
        instance=run.address,
    )
    assert alert["annotations"]["summary"] == f"Run {RUN} has died"
    other = start(RUN, targets_dir=str(stack.targets))  # one name, another identity
    time.sleep(5)
    other.tell("end")
    assert other.wait() == 0
    assert len(inbox.alerts(alertname="PhasewatchRunCrashed")) == 1
    assert not inbox.alerts("resolved", alertname="PhasewatchRunCrashed")
    assert inbox.names == {"PhasewatchRunCrashed"}


def test_a_killed_run_is_told_and_its_resume_ends_the_alert(stack, inbox, start):
    run = start(RUN, targets_dir=str(stack.targets))
    seen(stack)
    run.tell("save")
    run.hear("saved")
    run.kill()
    killed = arrives(inbox, "PhasewatchRunCrashed")
    resumed = start(RUN, targets_dir=str(stack.targets))
    ended = arrives(inbox, "PhasewatchRunCrashed", "resolved")
    assert ended["labels"]["run_id"] == killed["labels"]["run_id"]
    restarted = arrives(inbox, "PhasewatchRunRestarted")
    assert restarted["labels"]["run_id"] == killed["labels"]["run_id"]
    resumed.tell("end")
    assert resumed.wait() == 0
    assert len(inbox.alerts(alertname="PhasewatchRunCrashed")) == 1
    assert inbox.names == {"PhasewatchRunCrashed", "PhasewatchRunRestarted"}


def test_a_run_that_vanishes_with_its_target_is_told(stack, inbox, start):
    run = start(RUN, targets_dir=str(stack.targets))
    seen(stack)
    for file in stack.targets.glob("*.json"):
        file.unlink()
    run.kill()
    alert = arrives(inbox, "PhasewatchRunVanished")
    assert (alert["labels"]["run"], alert["labels"]["severity"]) == (RUN, "critical")
    assert inbox.names == {"PhasewatchRunVanished"}


def test_a_static_target_has_no_run_label_on_up_and_its_crash_is_told(tmp_path, inbox, start):
    port = free_port()
    with quick_stack(tmp_path / "stack", inbox, static=f"127.0.0.1:{port}") as stack:
        run = start(RUN, port=port)
        seen(stack)
        (up,) = stack.query("up")
        assert "run" not in up["metric"]
        run.tell("drop")
        assert arrives(inbox, "PhasewatchTransition")["labels"]["run"] == RUN
        run.kill()
        alert = arrives(inbox, "PhasewatchRunCrashed")
        assert alert["labels"]["run"] == RUN
        assert alert["labels"]["instance"] == f"127.0.0.1:{port}"
        assert alert["labels"]["job"] == "phasewatch-static"


def test_a_failure_a_nan_and_a_hang_are_told_apart(stack, inbox, start):
    runs = {name: start(name, targets_dir=str(stack.targets)) for name in ("raise", "nan", "hang")}
    for name, run in runs.items():
        seen(stack, name)
        run.tell(name)
    failed = arrives(inbox, "PhasewatchRunFailed")
    assert failed["labels"]["run"] == "raise"
    assert re.search(r"ended at step \d+\.", failed["annotations"]["description"])
    nan = arrives(inbox, "PhasewatchNonFinite")
    assert nan["labels"]["run"] == "nan"
    assert nan["annotations"]["description"].endswith("Among them train_loss.")
    stalled = arrives(inbox, "PhasewatchRunStalled")
    assert stalled["labels"]["run"] == "hang"
    assert runs["raise"].wait() == 1
    assert not inbox.alerts(alertname="PhasewatchRunCrashed")
    assert not inbox.alerts(alertname="PhasewatchRunVanished")


def test_a_transition_while_prometheus_is_down_is_told_when_it_is_back(tmp_path, inbox, start):
    folder = tmp_path / "stack"
    with quick_stack(folder, inbox) as stack:
        run = start(RUN, targets_dir=str(stack.targets))
        seen(stack)
    run.tell("drop")
    run.hear("onset")
    run.hear("found")
    with stack.running():
        arrives(inbox, "PhasewatchTransition")
        arrives(inbox, "PhasewatchTransition", "resolved")
    with stack.running():  # again, and what is old is not told again
        wait_until(lambda: stack.state_of(RUN) == "running", what="samples", **PATIENCE)
        time.sleep(5)
    assert len(inbox.alerts(alertname="PhasewatchTransition")) == 1
    assert inbox.names == {"PhasewatchTransition"}


def test_a_run_whose_port_is_taken_takes_the_next_and_is_found(stack, start):
    first = start("first", targets_dir=str(stack.targets))
    port = int(first.address.rpartition(":")[2])
    second = start("second", port=port, targets_dir=str(stack.targets))
    assert second.address != first.address
    for name in ("first", "second"):
        wait_until(lambda: stack.state_of(name) == "running", what=name, **PATIENCE)  # noqa: B023
    assert {sample["metric"]["instance"] for sample in stack.query("up == 1")} == {
        first.address,
        second.address,
    }


def test_a_stack_whose_port_is_taken_says_so(stack, tmp_path):
    with (
        pytest.raises(PhasewatchError, match=rf"port {stack.prometheus_port} cannot be had.*"
                                             r"--prometheus-port"),
        stack.running(),
    ):  # fmt: skip
        pytest.fail("it started")


def test_the_doctor_finds_the_chain_in_order_and_then_what_broke_it(stack, start):
    run = start(RUN, targets_dir=str(stack.targets))
    seen(stack)

    def look():
        return list(examine(Runs(addresses=(), targets=stack.targets), stack.prometheus_url))

    links = look()
    unused = [link.name for link in links if link.state is LinkState.NOT_CHECKED]
    assert unused in ([], ["direct alerts"])
    assert not [link for link in links if link.state is LinkState.BROKEN]
    assert "webhook (webhook)" in next(x.found for x in links if x.name == "route of alerts")
    run.kill()
    broken = [link.name for link in look() if link.state is LinkState.BROKEN]
    assert broken[0] == "exporter"


# Every expression has data ----------------------------------------------------------------------

WITHOUT_DATA = {
    "PhasewatchRunCrashed",
    "PhasewatchRunVanished",
    "PhasewatchRunRestarted",
    "PhasewatchRunFailed",
    "PhasewatchRunStalled",
    "PhasewatchPushStale",
    "PhasewatchEstimatesNotConverging",
    "PhasewatchMeasurementsFailing",
    "PhasewatchOverheadAboveBudget",
    "PhasewatchAlertQueueStuck",
    "PhasewatchStoreDropping",
    # shares of estimates and measurements: this run measures nothing
    "run:phasewatch_unconverged_estimates:ratio1h",
    "run_observable:phasewatch_measurement_failures:ratio1h",
}
"""Legitimately empty on a run that is well, but for its transition and a NaN. Some may have data
for a second, which their `for` is there for."""

SELECTORS_WITHOUT_DATA = {
    'ALERTS{alertname="PhasewatchRunCrashed", alertstate="firing"}',
    "run:phasewatch_unconverged_estimates:ratio1h",
    "run_observable:phasewatch_measurement_failures:ratio1h",
    # by observable: this run measures nothing
    "phasewatch_measurements_total",
    "phasewatch_measurement_failures_total",
    # this run sends no alerts itself
    "phasewatch_alert_queue_messages",
    "phasewatch_alert_failures_total",
}


def test_every_expression_has_data_or_is_known_to_have_none(stack, inbox, start):
    run = start(RUN, targets_dir=str(stack.targets))
    seen(stack)
    run.tell("drop")
    arrives(inbox, "PhasewatchTransition")
    run.tell("nan")  # which is an instability, too
    arrives(inbox, "PhasewatchNonFinite")
    arrives(inbox, "PhasewatchInstability")
    shipped = yaml.safe_load((stack.folder / "rules.yml").read_text(encoding="utf-8"))
    empty, selectors = set(), set()
    for rule in [rule for group in shipped["groups"] for rule in group["rules"]]:
        if not stack.history(rule["expr"]):
            empty.add(rule.get("alert") or rule["record"])
        selectors |= set(
            re.findall(r"(?:phasewatch_|ALERTS|run\w*:)[\w:]*(?:{[^}]*})?", rule["expr"])
        )
    assert empty - WITHOUT_DATA == set()
    silent = {selector for selector in selectors if not stack.history(selector)}
    assert silent - SELECTORS_WITHOUT_DATA == set()
    evaluated = [rule for group in stack.ask("rules")["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in evaluated if rule["health"] != "ok"] == []
    assert len(evaluated) == len(RULE_OF)


# The real thing -----------------------------------------------------------------------------------

GROKKING = """
import json, sys
sys.path.insert(0, sys.argv[1])
import grokking
from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.config.monitor import MonitorConfig
exporter = ExporterConfig(**json.loads(sys.argv[2]))
grokking.MonitorConfig = lambda **settings: MonitorConfig(exporter=exporter, **settings)
grokking.main(["--json", "--out", sys.argv[3]])
"""


def kinds_over_time(store: Path) -> set[tuple[str, str]]:
    """Transitions that were sure at some time, with each kind that they were then."""
    query = "SELECT id, kind FROM phasewatch_transitions WHERE status IN ('confirmed', 'ended')"
    with closing(sqlite3.connect(store)) as database:
        return set(database.execute(query))


@pytest.mark.timeout(1200)
def test_a_grokking_run_is_told_once_while_it_trains(stack, inbox, tmp_path):
    exporter = {"port": 0, "targets_dir": str(stack.targets), "linger_seconds": 3}
    training = subprocess.Popen(
        [sys.executable, "-c", GROKKING, ROOT / "examples", json.dumps(exporter), tmp_path / "out"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    said, _ = training.communicate(timeout=1000)
    ended = time.time()
    assert training.returncode == 0
    result = json.loads(said)
    confirmed = [t for t in result["transitions"] if t["status"] in ("confirmed", "ended")]
    (found,) = [t for t in confirmed if t["kind"] == "generalisation"]
    of_it = {"alertname": "PhasewatchTransition", "kind": "generalisation"}
    wait_until(lambda: inbox.alerts("firing", **of_it), what="generalisation", **PATIENCE)
    told = inbox.alerts(**of_it)
    assert len(told) == 1
    (alert,) = told
    assert alert["labels"]["run"] == "grokking-seed0"
    assert alert["received"] < ended, "it is told while the run goes on"
    assert f"detected at step {found['detected_step']}" in alert["annotations"]["description"]
    wait_until(lambda: inbox.alerts("resolved", kind="generalisation"), what="its end", **PATIENCE)
    time.sleep(8)
    assert inbox.names == {"PhasewatchTransition"}, "the run ended well"
    alerts = inbox.alerts(alertname="PhasewatchTransition")
    # One for each transition; and where the kind has changed since, one for each kind.
    told = kinds_over_time(tmp_path / "out" / "phasewatch.db")
    assert sorted(alert["labels"]["kind"] for alert in alerts) == sorted(kind for _, kind in told)
    assert len({transition for transition, _ in told}) == len(confirmed)
