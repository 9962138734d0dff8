"""The servers' side of the chain: what Prometheus and Alertmanager say of themselves."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from phasewatch.monitor.core.bounded_http import why
from phasewatch.monitor.core.shipped import DEPLOY
from phasewatch.monitor.operations.doctor_end import notification_counts
from phasewatch.monitor.operations.doctor_files import alertmanager_file
from phasewatch.monitor.operations.doctor_links import (
    TIMEOUT_SECONDS,
    BrokenError,
    base,
    check_clock,
    get,
    get_with_headers,
    names,
    reason,
)
from phasewatch.monitor.operations.doctor_routes import (
    alerts_of,
    integrations,
    is_silenced,
    receivers,
    relabelled,
)
from phasewatch.monitor.operations.doctor_runs import Runs

RECENT_SECONDS = 3.0
"""How long failures are watched, where some have been counted: Alertmanager tries again soon."""

RETRY_SECONDS = 65.0
"""The same where it has an alert to tell of: what it waits for between two tries grows to that."""

Counts = Mapping[str, tuple[float, float]]
"""By integration: requests tried, requests failed."""


class Prometheus:
    """A Prometheus that should scrape the runs.

    Args:
        url: Base URL.
        runs: What was found of the runs.
    """

    def __init__(self, url: str, runs: Runs) -> None:
        self.url = url
        self.alertmanagers: list[str] = []
        self.alerts: list[dict[str, str]] = []
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
        if down:
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
        samples = [sample["metric"] for sample in self._query("phasewatch_run_info")]
        seen = {metric.get("run", "") for metric in samples}
        ids = {metric.get("run_id", "") for metric in samples}
        unseen = {
            f"{labels['run']} ({labels['run_id'][:8]})"
            for labels in self._runs.labels
            if labels["run_id"] and labels["run_id"] not in ids
        }
        if missing := (self._runs.found - seen) or unseen:
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
        """Whether it evaluates our rules, as they are on disk now."""
        groups = self._ask("rules?type=alert")["groups"]
        loaded = {rule["name"]: rule for group in groups for rule in group["rules"]}
        shipped = shipped_alerts()
        ours = [g for g in groups if any(rule["name"] in shipped for rule in g["rules"])]
        self._check_reload([str(group.get("file", "")) for group in ours])
        if missing := [name for name in shipped if name not in loaded]:
            raise BrokenError(
                f"not loaded: {', '.join(missing)}",
                f"let `rule_files` in prometheus.yml name {DEPLOY / 'prometheus' / 'rules.yml'}",
            )
        for name in shipped:
            if loaded[name]["health"] == "err":
                raise BrokenError(
                    f"{name} cannot be evaluated: {loaded[name].get('lastError', '')}",
                    "compare the rule with the one that is shipped",
                )
        firing = [name for name in shipped if loaded[name]["state"] == "firing"]
        return f"{len(shipped)} alerts" + (f"; firing: {', '.join(firing)}" if firing else "")

    def _check_reload(self, files: list[str]) -> None:
        """Whether what it works with is what its files say."""
        try:
            page = get(f"{self.url}/metrics")
            flags = self._ask("status/flags")
        except (OSError, BrokenError):  # a service that shows its API alone
            return
        successful = re.search(r"^prometheus_config_last_reload_successful (\S+)", page, re.M)
        remedy = (
            "check with `promtool check config` and `promtool check rules`, then reload: "
            f"curl -X POST {self.url}/-/reload, or SIGHUP"
        )
        if successful and float(successful[1]) == 0:
            raise BrokenError(
                "the last reload of its configuration failed: it works with an older one", remedy
            )
        loaded = re.search(
            r"^prometheus_config_last_reload_success_timestamp_seconds (\S+)", page, re.M
        )
        if loaded is None:
            return
        for file in dict.fromkeys([str(flags.get("config.file", "")), *files]):
            path = Path(file)
            if path.is_file() and path.stat().st_mtime > float(loaded[1]) + 1.0:
                raise BrokenError(f"{file} was changed after it was loaded", remedy)

    def relabelling(self) -> str | None:
        """Whether our alerts get through what it does to the labels of alerts."""
        try:
            config = yaml.safe_load(self._ask("status/config")["yaml"]) or {}
        except BrokenError:  # a service that does not show its configuration
            return None
        alerting = config.get("alerting") or {}
        rules = [*(alerting.get("alert_relabel_configs") or ())]
        for manager in alerting.get("alertmanagers") or ():
            rules += manager.get("alert_relabel_configs") or ()
        external = {
            k: str(v)
            for k, v in ((config.get("global") or {}).get("external_labels") or {}).items()
        }
        self.alerts = []
        dropped = []
        for labels in alerts_of(shipped_rules(), self._runs.labels):
            left = relabelled(external | labels, rules)
            if left is None or not left.get("alertname"):
                dropped.append(labels["alertname"])
            else:
                self.alerts.append(left)
        if dropped:
            raise BrokenError(
                f"`alert_relabel_configs` drops {', '.join(dict.fromkeys(dropped))}",
                "let the rule in `alerting: alert_relabel_configs:` of prometheus.yml keep alerts "
                "whose alertname begins with Phasewatch",
            )
        return f"{len(rules)} rules, none drops an alert" if rules else "none"

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
        alerts: Labels of our alerts as they arrive there.
    """

    def __init__(self, url: str, alerts: list[dict[str, str]]) -> None:
        self.url = url
        self._alerts = alerts or alerts_of(shipped_rules(), ())

    def ready(self) -> str:
        """Whether it answers."""
        return _ready(self.url, "name its address in prometheus.yml")

    def route(self) -> str:
        """Whether the route of every alert of ours ends with somebody."""
        config = self._config()
        kinds = integrations(config)
        told: dict[str, None] = {}
        nobody: dict[str, str] = {}
        for labels in self._alerts:
            for name in receivers(labels, config["route"]):
                if kinds.get(name):
                    told[name] = None
                else:
                    nobody[labels["alertname"]] = name
        if nobody:
            ends = ", ".join(sorted(set(nobody.values())))
            raise BrokenError(
                f"{', '.join(nobody)} end in {ends!r}, which tells nobody",
                "name a receiver with an integration in the route of alertmanager.yml that they "
                "take, and reload Alertmanager",
            )
        return ", ".join(f"{name} ({', '.join(kinds[name])})" for name in told)

    def silences(self) -> str:
        """Whether an active silence mutes an alert of ours."""
        found = json.loads(get(f"{self.url}/api/v2/silences"))
        for silence in found:
            muted = [labels for labels in self._alerts if is_silenced(labels, silence)]
            if muted:
                which = ", ".join(dict.fromkeys(labels["alertname"] for labels in muted))
                raise BrokenError(
                    f"silence {silence['id']} by {silence.get('createdBy') or 'somebody'} mutes "
                    f"{which} until {silence['endsAt']}",
                    f"amtool silence expire {silence['id']} --alertmanager.url={self.url}",
                )
        return f"none of {len(found)} mutes an alert of ours" if found else "none"

    def receiver(self) -> str:
        """Whether who is to be told can be told."""
        page = get(f"{self.url}/metrics")
        before = notification_counts(page)
        self._check_reload(page)
        silent = self._unreachable()
        if silent:
            raise BrokenError(
                f"a receiver cannot be reached: {'; '.join(silent)}",
                "start what listens there, or correct its address in alertmanager.yml",
            )
        failing = self._failing(before)
        if failing:
            raise BrokenError(
                f"notifications fail now: {', '.join(failing)}",
                "look into Alertmanager's log; mend the receiver or its secret",
            )
        tried = sum(count for count, _ in before.values())
        failed = sum(count for _, count in before.values())
        return f"{tried:g} notifications so far, {failed:g} failed" if tried else "nobody told yet"

    def _failing(self, before: Counts) -> list[str]:
        """Integrations whose notifications fail: all so far, or those that are tried now."""
        if never := [name for name, (tried, failed) in before.items() if 0 < tried <= failed]:
            return never
        suspects = {name for name, (_, failed) in before.items() if failed}
        # Where alerts are to be told just now, the next try comes within what its back-off allows.
        patience = RETRY_SECONDS if suspects and self._has_news() else RECENT_SECONDS
        deadline = time.monotonic() + patience
        while suspects and time.monotonic() < deadline:
            time.sleep(min(0.5, patience))
            for name, (tried, failed) in notification_counts(get(f"{self.url}/metrics")).items():
                old_tried, old_failed = before.get(name, (0.0, 0.0))
                if tried - failed > old_tried - old_failed:
                    suspects.discard(name)
                elif failed > old_failed and name in suspects:
                    return [name]
        return []

    def _has_news(self) -> bool:
        """Whether it has an alert to tell of."""
        try:
            return bool(json.loads(get(f"{self.url}/api/v2/alerts?silenced=false&inhibited=false")))
        except OSError:  # one that shows no alerts
            return False

    def _check_reload(self, page: str) -> None:
        """Whether what it works with is what its file says."""
        remedy = (
            "check with `amtool check-config alertmanager.yml`, then reload: "
            f"curl -X POST {self.url}/-/reload"
        )
        successful = re.search(r"^alertmanager_config_last_reload_successful (\S+)", page, re.M)
        if successful and float(successful[1]) == 0:
            raise BrokenError(
                "the last reload of its configuration failed: it works with an older one", remedy
            )
        loaded = re.search(
            r"^alertmanager_config_last_reload_success_timestamp_seconds (\S+)", page, re.M
        )
        file = alertmanager_file(self.url)
        if loaded and file and file.stat().st_mtime > float(loaded[1]) + 1.0:
            raise BrokenError(f"{file} was changed after it was loaded", remedy)

    def _unreachable(self) -> list[str]:
        """Web hooks and mail servers of our receivers at which nobody listens."""
        config = self._config()
        used = {name for labels in self._alerts for name in receivers(labels, config["route"])}
        found = []
        for receiver in config.get("receivers") or ():
            if receiver["name"] not in used:
                continue
            places = [str(hook.get("url", "")) for hook in receiver.get("webhook_configs") or ()]
            if receiver.get("email_configs"):
                smarthost = (config.get("global") or {}).get("smtp_smarthost")
                places += [f"smtp://{smarthost}"] if smarthost else []
            for place in places:
                parts = urllib.parse.urlsplit(place)
                port = parts.port or {"http": 80, "https": 443, "smtp": 25}.get(parts.scheme)
                if not parts.hostname or port is None:
                    continue  # Alertmanager shows a secret address as <secret>
                try:
                    socket.create_connection((parts.hostname, port), TIMEOUT_SECONDS).close()
                except OSError as error:
                    found.append(f"{parts.hostname}:{port} of {receiver['name']}: {why(error)}")
        return found

    def _config(self) -> dict[str, Any]:
        status = json.loads(get(f"{self.url}/api/v2/status"))
        config: dict[str, Any] = yaml.safe_load(status["config"]["original"])
        return config


def _ready(url: str, otherwise: str) -> str:
    try:
        answer = get_with_headers(f"{url}/-/ready")
    except OSError as error:
        raise BrokenError(
            f"{url}: {reason(error)}", f"start it (`phasewatch stack up`), or {otherwise}"
        ) from error
    check_clock(answer.headers)
    return url


def shipped_rules() -> list[dict[str, Any]]:
    """The alerts of the shipped rules: name and labels."""
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text("utf-8"))
    return [
        {"name": rule["alert"], "labels": rule.get("labels") or {}}
        for group in rules["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]


def shipped_alerts() -> list[str]:
    """Names of the alerts in the shipped rules."""
    return [rule["name"] for rule in shipped_rules()]
