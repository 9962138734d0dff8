"""The rules fire when they must and are quiet when they must be, as promtool judges."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from phasewatch.monitor.core import metrics
from support.needs import need_binary
from support.promtool import RULES, firing, judge, series

ROOT = Path(__file__).parents[2]
GROUPS = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
EVERY_RULE = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in EVERY_RULE if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in EVERY_RULE if "record" in rule}

PUSHED = 'job="phasewatch"'
NODE2 = 'job="phasewatch",instance="node:9878"'


# A run's life, sampled every five seconds: "0x24" is 0 for two minutes, "_" is no sample ----------


def life(
    state: str = "1x400",
    *,
    up: str = "1x400",
    steps: str = "0+5x400",
    ended_as: str = "finished",
    ended: str = "",
    speed: str = "10x400",
    **where: str,
) -> list[object]:
    """The series that every run has. `steps` are the times of the latest step, in seconds."""
    return [
        {**series("up", up, **where)},
        series("phasewatch_run_state", state, 'state="running"', **where),
        series(
            "phasewatch_run_state",
            ended or state.replace("1x", "0x"),
            f'state="{ended_as}"',
            **where,
        ),
        series("phasewatch_last_step_timestamp_seconds", steps, **where),
        series("phasewatch_steps_per_second", speed, **where),
    ]


def pid(number: int, values: str, **where: str) -> object:
    return series("phasewatch_run_info", values, f'host="node",pid="{number}"', **where)


def counter(name: str, values: str, labels: str = "") -> object:
    return series(f"phasewatch_{name}_total", values, labels)


def transitions(values: str, kind: str = "generalisation") -> object:
    return counter("transitions", values, f'kind="{kind}"')


def gone(before: int, what: str = "1") -> str:
    """A constant for some samples, and then no longer served."""
    return f"{what}x{before} stale"


HEALTHY = [
    pid(1, "1x400"),
    transitions("0x400"),
    counter("nonfinite_values", "0x400", 'observable="train_loss"'),
    counter("estimates", "0+1x400", 'status="ok"'),
    counter("estimates", "0x400", 'status="unconverged"'),
    counter("measurements", "0+1x400", 'observable="llc"'),
    counter("measurement_failures", "0x400", 'observable="llc"'),
    counter("store_dropped_rows", "0x400"),
    counter("store_failures", "0x400"),
    counter("alert_failures", "0x400", 'target="slack"'),
    series("phasewatch_alert_queue_messages", "0x400"),
    series("phasewatch_overhead_ratio", "0.04x400"),
    series("phasewatch_overhead_budget_ratio", "0.05x400"),
]

SCENARIOS = {
    "a healthy run is quiet": (
        [*life(), *HEALTHY],
        [firing("30s"), firing("10m"), firing("33m")],
    ),
    # How a run ends
    "a clean end is quiet, and so is its target's removal": (
        life(
            "1x60 0 0 stale", up="1x62 stale", steps="0+5x60 300 300 stale", ended="0x60 1 1 stale"
        ),
        [firing("5m"), firing("5m10s"), firing("7m"), firing("20m")],
    ),
    "a clean end without deregistration is quiet": (
        life(
            "1x60 0 0 stale", up="1x62 0x300", steps="0+5x60 300 300 stale", ended="0x60 1 1 stale"
        ),
        [firing("5m10s"), firing("7m"), firing("20m")],
    ),
    "an interrupted run is quiet": (
        life(
            "1x60 0 0 stale",
            up="1x62 stale",
            steps="0+5x60 300 300 stale",
            ended_as="interrupted",
            ended="0x60 1 1 stale",
        ),
        [firing("5m10s"), firing("7m"), firing("20m")],
    ),
    "kill -9, found by a target file that stays": (
        life(gone(60), up="1x60 0x300", steps="0+5x60 stale"),
        [
            firing("5m"),
            firing("6m"),
            firing("6m10s", "PhasewatchRunCrashed"),
            firing("25m", "PhasewatchRunCrashed"),
        ],
    ),
    "kill -9, and the target file cleared away later": (
        life(gone(60), up="1x60 0x180 stale", steps="0+5x60 stale"),
        [firing("6m10s", "PhasewatchRunCrashed"), firing("20m15s"), firing("25m"), firing("33m")],
    ),
    "kill -9, and the target file cleared away before it could be told": (
        life(gone(60), up="1x60 0x3 stale", steps="0+5x60 stale"),
        [firing("5m30s"), firing("6m40s", "PhasewatchRunVanished")],
    ),
    "kill -9 of a static target, whose `up` has no run": (
        [series("up", "1x60 0x300", run=""), *life(gone(60), steps="0+5x60 stale")[1:]],
        [firing("5m"), firing("6m10s", "PhasewatchRunCrashed")],
    ),
    "a pushed run that dies": (
        [
            series("push_time_seconds", "0+5x60 300x340", target=PUSHED),
            *life(steps="0+5x60 300x340", target=PUSHED)[1:],
        ],
        [
            firing("5m"),
            firing("9m50s"),
            firing("10m10s", "PhasewatchPushStale"),
            firing("20m", "PhasewatchPushStale", "PhasewatchRunStalled"),
        ],
    ),
    "a pushed run that ends well, and whose group stays": (
        [
            series("push_time_seconds", "0+5x60 300x340", target=PUSHED),
            *life("1x60 0x340", steps="0+5x60 300x340", ended="0x60 1x340", target=PUSHED)[1:],
        ],
        [firing("5m"), firing("10m10s"), firing("30m")],
    ),
    "a static target on which another run has begun": (
        [
            series("up", "1x60 0x6 1x300", run=""),
            *life(gone(60), steps="0+5x60 stale")[1:],
            *life("_x66 1x300", steps="_x66 335+5x300", run="b")[1:],
        ],
        [
            firing("5m"),
            firing("7m", "PhasewatchRunVanished"),
            firing("20m", "PhasewatchRunVanished"),
        ],
    ),
    "a target that misses some scrapes": (
        life("1x60 stale _x5 1x300", up="1x60 0x6 1x300", steps="0+5x60 stale _x5 335+5x300"),
        [firing("5m"), firing("5m30s"), firing("6m"), firing("10m")],
    ),
    "kill -9 with the target taken away: a deleted pod": (
        life(gone(60), up="1x60 stale", steps="0+5x60 stale"),
        [
            firing("5m"),
            firing("6m"),
            firing("6m10s", "PhasewatchRunVanished"),
            firing("25m", "PhasewatchRunVanished"),
        ],
    ),
    "restarted at once on the same port": (
        [*life(), pid(1, gone(60)), pid(2, "_x61 1x300")],
        [firing("5m"), firing("6m30s", "PhasewatchRunRestarted"), firing("25m")],
    ),
    "restarted on another port, the old target file left": (
        [
            *life(gone(60), up="1x60 0x300", steps="0+5x60 stale"),
            *life("_x61 1x300", up="_x61 1x300", steps="_x61 310+5x300", target=NODE2),
        ],
        [firing("5m"), firing("6m30s", "PhasewatchRunRestarted"), firing("25m")],
    ),
    "restarted on another port, and ended well there": (
        [
            *life(gone(60), up="1x60 0x300", steps="0+5x60 stale"),
            *life(
                "_x61 1x120 0 0 stale",
                up="_x61 1x122 stale",
                steps="_x61 310+5x120 910 910 stale",
                target=NODE2,
            ),
        ],
        [
            firing("7m", "PhasewatchRunRestarted"),
            firing("16m", "PhasewatchRunRestarted"),
            firing("25m"),
        ],
    ),
    "resumed after a clean end": (
        [
            *life(
                "1x60 0 0 stale _x10 1x300",
                up="1x62 stale _x10 1x300",
                steps="0+5x60 300 300 stale _x10 365+5x300",
                ended="0x60 1 1 stale _x10 0x300",
            ),
            pid(1, gone(62)),
            pid(2, "_x73 1x300"),
        ],
        [firing("5m10s"), firing("6m"), firing("7m30s"), firing("25m")],
    ),
    "failed, and its target removed": (
        life(
            "1x60 0 0 stale",
            up="1x62 stale",
            steps="0+5x60 300 300 stale",
            ended_as="failed",
            ended="0x60 1 1 stale",
        ),
        [
            firing("5m"),
            firing("5m5s", "PhasewatchRunFailed"),
            firing("15m", "PhasewatchRunFailed"),
            firing("21m"),
        ],
    ),
    "failed, and started again": (
        life(
            "1x60 0 0 stale _x10 1x300",
            up="1x62 stale _x10 1x300",
            ended_as="failed",
            steps="0+5x60 300 300 stale _x10 365+5x300",
            ended="0x60 1 1 stale _x10 0x300",
        ),
        [firing("5m10s", "PhasewatchRunFailed"), firing("7m30s")],
    ),
    # A run that hangs
    "hung: it answers, and no longer steps": (
        life(steps="0+5x60 300x340"),
        [
            firing("9m"),
            firing("10m"),
            firing("11m10s", "PhasewatchRunStalled"),
            firing("30m", "PhasewatchRunStalled"),
        ],
    ),
    "slow steps are no hang": (
        life(steps="0x120 600x120 1200x120", speed="0.01x400"),
        [firing("9m"), firing("19m"), firing("29m")],
    ),
    "warm-up: no step for 25 minutes after the start": (
        life(steps="0x300 1500+5x100", speed="0x300 10x100"),
        [firing("10m"), firing("24m"), firing("27m")],
    ),
    "hung before the first step": (
        life(steps="0x400", speed="0x400"),
        [firing("29m"), firing("31m10s", "PhasewatchRunStalled")],
    ),
    "long after a clean end there is no hang": (
        life("1x60 0x340", steps="0+5x60 300x340", ended="0x60 1x340"),
        [firing("11m10s"), firing("30m")],
    ),
    # Transitions
    "a transition is one alert of two minutes": (
        [transitions("0x24 1x100")],
        [
            firing("2m"),
            firing("2m5s", "PhasewatchTransition"),
            firing("4m", "PhasewatchTransition"),
            firing("4m5s"),
            firing("8m"),
        ],
    ),
    "a counter born at 1": (
        [transitions("_x24 1x100")],
        [firing("1m55s"), firing("2m", "PhasewatchTransition"), firing("4m")],
    ),
    "a counter that could not be scraped for ten minutes": (
        [transitions("0x5 1x30 stale _x120 1x100")],
        [firing("30s", "PhasewatchTransition"), firing("2m40s"), firing("13m"), firing("15m")],
    ),
    "a transition while nothing could be scraped": (
        [transitions("0x30 stale _x120 1x100")],
        [firing("2m40s"), firing("12m40s", "PhasewatchTransition"), firing("15m")],
    ),
    "a failed scrape in between makes no second alert": (
        [transitions("0x24 1 stale 1x100")],
        [
            firing("2m5s", "PhasewatchTransition"),
            firing("2m10s", "PhasewatchTransition"),
            firing("2m15s", "PhasewatchTransition"),
            firing("4m5s"),
            firing("4m10s"),
        ],
    ),
    "a transition just before the run's end": (
        [transitions("0x24 1 stale")],
        [
            firing("2m5s", "PhasewatchTransition"),
            firing("3m", "PhasewatchTransition"),
            firing("4m10s"),
        ],
    ),
    "a restarted process begins at 0": (
        [transitions("2x60 0x60 1x60")],
        [
            firing("0s", "PhasewatchTransition"),
            firing("4m"),
            firing("6m"),
            firing("10m10s", "PhasewatchTransition"),
            firing("13m"),
        ],
    ),
    "an instability is a warning of its own": (
        [transitions("0x24 1x100", "instability")],
        [firing("2m"), firing("2m5s", "PhasewatchInstability"), firing("4m10s")],
    ),
    # NaN
    "NaN in two streams is one alert, for as long as it goes on": (
        [
            counter("nonfinite_values", "0x24 1+1x24 25x200", 'observable="train_loss"'),
            counter("nonfinite_values", "0x24 1x240", 'observable="val_loss"'),
        ],
        [
            firing("2m"),
            firing("2m5s", "PhasewatchNonFinite"),
            firing("8m", "PhasewatchNonFinite"),
            firing("10m"),
        ],
    ),
    "a metric that itself is NaN is no failure of ours": (
        [
            series("phasewatch_loss_nats", "0.5x20" + 100 * " NaN", 'split="train"'),
            series("phasewatch_overhead_ratio", 250 * "NaN "),
            series("phasewatch_overhead_budget_ratio", "0.05x400"),
        ],
        [firing("5m"), firing("20m")],
    ),
    # The monitor itself
    "estimates that do not converge": (
        [
            counter("estimates", "0+0.1x400", 'status="ok"'),
            counter("estimates", "0+0.2x400", 'status="unconverged"'),
            counter("estimates", "0+0.1x400", 'status="diverged"'),
        ],
        [firing("30s"), firing("10m", "PhasewatchEstimatesNotConverging")],
    ),
    "few estimates do not converge": (
        [
            counter("estimates", "0+0.2x400", 'status="ok"'),
            counter("estimates", "0+0.1x400", 'status="unconverged"'),
        ],
        [firing("10m"), firing("30m")],
    ),
    "too few estimates to say": (
        [
            counter("estimates", "0x400", 'status="ok"'),
            counter("estimates", "0x10 1x10 2x10 3x300", 'status="unconverged"'),
        ],
        [firing("10m"), firing("25m")],
    ),
    "at a saddle λ̂ is negative, and that is no failure": (
        [
            counter("estimates", "0x400", 'status="unconverged"'),
            counter("estimates", "0+1x400", 'status="negative"'),
        ],
        [firing("10m")],
    ),
    "measurements that fail": (
        [
            counter("measurements", "0x400", 'observable="llc"'),
            counter("measurement_failures", "0+0.1x400", 'observable="llc"'),
        ],
        [firing("1m"), firing("15m", "PhasewatchMeasurementsFailing")],
    ),
    "one measurement in ten fails": (
        [
            counter("measurements", "0+0.9x400", 'observable="llc"'),
            counter("measurement_failures", "0+0.1x400", 'observable="llc"'),
        ],
        [firing("15m"), firing("30m")],
    ),
    "overhead above the budget": (
        [
            *life(),
            series("phasewatch_overhead_ratio", "0.2x400"),
            series("phasewatch_overhead_budget_ratio", "0.05x400"),
        ],
        [firing("14m"), firing("16m", "PhasewatchOverheadAboveBudget")],
    ),
    "overhead a little above the budget, or without one": (
        [
            *life(),
            *life(run="b"),
            series("phasewatch_overhead_ratio", "0.06x400"),
            series("phasewatch_overhead_budget_ratio", "0.05x400"),
            series("phasewatch_overhead_ratio", "0.9x400", run="b"),
            series("phasewatch_overhead_budget_ratio", "1x400", run="b"),
        ],
        [firing("16m"), firing("30m")],
    ),
    "alerts that cannot be sent": (
        [
            series("phasewatch_alert_queue_messages", "0x24 1x400"),
            counter("alert_failures", "0x24 0+1x60 60x300", 'target="slack"'),
        ],
        [firing("2m"), firing("8m", "PhasewatchAlertQueueStuck")],
    ),
    "alerts that wait for the end of quiet hours": (
        [
            series("phasewatch_alert_queue_messages", "0x24 1x400"),
            counter("alert_failures", "0x400", 'target="slack"'),
        ],
        [firing("8m"), firing("30m")],
    ),
    "failures after which everything was sent": (
        [
            series("phasewatch_alert_queue_messages", "0x24 1x12 0x300"),
            counter("alert_failures", "0x24 0+1x12 12x300", 'target="slack"'),
        ],
        [firing("3m"), firing("8m")],
    ),
    "a store that drops rows": (
        [counter("store_dropped_rows", "0x24 5x400"), counter("store_failures", "0x400")],
        [firing("2m"), firing("2m10s", "PhasewatchStoreDropping"), firing("18m")],
    ),
    "a store that fails and drops": (
        [counter("store_dropped_rows", "0x24 5x400"), counter("store_failures", "0x24 1x400")],
        [firing("2m"), firing("2m10s", "PhasewatchStoreDropping"), firing("18m")],
    ),
    "the dead run of two is told": (
        [*life(), *life(gone(60), up="1x60 0x300", steps="0+5x60 stale", run="b", target=NODE2)],
        [firing("5m"), firing("7m", "PhasewatchRunCrashed/b")],
    ),
}


@pytest.mark.slow  # half a second of computing each
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name, tmp_path):
    given, expected = SCENARIOS[name]
    judge(tmp_path, given, promql_expr_test=expected)


def test_alerts_that_have_waited_for_half_a_day(tmp_path):
    waiting = [series("phasewatch_alert_queue_messages", "1x150")]
    expected = [firing("11h50m"), firing("12h10m", "PhasewatchAlertQueueStuck")]
    judge(tmp_path, waiting, every="5m", promql_expr_test=expected)


@pytest.mark.parametrize("ids", [("", ""), ('run_id="1"', 'run_id="2"')], ids=["no ids", "ids"])
def test_two_runs_of_one_name_are_two_runs(ids, tmp_path):
    """Trials of a sweep that were given the same name: the first is killed, the second goes on."""
    given = []
    second = {"target": NODE2}
    for where, identity, end in (({}, ids[0], 120), (second, ids[1], 400)):
        stays = end == 400
        tail = "" if stays else " stale"
        named = {"run": "a", **where}
        bare = identity or 'run_id=""'
        given += [
            series("up", f"1x{end}" if stays else f"1x{end} 0x280", run="", **where),
            series("phasewatch_run_state", f"1x{end}{tail}", f'state="running",{bare}', **named),
            series("phasewatch_run_info", f"1x{end}{tail}", f'pid="{end}",{bare}', **named),
            series("phasewatch_last_step_timestamp_seconds", f"0+5x{end}{tail}", bare, **named),
            series("phasewatch_steps_per_second", f"10x{end}{tail}", bare, **named),
        ]
    expected = [firing("8m"), firing("12m", "PhasewatchRunCrashed")]
    judge(tmp_path, given, promql_expr_test=expected)


def test_every_alert_fires_in_a_scenario_and_each_scenario_is_quiet_at_first():
    fired = dict.fromkeys(ALERTS, 0)
    for _, expected in SCENARIOS.values():
        for moment in expected:
            for sample in moment["exp_samples"]:
                (alert,) = re.findall(r'alertname="(\w+)"', sample["labels"])
                fired[alert] += 1
    assert [name for name, count in fired.items() if not count] == []


# What an alert says -------------------------------------------------------------------------------

HOSTILE = 'grok "p=53"\\'


def told(alert, summary, description, severity, **labels):
    return {
        "exp_labels": {"severity": severity, "run": HOSTILE, "run_id": "id of a"} | labels,
        "exp_annotations": {
            "summary": summary,
            "description": description,
            "runbook_url": f"http://node:9877/runbook#{alert.lower()}",
        },
    }


PAGE = 'url="http://node:9877/runbook"'
WHERE = {"job": "phasewatch", "instance": "node:9877"}


@pytest.mark.parametrize(
    ("alert", "time", "given", "expected"),
    [
        (
            "PhasewatchTransition",
            "1m",
            [
                counter("transitions", "0x5 1x20", 'kind="generalisation",observable="val_loss"'),
                series("phasewatch_last_transition_step", "1200x30"),
                series("phasewatch_last_transition_onset_step", "1100x30"),
                series("phasewatch_last_transition_severity", "1.234x30"),
            ],
            told(
                "PhasewatchTransition",
                f"Run {HOSTILE}: generalisation",
                "The model has changed in kind: generalisation, seen first by val_loss, from step "
                "1100, detected at step 1200, effect 1.2 (1 is tenfold).",
                "info",
                kind="generalisation",
                observable="val_loss",
                **WHERE,
            ),
        ),
        (
            "PhasewatchInstability",
            "1m",
            [transitions("0x5 1x20", "instability")],
            told(
                "PhasewatchInstability",
                f"Run {HOSTILE}: training is unstable",
                "A loss or norm has jumped away from where it was.",
                "warning",
                kind="instability",
                **WHERE,
            ),
        ),
        (
            "PhasewatchRunFailed",
            "30s",
            [
                series("phasewatch_run_state", "1x2 stale", 'state="failed"'),
                series("phasewatch_run_step", "77x2 stale"),
            ],
            told(
                "PhasewatchRunFailed",
                f"Run {HOSTILE} has failed",
                "Training raised an error and ended at step 77. `phasewatch show "
                f"{HOSTILE}` says which.",
                "critical",
                state="failed",
                **WHERE,
            ),
        ),
        (
            "PhasewatchNonFinite",
            "1m",
            [
                counter("nonfinite_values", "0x5 1x30", 'observable="a"'),
                counter("nonfinite_values", "0x5 2x30", 'observable="b"'),
            ],
            told(
                "PhasewatchNonFinite",
                f"Run {HOSTILE}: NaN or infinite values",
                "Streams with values that are not finite in the last 5 minutes: 2. Among them b a.",
                "warning",
                **WHERE,
            ),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_alert_says_what_happened_to_a_run_of_any_name(alert, time, given, expected, tmp_path):
    escaped = HOSTILE.replace("\\", "\\\\").replace('"', '\\"')
    given = [*given, series("phasewatch_runbook_info", "1x60", PAGE)]
    given = [item | {"series": item["series"].replace('run="a"', f'run="{escaped}"')}
             for item in given]  # fmt: skip
    judge(
        tmp_path,
        given,
        alert_rule_test=[{"alertname": alert, "eval_time": time, "exp_alerts": [expected]}],
    )


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_severity_texts_and_a_heading_in_the_runbook(name):
    alert = ALERTS[name]
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert "$labels.run" in alert["annotations"]["summary"]
    link, anchor = alert["annotations"]["runbook_url"].rsplit("#", 1)
    first = ALERTS["PhasewatchTransition"]["annotations"]["runbook_url"]
    assert link == first.rsplit("#", 1)[0], "one way for all"
    page = (ROOT / "deploy" / "prometheus" / "runbook.html").read_text(encoding="utf-8")
    assert f'<h2 id="{anchor}">{name}</h2>' in page


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ([("a", "1x60", "own"), ("b", "1x60", "other")], "own"),
        ([("a", "1x2 stale", "own"), ("b", "1x60", "other")], "other"),
        ([("a", "1x2 stale", "own")], "own"),
        ([], "docs/runbook.md"),
    ],
    ids=["its own", "of a run that lives", "of the dead run", "none is served"],
)
def test_an_alert_leads_to_a_page_that_is_served(pages, expected, tmp_path):
    given = [
        {**series("up", "1x2 0x60")},
        series("phasewatch_run_state", "1x2 stale", 'state="running"'),
        series("phasewatch_last_step_timestamp_seconds", "0+5x2 stale"),
        *(
            series("phasewatch_runbook_info", values, f'url="{url}"', run=run)
            for run, values, url in pages
        ),
    ]
    alert = {
        "exp_labels": {"severity": "critical", "run": "a", "run_id": "id of a", **WHERE},
        "exp_annotations": {
            "summary": "Run a has died",
            "description": "node:9877 does not answer any more, and the run never said that it "
            "ended: its process was killed, or hangs so that it cannot even answer.",
            "runbook_url": f"{expected}#phasewatchruncrashed",
        },
    }
    told = {"alertname": "PhasewatchRunCrashed", "eval_time": "3m", "exp_alerts": [alert]}
    judge(tmp_path, given, alert_rule_test=[told])


def test_the_runbook_has_no_heading_without_an_alert():
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (Phasewatch\S+)$", runbook, re.MULTILINE) == list(ALERTS)


# What the rules read ------------------------------------------------------------------------------

LABELS = {metric.name: set(metric.labels) for metric in metrics.METRICS}
OF_THE_TARGET = {"job", "instance"}


def texts(rule):
    """The expression of a rule, and those in its templates."""
    yield rule["expr"]
    for text in rule.get("annotations", {}).values():
        yield from re.findall(r'printf "([^"]*{[^"]*)"', text)


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_only_what_is_exported_with_labels_that_it_has(rule):
    for text in texts(rule):
        used = set()
        for name, matchers in re.findall(r"(\bphasewatch_\w+|\brun\w*:\w+:\w+)(?:{(.*?)})?", text):
            assert name in LABELS or name in RECORDS, f"{name} is not exported"
            known = LABELS.get(name) or labels_of(RECORDS[name])
            used |= known
            for label, value in re.findall(r'(\w+)(?:=~|!=|=)"?([\w|%]*)', matchers):
                assert label in known, f"{name} has no label {label}"
                if closed := metrics.CLOSED_LABELS.get(label):
                    assert set(value.split("|")) <= set(closed)
        for label in grouping(text):
            assert label in used | OF_THE_TARGET, f"nothing in {text!r} has the label {label}"
    for text in rule.get("annotations", {}).values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels_of(rule) | OF_THE_TARGET


def grouping(text):
    for listed in re.findall(r"(?:by|without|on) \(([\w, ]*)\)", text):
        yield from listed.split(", ")


def labels_of(rule):
    """Labels that the metrics of an expression have, less those it takes away."""
    found = set()
    for name in re.findall(r"\bphasewatch_\w+|\brun\w*:\w+:\w+", rule["expr"]):
        found |= LABELS.get(name) or labels_of(RECORDS[name])
    for listed in re.findall(r"without \(([\w, ]*)\)", rule["expr"]):
        found -= set(listed.split(", "))
    return found


def test_promtool_accepts_the_rules():
    check = subprocess.run(
        [need_binary("promtool"), "check", "rules", str(RULES)], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stdout + check.stderr
