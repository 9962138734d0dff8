"""What an alert says: the explanation of a transition, the same for every service."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from phasewatch.monitor.config.alerts import AlertsConfig
from phasewatch.monitor.core.explanation import clean, explain
from phasewatch.monitor.core.redaction import redact
from phasewatch.monitor.core.transitions import Transition, TransitionKind, TransitionStatus

GRAFANA_DASHBOARD = "phasewatch-run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One message, ready to be sent.

    Attributes:
        key: The same whenever this message is sent again.
        title: The news in a line.
        body: The facts, one a line.
        run: Name of the run.
        state: State of the transition.
        transition: The transition as it stands.
        told_as: Kinds that earlier messages of it told, in their order.
        link: Where to look, if there is such an address.
        picture: PNG of the run's curves.
    """

    key: str
    title: str
    body: str
    run: str
    state: TransitionStatus
    transition: Transition
    told_as: tuple[TransitionKind, ...] = ()
    link: str = ""
    picture: Path | None = None

    @property
    def is_over(self) -> bool:
        """Whether the transition has ended, or was none."""
        return self.state in (TransitionStatus.ENDED, TransitionStatus.WITHDRAWN)

    @property
    def severity(self) -> str:
        """The severity that the Prometheus rules give to such a transition."""
        return severity_of(self.transition.kind)


def severity_of(kind: TransitionKind) -> str:
    """The severity that the Prometheus rules give to transitions of a kind."""
    return "warning" if kind is TransitionKind.INSTABILITY else "info"


def write_alert(
    transition: Transition,
    *,
    key: str,
    told_as: tuple[TransitionKind, ...] = (),
    state: TransitionStatus,
    run: str,
    units: Mapping[str, str],
    stored: Mapping[str, Any] | None = None,
    store: str,
    config: AlertsConfig,
    picture: Path | None = None,
) -> Alert:
    """Write the message of one state of a transition.

    Args:
        transition: The transition as it stood then.
        key: Identity of the message.
        told_as: Kinds that earlier messages of it told, in their order.
        state: The state to tell.
        run: Name of the run.
        units: Unit by stream.
        stored: The configuration that is stored with the run.
        store: Where the run history is, for people.
        config: Links.
        picture: PNG to attach.
    """
    told = explain(transition, state=state, config=stored, units=units)
    title, lines = told.title, told.lines
    if told_as and told_as[-1] is not transition.kind:
        title = f"{title} (told before as {told_as[-1]})"
        lines = [f"Correction: it was told as {told_as[-1]} before", *lines]
    links = _links(transition, run, config)
    lines += [f"{what}: {address}" for what, address in links.items()]
    if "Report" not in links:
        # Where a server is, is nobody's business who is only told of a transition.
        where = "" if "://" in store else f" --store {shlex.quote(store)}"
        lines.append(f"Report: phasewatch report {transition.run[:8]}{where}")
    lines.append(f"Id: {transition.id}")
    return Alert(
        key=key,
        title=redact(f"{clean(run)}: {title}"),
        body=redact("\n".join(lines)),
        run=redact(run),
        state=state,
        transition=transition,
        told_as=told_as,
        link=redact(next(iter(links.values()), "")),
        picture=picture,
    )


def _links(transition: Transition, run: str, config: AlertsConfig) -> dict[str, str]:
    links = {}
    name = quote(run, safe="", errors="replace")
    if config.report_url:
        links["Report"] = config.report_url.replace("{run}", name)
    if config.grafana_url:
        since, until = (round(1000 * (transition.detected_at + s)) for s in (-1800, 1800))
        links["Grafana"] = (
            f"{config.grafana_url.rstrip('/')}/d/{GRAFANA_DASHBOARD}"
            f"?var-run={name}&from={since}&to={until}"
        )
    return links
