"""Scenarios for rules: series in, alerts out, judged by promtool."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from support.needs import need_binary

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
TARGET = 'job="phasewatch",instance="node:9877"'
"""Labels of a target that the series of a scenario have."""


def series(
    name: str, values: str, labels: str = "", *, run: str = "a", target: str = TARGET
) -> Any:
    """One series; `values` in promtool's notation."""
    identity = f'run="{run}",run_id="id of {run}"' if run and "run_id=" not in labels else ""
    every = [target, identity or (f'run="{run}"' if run else ""), labels]
    return {"series": f"{name}{{{','.join(filter(None, every))}}}", "values": values}


def judge(folder: Path, given: list[Any], *, every: str = "5s", **tests: list[Any]) -> None:
    """Run a scenario with a sample `every` so often; fails with what promtool says."""
    content = {
        "rule_files": [str(RULES)],
        "evaluation_interval": every,
        "tests": [{"interval": every, "input_series": given, **tests}],
    }
    file = folder / "scenario.yml"
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    done = subprocess.run(
        [need_binary("promtool"), "test", "rules", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def firing(time: str, *alerts: str) -> Any:
    """At `time` exactly these alerts fire: "Name" of run a, or "Name/other run"."""
    samples = []
    for alert in alerts:
        name, _, run = alert.partition("/")
        samples.append({"labels": f'{{alertname="{name}",run="{run or "a"}"}}', "value": 1})
    return {
        "expr": 'group by (alertname, run) (ALERTS{alertstate="firing"})',
        "eval_time": time,
        "exp_samples": samples,
    }
