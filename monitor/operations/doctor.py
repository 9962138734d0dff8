"""Looks along the chain from a run to whoever is told, and says which link is broken.

target file → exporter → direct alerts → Prometheus (target, run, rules, relabelling) → Alertmanager
(known to Prometheus, reached, route, silences, receiver) → a test alert, where it is asked for.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator

from phasewatch.monitor.operations.doctor_end import EndToEnd
from phasewatch.monitor.operations.doctor_links import Link, LinkState, check, unchecked
from phasewatch.monitor.operations.doctor_runs import Runs
from phasewatch.monitor.operations.doctor_servers import Alertmanager, Prometheus


def examine(
    runs: Runs,
    prometheus_url: str,
    alertmanager_url: str | None = None,
    *,
    end_to_end: bool = False,
) -> Iterator[Link]:
    """Every link, in order; what hangs on a missing server is not checked.

    Args:
        runs: Where the runs are expected.
        prometheus_url: Base URL.
        alertmanager_url: Base URL; None takes every one that Prometheus sends to.
        end_to_end: Send a marked test alert through Alertmanager, and see whether it arrives.
    """
    yield check("target files", runs.target_files)
    yield check("exporter", runs.exporter)
    yield check("direct alerts", runs.direct_alerts)

    prometheus = Prometheus(prometheus_url, runs)
    reached = check("Prometheus", prometheus.ready)
    yield reached
    for name, look in (
        ("target in Prometheus", prometheus.target),
        ("run in Prometheus", prometheus.run),
        ("rules in Prometheus", prometheus.rules),
        ("relabelling of alerts", prometheus.relabelling),
        ("Alertmanager in Prometheus", prometheus.sends_to),
    ):
        if reached.state is LinkState.BROKEN:
            yield unchecked(name, "Prometheus is missing")
        else:
            yield check(name, look)

    urls = [alertmanager_url] if alertmanager_url else prometheus.alertmanagers
    if not urls:
        yield unchecked("Alertmanager", "its address is unknown")
        yield unchecked("receiver", "Alertmanager is missing")
    for url in urls:
        which = f" {urllib.parse.urlsplit(url).netloc}" if len(urls) > 1 else ""
        yield from _alertmanager(Alertmanager(url, prometheus.alerts), which, end_to_end=end_to_end)


def _alertmanager(alertmanager: Alertmanager, which: str, *, end_to_end: bool) -> Iterator[Link]:
    """The links at one of the Alertmanagers; `which` is put after their names."""
    reached = check(f"Alertmanager{which}", alertmanager.ready)
    yield reached
    for name, look in (
        ("route of alerts", alertmanager.route),
        ("silences", alertmanager.silences),
        ("receiver", alertmanager.receiver),
    ):
        if reached.state is LinkState.BROKEN:
            yield unchecked(name + which, "Alertmanager is missing")
        else:
            yield check(name + which, look)
    if end_to_end and reached.state is not LinkState.BROKEN:
        yield check(f"end to end{which}", EndToEnd(alertmanager.url).run)
