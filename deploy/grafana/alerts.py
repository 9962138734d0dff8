"""The alert rules for Grafana's own alerting: a query A, and a threshold C over it."""

from __future__ import annotations

from dataclasses import dataclass

from panels import EACH, latest

from phasewatch.monitor.core import metrics as m
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import EstimateStatus

FOLDER = "phasewatch"
GROUP = "phasewatch"
SOURCE_UID = "phasewatch-prometheus"
CONTACT_POINT = "phasewatch"

TRAINING = f'state="{RunState.RUNNING}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """One rule.

    Attributes:
        uid: Identity in Grafana.
        title: Name of the alert.
        expr: Query A: nothing, or one value for each thing that may be wrong.
        above: Threshold C: A above it is an alert.
        wait: How long it must hold.
        severity: Label for routing.
        summary: One line for a message.
        description: What it means and what to do.
    """

    uid: str
    title: str
    expr: str
    above: float = 0.0
    wait: str = "0s"
    severity: str
    summary: str
    description: str


def _risen(name: str, by: str) -> str:
    """How much a counter has risen in five minutes, also one that was born above nought."""
    now, before = f"sum by ({by}) ({name})", f"sum by ({by}) ({name} offset 5m)"
    return f"({now} - {before}) > 0 or ({now} unless {before}) > 0"


def _rules() -> list[_Rule]:
    good = f'sum by ({EACH}) (increase({m.ESTIMATES.name}{{status="{EstimateStatus.OK}"}}[30m]))'
    every = f"sum by ({EACH}) (increase({m.ESTIMATES.name}[30m])) > 0"
    return [
        _Rule(
            uid="phasewatch-transition",
            title="Transition",
            expr=_risen(m.TRANSITIONS.name, f"{EACH}, kind"),
            severity="info",
            summary="{{ $labels.kind }} in run {{ $labels.run }}",
            description="The model changed in kind. The dashboard Run shows where and how.",
        ),
        _Rule(
            uid="phasewatch-crashed",
            title="Run crashed",
            # It carries the labels of what the run said last: a static target's `up` has no run.
            expr=f"(last_over_time({m.RUN_STATE.name}{{{TRAINING}}}[15m]) == 1) "
            "and on (job, instance) up == 0",
            wait="30s",
            severity="critical",
            summary="Run {{ $labels.run }} is gone",
            description="It was training and its endpoint is down: killed, crashed, or cut off.",
        ),
        _Rule(
            uid="phasewatch-failed",
            title="Run failed",
            expr=f"max by ({EACH}) "
            f'(max_over_time({m.RUN_STATE.name}{{state="{RunState.FAILED}"}}[5m]))',
            severity="critical",
            summary="Run {{ $labels.run }} ended with an exception",
            description="`phasewatch show RUN` says which one.",
        ),
        _Rule(
            uid="phasewatch-stalled",
            title="Run stalled",
            expr=f"(time() - {latest(m.LAST_STEP_TIMESTAMP, EACH, '')}) "
            f"and on ({EACH}) {latest(m.RUN_STATE, EACH, TRAINING)} == 1",
            above=600,
            severity="warning",
            summary="Run {{ $labels.run }} has made no step for ten minutes",
            description="Its process answers, but it does not train.",
        ),
        _Rule(
            uid="phasewatch-non-finite",
            title="Value not finite",
            expr=_risen(m.NONFINITE.name, f"{EACH}, observable"),
            severity="warning",
            summary="{{ $labels.observable }} of run {{ $labels.run }} is not finite",
            description="A loss or another stream was NaN or infinite.",
        ),
        _Rule(
            uid="phasewatch-estimates",
            title="Estimates do not converge",
            expr=f"1 - ({good}) / ({every})",
            above=0.5,
            wait="10m",
            severity="warning",
            summary="Most estimates of λ in run {{ $labels.run }} do not pass their checks",
            description="The dashboard Run shows R-hat and status; `phasewatch calibrate` helps.",
        ),
        _Rule(
            uid="phasewatch-monitor",
            title="Monitor unhealthy",
            expr=f"sum by ({EACH}) (increase({m.MEASUREMENT_FAILURES.name}[30m])) "
            f"+ on ({EACH}) sum by ({EACH}) (increase({m.STORE_FAILURES.name}[30m]))",
            wait="10m",
            severity="warning",
            summary="The monitor of run {{ $labels.run }} meets errors",
            description="Measurements or writes to the store fail. Training is not affected.",
        ),
    ]


def build() -> dict[str, object]:
    """The rules as a file for Grafana's provisioning."""
    return {
        "apiVersion": 1,
        "groups": [
            {
                "orgId": 1,
                "name": GROUP,
                "folder": FOLDER,
                "interval": "1m",
                "rules": [_provisioned(rule) for rule in _rules()],
            }
        ],
    }


def _provisioned(rule: _Rule) -> dict[str, object]:
    return {
        "uid": rule.uid,
        "title": rule.title,
        "condition": "C",
        "data": [_query(rule), _threshold(rule)],
        "noDataState": "OK",
        "execErrState": "Error",
        "for": rule.wait,
        "labels": {"severity": rule.severity, "source": "phasewatch"},
        "annotations": {
            "summary": rule.summary,
            "description": rule.description,
            "dashboard": "/d/phasewatch-run?var-run={{ $labels.run | urlquery }}"
            "&var-run_id={{ $labels.run_id | urlquery }}",
        },
        "notification_settings": {"receiver": CONTACT_POINT},
    }


def _query(rule: _Rule) -> dict[str, object]:
    return {
        "refId": "A",
        "relativeTimeRange": {"from": 600, "to": 0},
        "datasourceUid": SOURCE_UID,
        "model": {
            "refId": "A",
            "expr": rule.expr,
            "instant": True,
            "range": False,
            "intervalMs": 1000,
            "maxDataPoints": 43200,
        },
    }


def _threshold(rule: _Rule) -> dict[str, object]:
    return {
        "refId": "C",
        "relativeTimeRange": {"from": 0, "to": 0},
        "datasourceUid": "__expr__",
        "model": {
            "refId": "C",
            "type": "threshold",
            "expression": "A",
            "conditions": [{"evaluator": {"type": "gt", "params": [rule.above]}}],
        },
    }
