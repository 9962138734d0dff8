"""The end of a run: its transitions judged once more, and a word of what was found."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.transitions import Transition, TransitionStatus
from phasewatch.monitor.run.sinks import Sinks
from phasewatch.monitor.store.store import Store
from phasewatch.monitor.transitions.pipeline import Detection

log = logging.getLogger("phasewatch")


def look_back(
    sinks: Sinks,
    detection: Detection,
    transitions: Sequence[Transition],
    *,
    run_id: str,
    attempt: int,
) -> None:
    """Judge transitions once more by the full history; what fails leaves them as they were.

    Args:
        sinks: The attempt's store and sinks. Who was told of a transition is told that it is
            withdrawn; any other verdict is only kept.
        detection: What found them, and takes up the verdicts.
        transitions: Those of this attempt.
        run_id: Identity of the run.
        attempt: Which fit of the run.
    """
    from phasewatch.monitor.transitions.hindsight import review, stored_history

    store, before = sinks.store, {t.id: t.status for t in transitions}
    try:
        # The store also knows those of earlier attempts; what it was just told, not yet.
        known = {t.id: t for t in (*store.transitions(run_id), *transitions)}
        reviewed = review(
            known.values(),
            detection.streams,
            stored_history(store, run_id),
            run=run_id,
            attempt=attempt,
            holes=store.holes(run_id, attempt=attempt),
        )
    except Exception as error:
        log.warning("transitions were not looked at again: %s: %s", type(error).__name__, error)
        return
    detection.revise(reviewed)
    for transition in reviewed:
        told = before.get(transition.id) in (TransitionStatus.CONFIRMED, TransitionStatus.ENDED)
        if told and transition.status is TransitionStatus.WITHDRAWN:
            sinks.notify(transition)
        else:
            sinks.keep(transition)


def say_goodbye(
    name: str, state: RunState, transitions: Sequence[Transition], store: Store
) -> None:
    """Log how a run ended, what was found, and where to look at it.

    Args:
        name: The run's name.
        state: How it ended.
        transitions: What was found.
        store: Where its history lies.
    """
    found = [t for t in transitions if t.status is not TransitionStatus.WITHDRAWN]
    listed = ", ".join(f"{t.kind} at step {t.onset_step}" for t in found) or "none"
    log.info("run %s %s; transitions: %s", name, state, listed)
    if store.is_in_memory:
        log.info("its history was kept in memory only, and ends with this process")
    else:
        where = store.where
        log.info("look at it with: phasewatch report %s --store %s", shlex.quote(name), where)
