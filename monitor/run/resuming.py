"""How a fit begins: as a new run, as another attempt of one, or as a branch of one.

A resume compares what its checkpoint says with what the store holds, so that neither a row nor an
alert is lost between the two.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.core.transitions import Transition, TransitionStatus
from phasewatch.monitor.store.move import bring_along
from phasewatch.monitor.store.store import Begun, Store

log = logging.getLogger("phasewatch")

CARRY_SECONDS = 2.0
"""How long handing out a checkpoint's state waits for the store."""

NOTHING: Mapping[str, Any] = {"rows": [], "entered": {}, "store": ""}

_PROGRESS: Mapping[str, int] = {
    TransitionStatus.SUSPECTED: 0,
    TransitionStatus.CONFIRMED: 1,
    TransitionStatus.ENDED: 2,
    TransitionStatus.WITHDRAWN: 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a checkpoint says of the run it was taken from.

    Attributes:
        run_id: Identity of the run.
        name: Its name.
        attempt: The attempt that made the checkpoint.
        durable: What `Store.carry` gave.
    """

    run_id: str
    name: str
    attempt: int
    durable: Mapping[str, Any] = field(default_factory=lambda: NOTHING)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Saved:
        """From the state of a watch, also from one of before there was `durable`."""
        return cls(
            run_id=str(state["run_id"]),
            name=str(state["run_name"]),
            attempt=int(state["attempt"]),
            durable=state.get("durable") or NOTHING,
        )


def go_on(
    store: Store,
    saved: Saved,
    *,
    name: str,
    step: int,
    config: Mapping[str, Any],
    transitions: Sequence[Transition] = (),
) -> Begun:
    """Begin another attempt of the run that a checkpoint is of, or a branch of it.

    Args:
        store: Where it goes on.
        saved: What the checkpoint says.
        name: Name of the run: that of the checkpoint, unless the user gives another.
        step: Step of the checkpoint.
        config: The configuration, for the record.
        transitions: Those that the checkpoint knows.

    Raises:
        StoreError: The store cannot be read or written.
    """
    if not store.knows(saved.run_id):
        bring_along(store, saved.run_id, saved.name, str(saved.durable["store"]))
    begun = store.resume_run(
        name=name,
        run_id=saved.run_id,
        attempt=saved.attempt,
        step=step,
        is_renamed=name != saved.name,
        config=config,
    )
    if begun.branch_of is not None:
        log.warning(
            "another fit has gone on from this checkpoint of run %s (step %d): this one is a "
            "branch, and a run of its own: %s",
            saved.name,
            step,
            begun.name,
        )
    elif name != saved.name:
        log.info("run %s goes on under the name %s", saved.name, name)
    num_entered, num_missing = store.take_over(
        begun.run_id, begun.attempt, step, saved.durable, saved.run_id, transitions
    )
    if num_entered:
        log.info("%d rows of the history were in the checkpoint only, and are entered", num_entered)
    if num_missing:
        log.warning(
            "%d rows that run %s observed before its checkpoint are not in store %s; the holes are "
            "marked, and `phasewatch show` lists them",
            num_missing,
            begun.name,
            store.where,
        )
    return begun


def enter_what_is_missing(
    store: Store,
    saved: Saved,
    fit: tuple[str, int],
    transitions: Iterable[Transition],
    *,
    keep: Callable[[Transition], None],
    notify: Callable[[Transition], None],
) -> None:
    """Enter what a checkpoint knows of transitions and the store does not.

    Args:
        store: Holds the run.
        saved: What the checkpoint says.
        fit: Run and attempt that have resumed.
        transitions: What the checkpoint knows.
        keep: Enters a transition alone: its messages are known, and entered.
        notify: Enters one that nobody was told of yet, with the messages it calls for.
    """
    told = saved.durable.get("transitions")
    try:
        if told is None and store.num_attempts(*fit) == 1:
            return  # from an earlier version, in another store: who was told is not known
        held = {t.id: t.status for t in store.transitions(fit[0], attempt=fit[1])}
    except StoreError as error:
        log.warning("transitions of the checkpoint are not compared with the store: %s", error)
        return
    for transition in transitions:
        before = held.get(transition.id)
        if before is not None and _PROGRESS[before] >= _PROGRESS[transition.status]:
            continue
        said = None if told is None else told.get(transition.id)
        is_told = said is not None and _PROGRESS[said] >= _PROGRESS[transition.status]
        enter = keep if is_told else notify
        if before is None and transition.status is TransitionStatus.ENDED:
            enter(replace(transition, status=TransitionStatus.CONFIRMED, end_step=None))
        enter(transition)
