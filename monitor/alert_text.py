"""What an alert says: plain, short, the same for every service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from phasewatch.monitor.alerts import AlertsConfig
from phasewatch.monitor.redaction import redact
from phasewatch.monitor.types import Transition, TransitionKind, TransitionStatus

MAX_NAME = 120
"""Letters of a name in a message."""

NUM_GROUPS = 3
"""Parameter groups named as the place of a change."""

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
        first: The transition as it was told first.
        link: Where to look, if there is such an address.
        picture: PNG of the run's curves.
    """

    key: str
    title: str
    body: str
    run: str
    state: TransitionStatus
    transition: Transition
    first: Transition
    link: str = ""
    picture: Path | None = None

    @property
    def is_over(self) -> bool:
        """Whether the transition has ended, or was none."""
        return self.state in (TransitionStatus.ENDED, TransitionStatus.WITHDRAWN)

    @property
    def severity(self) -> str:
        """The severity that the Prometheus rules give to such a transition."""
        return "warning" if self.first.kind is TransitionKind.INSTABILITY else "info"


def write_alert(
    transition: Transition,
    *,
    key: str,
    first: Transition,
    state: TransitionStatus,
    run: str,
    units: Mapping[str, str],
    store: str,
    config: AlertsConfig,
    picture: Path | None = None,
) -> Alert:
    """Write the message of one state of a transition.

    Args:
        transition: The transition as it stood then.
        key: Identity of the message.
        first: The transition as it was told first.
        state: The state to tell.
        run: Name of the run.
        units: Unit by stream.
        store: Where the run history is, for people.
        config: Links.
        picture: PNG to attach.
    """
    name = _short(run)
    lines = [
        f"What: {_WHAT[transition.kind]}",
        f"When: {_when(transition)}",
        f"How sure: {_evidence(transition)}",
        *(
            f"{_short(stream)}: {_change(transition, stream, units)}"
            for stream in _streams(transition)
        ),
    ]
    if transition.where:
        groups = (
            f"{_short(group)} ({moved:.0%})" for group, moved in transition.where[:NUM_GROUPS]
        )
        lines.append(f"Where: {', '.join(groups)}")
    links = _links(transition, run, config)
    lines += [f"{what}: {address}" for what, address in links.items()]
    if "Report" not in links:
        # Where a server is, is nobody's business who is only told of a transition.
        where = "" if "://" in store else f" --store {store}"
        lines.append(f"Report: phasewatch report {transition.run[:8]}{where}")
    lines.append(f"Id: {transition.id}")
    return Alert(
        key=key,
        title=redact(_title(transition, state, name)),
        body=redact("\n".join(lines)),
        run=redact(run),
        state=state,
        transition=transition,
        first=first,
        link=redact(next(iter(links.values()), "")),
        picture=picture,
    )


_WHAT = {
    TransitionKind.INSTABILITY: "instability: a loss or norm has jumped away from where it was",
    TransitionKind.GENERALISATION: "generalisation: held-out data improve, training data do not",
    TransitionKind.MEMORISATION: "memorisation: training data improve, held-out data do not",
    TransitionKind.SIMPLIFICATION: "simplification: λ̂ falls at the same loss",
    TransitionKind.ACQUISITION: "acquisition: something new is learnt",
    TransitionKind.CIRCUIT_FORMATION: "circuit formation: a general solution forms",
    TransitionKind.CLEANUP: "cleanup: what was memorised goes, the general circuit stays",
    TransitionKind.UNCLASSIFIED: "a transition that fits no known kind",
}


def _title(transition: Transition, state: TransitionStatus, run: str) -> str:
    said = {
        TransitionStatus.SUSPECTED: f"{transition.kind} suspected",
        TransitionStatus.CONFIRMED: f"{transition.kind}",
        TransitionStatus.ENDED: f"{transition.kind} has ended",
        TransitionStatus.WITHDRAWN: f"withdrawn: it was no {transition.kind}",
    }[state]
    return f"{run}: {said}, from step {transition.onset_step:,}"


def _when(transition: Transition) -> str:
    moment = datetime.fromtimestamp(transition.detected_at, UTC)
    epoch = "" if transition.epoch is None else f", epoch {transition.epoch}"
    end = "" if transition.end_step is None else f", ended at step {transition.end_step:,}"
    return (
        f"from step {transition.onset_step:,}, detected at step {transition.detected_step:,}"
        f"{epoch}{end}, {moment:%Y-%m-%d %H:%M:%S} UTC"
    )


def _evidence(transition: Transition) -> str:
    scores = (
        f"{_short(name)} at {alarm.score:.3g} times its threshold"
        for name, alarm in transition.evidence.items()
    )
    return f"severity {transition.severity:.3g} (1 is tenfold), seen by {', '.join(scores)}"


def _streams(transition: Transition) -> list[str]:
    return [name for name in transition.before if name in transition.after]


def _change(transition: Transition, stream: str, units: Mapping[str, str]) -> str:
    unit = units.get(stream, "1")
    shown = "" if unit == "1" else f" {_short(unit)}"
    return f"{transition.before[stream]:.4g} → {transition.after[stream]:.4g}{shown}"


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


def _short(text: str) -> str:
    """A name as one line of printable text."""
    clean = "".join(c if c.isprintable() else "\ufffd" for c in text)
    clean = clean.encode("utf-8", "replace").decode()
    return clean if len(clean) <= MAX_NAME else clean[: MAX_NAME - 1] + "…"
