"""What a run says of itself in a prompt and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.explanation import clean, explain
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.history import History
from phasewatch.monitor.core.transitions import Transition, TransitionStatus


def in_a_line(name: str, health: Health, transitions: Iterable[Transition]) -> str:
    """A run's name, state, step and transitions.

    Args:
        name: Name of the run.
        health: Where it stands.
        transitions: What was found in it.
    """
    standing = [t for t in transitions if t.status is not TransitionStatus.WITHDRAWN]
    said = ", ".join(f"{t.kind} at step {t.onset_step:,}" for t in standing)
    return f"{name!r}: {health.state} at step {health.step:,}, {said or 'no transition'}"


def as_card(
    name: str,
    health: Health,
    transitions: Sequence[Transition],
    llc: History,
    config: Mapping[str, Any],
) -> str:
    """The same as HTML, with the latest λ̂ and a card for each transition.

    Args:
        name: Name of the run.
        health: Where it stands.
        transitions: What was found in it.
        llc: λ̂ with all values, whatever their status.
        config: The configuration that is stored with the run.
    """
    facts = {"State": f"{health.state}, step {health.step:,}"}
    if llc.steps.size:
        facts["λ̂"] = (
            f"{llc.values[-1]:.4g} ± {llc.stderrs[-1]:.2g} at step {llc.steps[-1]:,} "
            f"({llc.statuses[-1]})"
        )
    rows = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in facts.items()
    )
    cards = "".join(explain(t, config=config).html for t in transitions)
    none = "" if transitions else "<p>No transition was found.</p>"
    return f"<h3>{html.escape(name)}</h3><dl>{rows}</dl>{cards}{none}"


def as_table(
    name: str,
    health: Health,
    latest: Iterable[Observation],
    transitions: Iterable[Transition],
    *,
    num_more: int = 0,
) -> str:
    """Where a run stands while it trains, as HTML: short enough to be sent every second.

    Args:
        name: Name of the run.
        health: Where it stands.
        latest: The latest value of each stream that is shown.
        transitions: What was found so far.
        num_more: Streams that are not shown.
    """
    head = [f"{health.state}", f"step {health.step:,}"]
    if health.steps_per_second:
        head.append(f"{health.steps_per_second:,.3g} steps a second")
    head.append(f"monitoring takes {100 * health.overhead_ratio:.2g} % of the time")
    rows = "".join(_row(observation) for observation in latest)
    more = f"<p>and {num_more:,} more</p>" if num_more else ""
    found = "".join(
        f"<li>{html.escape(explain(t).title)}; severity {t.severity:.3g}</li>" for t in transitions
    )
    return (
        f"<h3>{html.escape(clean(name))}</h3><p>{html.escape(', '.join(head))}</p>"
        "<table><thead><tr><th>Stream</th><th>Value</th><th>Step</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{more}"
        + (f"<ul>{found}</ul>" if found else "<p>No transition was found so far.</p>")
    )


def _row(observation: Observation) -> str:
    value = f"{observation.value:.4g}"
    if observation.stderr is not None:
        value += f" ± {observation.stderr:.2g}"
    if observation.status is not EstimateStatus.OK:
        value += f" ({observation.status})"
    name = html.escape(clean(observation.name))
    return f"<tr><td>{name}</td><td>{html.escape(value)}</td><td>{observation.step:,}</td></tr>"
