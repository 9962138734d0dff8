"""Looks along the chain from a run to whoever is told, and says which link is broken.

target file → exporter → direct alerts → Prometheus (target, run, rules) → Alertmanager (known to
Prometheus, reached, somebody told).
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from phasewatch.monitor.stack import SHIPPED

TIMEOUT_SECONDS = 5.0


class LinkState(StrEnum):
    """How a link of the chain is."""

    OK = "ok"
    BROKEN = "broken"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One link of the chain.

    Attributes:
        name: Which.
        state: How it is.
        found: What was seen.
        remedy: What to do, where it is broken.
    """

    name: str
    state: LinkState
    found: str
    remedy: str = ""


class BrokenError(Exception):
    """A link is broken.

    Args:
        found: What was seen.
        remedy: What to do.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found, self.remedy = found, remedy


@dataclass(slots=True, kw_only=True)
class Doctor:
    """Examines one chain.

    Attributes:
        addresses: Where runs are expected to serve, as "http://host:port".
        targets: Folder of target files; None if there is none.
        prometheus: Base URL.
        alertmanager: Base URL; None takes the one that Prometheus sends to.
        runs: Names of the runs found serving.
        answering: Those of the addresses that answer.
        pages: What they serve.
    """

    addresses: tuple[str, ...]
    targets: Path | None
    prometheus: str
    alertmanager: str | None = None
    runs: set[str] = field(default_factory=set)
    answering: set[str] = field(default_factory=set)
    pages: list[str] = field(default_factory=list)

    def examine(self) -> Iterator[Link]:
        """Every link, in order; what hangs on a broken one may not be checked."""
        yield self._check("target files", self._target_files)
        yield self._check("exporter", self._exporter)
        yield self._check("direct alerts", self._direct_alerts)
        reached = self._check("Prometheus", self._prometheus_ready)
        yield reached
        for name, check in (
            ("target in Prometheus", self._target),
            ("run in Prometheus", self._run),
            ("rules in Prometheus", self._rules),
            ("Alertmanager in Prometheus", self._alertmanager_known),
        ):
            if reached.state is LinkState.BROKEN:
                yield Link(name=name, state=LinkState.NOT_CHECKED, found="Prometheus is missing")
            else:
                yield self._check(name, check)
        if self.alertmanager is None:
            for name in ("Alertmanager", "receiver"):
                yield Link(name=name, state=LinkState.NOT_CHECKED, found="its address is unknown")
            return
        reached = self._check("Alertmanager", self._alertmanager_ready)
        yield reached
        if reached.state is LinkState.BROKEN:
            yield Link(
                name="receiver", state=LinkState.NOT_CHECKED, found="Alertmanager is missing"
            )
        else:
            yield self._check("receiver", self._receiver)

    @staticmethod
    def _check(name: str, check: Callable[[], str | None]) -> Link:
        try:
            found = check()
        except BrokenError as error:
            return Link(name=name, state=LinkState.BROKEN, found=error.found, remedy=error.remedy)
        except Exception as error:  # another program answers there, and not as we know it
            return Link(
                name=name,
                state=LinkState.BROKEN,
                found=f"an answer that is not understood: {type(error).__name__}: {error}",
                remedy="see that the address is the right one",
            )
        if found is None:
            return Link(name=name, state=LinkState.NOT_CHECKED, found="none are used")
        return Link(name=name, state=LinkState.OK, found=found)

    # ---- the links

    def _target_files(self) -> str | None:
        if self.targets is None:
            return None
        if not self.targets.is_dir():
            raise BrokenError(
                f"folder {self.targets} does not exist",
                "start a run with exporter.targets_dir set to it, or give --targets the folder "
                "that your runs use",
            )
        files = sorted(self.targets.glob("*.json"))
        found: list[str] = []
        for file in files:
            try:
                for group in json.loads(file.read_text("utf-8")):
                    scheme = group.get("labels", {}).get("__scheme__", "http")
                    found += [f"{scheme}://{target}" for target in group["targets"]]
            except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
                raise BrokenError(
                    f"{file} is not a target file: {type(error).__name__}: {error}", "remove it"
                ) from error
        if not found:
            raise BrokenError(
                f"no target file in {self.targets}",
                "start a run with exporter.targets_dir set to this folder",
            )
        self.addresses = tuple(dict.fromkeys(found))
        return f"{len(files)} in {self.targets}"

    def _exporter(self) -> str:
        silent = []
        for address in self.addresses:
            try:
                page = _get(f"{address}/metrics")
            except OSError as error:
                silent.append(f"{address}: {_reason(error)}")
                continue
            served = {
                re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), run)
                for run in re.findall(
                    r'^phasewatch_run_info\{(?:[^"]*"[^"]*",)*run="((?:[^"\\]|\\.)*)"', page, re.M
                )
            }
            if served:
                self.runs |= served
                self.answering.add(address)
                self.pages.append(page)
            else:
                silent.append(f"{address}: answers, but no run is served there")
        if not self.runs:
            raise BrokenError(
                "; ".join(silent) or "no address to ask",
                "start a run, or give --metrics the address that its log names; a target file "
                "whose run is dead goes with `phasewatch targets --reap`",
            )
        told = f"{', '.join(sorted(self.answering))}: {_names(self.runs)}"
        return told + (f" (silent: {'; '.join(silent)})" if silent else "")

    def _direct_alerts(self) -> str | None:
        waiting = self._sum("phasewatch_alert_queue_messages")
        if waiting is None:
            return None
        failed = self._sum("phasewatch_alert_failures_total")
        if waiting and failed:
            raise BrokenError(
                f"{waiting:g} messages wait, and {failed:g} attempts to send have failed",
                "`phasewatch test-alert` says which target fails and why",
            )
        return f"{waiting:g} messages wait"

    def _sum(self, metric: str) -> float | None:
        """Sum of a metric over everything that the runs serve; None if they serve no such thing."""
        found = re.findall(rf"^{metric}\{{.*\}} (\S+)", "\n".join(self.pages), re.MULTILINE)
        return sum(map(float, found)) if found else None

    def _prometheus_ready(self) -> str:
        try:
            _get(f"{self.prometheus}/-/ready")
        except OSError as error:
            raise BrokenError(
                f"{self.prometheus}: {_reason(error)}",
                "start it (`phasewatch stack up`), or give --prometheus its address",
            ) from error
        return self.prometheus

    def _target(self) -> str:
        active = self._ask("targets?state=active")["activeTargets"]
        ours = [
            target
            for target in active
            if _base(target["scrapeUrl"]) in self.answering
            or target["labels"].get("run") in self.runs
        ]
        where = self.targets if self.targets is not None else "the target file or address"
        if not ours:
            raise BrokenError(
                f"none of its {len(active)} targets is a run found here",
                f"let `file_sd_configs` name {where}/*.json, or `static_configs` the address"
                if self.targets is not None
                else "let `static_configs` name the address, or set exporter.targets_dir",
            )
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

    def _run(self) -> str:
        renamed = self._query('count({__name__="phasewatch_run_info", exported_run!=""})')
        if renamed:
            raise BrokenError(
                "the label `run` arrives as `exported_run`, and no rule finds it",
                "set `honor_labels: true` in the scrape configuration",
            )
        seen = {sample["metric"].get("run", "") for sample in self._query("phasewatch_run_info")}
        if missing := self.runs - seen:
            raise BrokenError(
                f"it has no samples of {_names(missing)}",
                "wait for two scrapes; else look at its target's error in Prometheus",
            )
        if not seen:
            raise BrokenError(
                "it has never seen a run, or not in the last five minutes",
                "mend the links above, then wait for two scrapes",
            )
        return _names(seen)

    def _rules(self) -> str:
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

    def _alertmanager_known(self) -> str:
        active = [
            _base(manager["url"]) for manager in self._ask("alertmanagers")["activeAlertmanagers"]
        ]
        if not active:
            raise BrokenError(
                "it sends alerts to no Alertmanager",
                "name one under `alerting: alertmanagers:` in prometheus.yml",
            )
        if self.alertmanager is None:
            self.alertmanager = active[0]
        return ", ".join(active)

    def _alertmanager_ready(self) -> str:
        try:
            _get(f"{self.alertmanager}/-/ready")
        except OSError as error:
            raise BrokenError(
                f"{self.alertmanager}: {_reason(error)}",
                "start it (`phasewatch stack up`), or name its address in prometheus.yml",
            ) from error
        return str(self.alertmanager)

    def _receiver(self) -> str:
        status = json.loads(_get(f"{self.alertmanager}/api/v2/status"))
        config = yaml.safe_load(status["config"]["original"])
        kinds = {
            receiver["name"]: [key.removesuffix("_configs") for key in receiver if key != "name"]
            for receiver in config["receivers"]
        }
        used = {name: kinds.get(name, []) for name in _receivers(config["route"])}
        if not any(used.values()):
            raise BrokenError(
                f"alerts end in {_names(set(used))}, which tells nobody",
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
        page = _get(f"{self.alertmanager}/metrics")

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

    # ---- asking Prometheus

    def _ask(self, path: str) -> Any:
        try:
            return json.loads(_get(f"{self.prometheus}/api/v1/{path}"))["data"]
        except (OSError, ValueError, KeyError) as error:
            raise BrokenError(
                f"{self.prometheus}/api/v1/{path}: {_reason(error)}", "is this a Prometheus?"
            ) from error

    def _query(self, expression: str) -> list[dict[str, Any]]:
        answer = self._ask(f"query?query={urllib.parse.quote(expression)}")
        result: list[dict[str, Any]] = answer["result"]
        return result


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


def _base(url: str) -> str:
    """A URL without the path that its server added: "/metrics", "/api/v2/alerts"."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path.split('/api/')[0].removesuffix('/metrics')}"


def _names(runs: set[str]) -> str:
    return ", ".join(sorted(map(repr, runs)))


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return getattr(reason, "strerror", None) or str(reason)


def _get(url: str) -> str:
    # A proxy of the environment does not know this machine's loopback.
    handlers = [urllib.request.ProxyHandler({})] if _is_loopback(url) else []
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(url, timeout=TIMEOUT_SECONDS) as response:
            body: bytes = response.read()
    except http.client.HTTPException as error:
        raise OSError(f"answers, but not by HTTP ({type(error).__name__})") from error
    return body.decode("utf-8", "replace")


def _is_loopback(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
