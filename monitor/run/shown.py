"""What a run says of itself in a prompt and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from phasewatch.monitor.core.explanation import explain
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
