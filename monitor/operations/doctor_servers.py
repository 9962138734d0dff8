"""The servers' side of the chain: what Prometheus and Alertmanager say of themselves."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

import yaml

from phasewatch.monitor.operations.doctor_links import BrokenError, base, get, names, reason
from phasewatch.monitor.operations.doctor_runs import Runs
from phasewatch.monitor.operations.stack import SHIPPED


class Prometheus:
    """A Prometheus that should scrape the runs.

    Args:
        url: Base URL.
        runs: What was found of the runs.
    """

    def __init__(self, url: str, runs: Runs) -> None:
        self.url = url
        self.alertmanagers: list[str] = []
        self._runs = runs

    def ready(self) -> str:
        """Whether it answers."""
        return _ready(self.url, "give --prometheus its address")

    def target(self) -> str:
        """Whether it scrapes a run."""
        active = self._ask("targets?state=active")["activeTargets"]
        ours = [
            target
            for target in active
            if base(target["scrapeUrl"]) in self._runs.answering
            or target["labels"].get("run") in self._runs.found
        ]
        if not ours:
            remedy = "let `static_configs` name its address, or set exporter.targets_dir"
            if self._runs.targets is not None:
                remedy = f"let `file_sd_configs` name {self._runs.targets}/*.json"
            raise BrokenError(f"none of its {len(active)} targets is a run found here", remedy)
        down = [target for target in ours if target["health"] != "up"]
        if len(down) == len(ours):
            raise BrokenError(
                "; ".join(
                    f"{target['scrapeUrl']} is {target['health']}: {target['lastError'] or '-'}"
                    for target in down
                ),
                "if it is `unknown`, wait for the first scrape; else bind exporter.host to an "
                "address that Prometheus can reach",
            )
        return ", ".join(target["scrapeUrl"] for target in ours if target["health"] == "up")

    def run(self) -> str:
        """Whether it has samples of the runs, under their names."""
        renamed = self._query('count({__name__="phasewatch_run_info", exported_run!=""})')
        if renamed:
            raise BrokenError(
                "the label `run` arrives as `exported_run`, and no rule finds it",
                "set `honor_labels: true` in the scrape configuration",
            )
        seen = {sample["metric"].get("run", "") for sample in self._query("phasewatch_run_info")}
        if missing := self._runs.found - seen:
            raise BrokenError(
                f"it has no samples of {names(missing)}",
                "wait for two scrapes; else look at its target's error in Prometheus",
            )
        if not seen:
            raise BrokenError(
                "it has never seen a run, or not in the last five minutes",
                "mend the links above, then wait for two scrapes",
            )
        return names(seen)

    def rules(self) -> str:
        """Whether it evaluates our rules."""
        loaded = {
            rule["name"]: rule
            for group in self._ask("rules?type=alert")["groups"]
            for rule in group["rules"]
        }
        shipped = shipped_alerts()
        if missing := [name for name in shipped if name not in loaded]:
            raise BrokenError(
                f"not loaded: {', '.join(missing)}",
                f"let `rule_files` in prometheus.yml name {SHIPPED / 'prometheus' / 'rules.yml'}",
            )
        for name in shipped:
            if loaded[name]["health"] == "err":
                raise BrokenError(
                    f"{name} cannot be evaluated: {loaded[name].get('lastError', '')}",
                    "compare the rule with the one that is shipped",
                )
        firing = [name for name in shipped if loaded[name]["state"] == "firing"]
        return f"{len(shipped)} alerts" + (f"; firing: {', '.join(firing)}" if firing else "")

    def sends_to(self) -> str:
        """Whether it sends alerts on."""
        active = self._ask("alertmanagers")["activeAlertmanagers"]
        self.alertmanagers = [base(manager["url"]) for manager in active]
        if not self.alertmanagers:
            raise BrokenError(
                "it sends alerts to no Alertmanager",
                "name one under `alerting: alertmanagers:` in prometheus.yml",
            )
        return ", ".join(self.alertmanagers)

    def _ask(self, path: str) -> Any:
        try:
            return json.loads(get(f"{self.url}/api/v1/{path}"))["data"]
        except (OSError, ValueError, KeyError) as error:
            raise BrokenError(
                f"{self.url}/api/v1/{path}: {reason(error)}", "is this a Prometheus?"
            ) from error

    def _query(self, expression: str) -> list[dict[str, Any]]:
        answer = self._ask(f"query?query={urllib.parse.quote(expression)}")
        result: list[dict[str, Any]] = answer["result"]
        return result


class Alertmanager:
    """An Alertmanager that should tell somebody.

    Args:
        url: Base URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def ready(self) -> str:
        """Whether it answers."""
        return _ready(self.url, "name its address in prometheus.yml")

    def receiver(self) -> str:
        """Whether alerts end with somebody."""
        status = json.loads(get(f"{self.url}/api/v2/status"))
        config = yaml.safe_load(status["config"]["original"])
        kinds = {
            receiver["name"]: [key.removesuffix("_configs") for key in receiver if key != "name"]
            for receiver in config["receivers"]
        }
        used = {name: kinds.get(name, []) for name in _receivers(config["route"])}
        if not any(used.values()):
            raise BrokenError(
                f"alerts end in {names(set(used))}, which tells nobody",
                "name a receiver with an integration in the route of alertmanager.yml",
            )
        failing = self._failing()
        if failing:
            raise BrokenError(
                f"every notification so far has failed: {', '.join(failing)}",
                "look into Alertmanager's log; mend the receiver or its secret",
            )
        return ", ".join(f"{name} ({', '.join(how) or 'nobody'})" for name, how in used.items())

    def _failing(self) -> list[str]:
        """Integrations all of whose notifications failed."""
        page = get(f"{self.url}/metrics")

        def totals(metric: str) -> dict[str, float]:
            lines = re.findall(
                rf'^{metric}\{{[^}}]*?integration="(\w+)"[^}}]*\}} (\S+)$', page, re.M
            )
            summed: dict[str, float] = {}
            for integration, value in lines:
                summed[integration] = summed.get(integration, 0.0) + float(value)
            return summed

        tried = totals("alertmanager_notification_requests_total")
        failed = totals("alertmanager_notification_requests_failed_total")
        return [name for name, count in tried.items() if 0 < count <= failed.get(name, 0.0)]


def _ready(url: str, otherwise: str) -> str:
    try:
        get(f"{url}/-/ready")
    except OSError as error:
        raise BrokenError(
            f"{url}: {reason(error)}", f"start it (`phasewatch stack up`), or {otherwise}"
        ) from error
    return url


def shipped_alerts() -> list[str]:
    """Names of the alerts in the shipped rules."""
    rules = yaml.safe_load((SHIPPED / "prometheus" / "rules.yml").read_text("utf-8"))
    return [
        rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule
    ]


def _receivers(route: dict[str, Any]) -> Iterator[str]:
    if "receiver" in route:
        yield route["receiver"]
    for child in route.get("routes", ()):
        yield from _receivers(child)
