"""What is known of a run's messages beside the store, should the store be lost.

A checkpoint carries the messages of its run in short: which state of which transition was to be
told to whom, and what became of it. Where the store no longer holds them, because somebody has
removed it or because the run goes on in another one, they are entered again as they stood. What was
not delivered waits again; what was delivered is not sent a second time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.engine import Connection

from phasewatch.monitor.core.transitions import Transition, TransitionKind, TransitionStatus
from phasewatch.monitor.store import schema
from phasewatch.monitor.store.outbox import Delivery
from phasewatch.monitor.store.rows import TransitionRow, enter_transition

Messages = Sequence[Mapping[str, Any]]
"""The messages of a run in short, in the order of entry, as plain containers."""

_SHORT = ("key", "transition_id", "state", "target", "delivery", "created_at", "sent_at")

_table = schema.outbox


def read(connection: Connection, run_id: str) -> Messages:
    """The messages of a run in short.

    Args:
        connection: Open, to read.
        run_id: The run.
    """
    bodies = schema.transitions
    query = (
        select(*(_table.c[name] for name in _SHORT), bodies.c.kind)
        .join(bodies, bodies.c.seq == _table.c.transition_seq)
        .where(_table.c.run_id == run_id)
        .order_by(_table.c.id)
    )
    # SQLAlchemy's own names of columns would not load with a checkpoint.
    return [dict(zip((*_SHORT, "kind"), row, strict=True)) for row in connection.execute(query)]


def enter_again(
    connection: Connection,
    messages: Messages,
    transitions: Mapping[str, Transition],
    *,
    run_id: str,
    attempt: int,
) -> int:
    """Enter the messages that the store lacks, and note what it does not know to be settled.

    Args:
        connection: In a transaction that may write.
        messages: What is known of them.
        transitions: The transitions they tell of, by id; messages of others are left out.
        run_id: The run.
        attempt: The attempt that enters them.

    Returns:
        Messages entered.
    """
    num_entered = 0
    for message in messages:
        settled = {"delivery": message["delivery"], "sent_at": message["sent_at"]}
        mine = _table.c.key == message["key"]
        held = connection.execute(select(_table.c.delivery).where(mine)).scalar()
        if held is not None:
            if held == Delivery.WAITING.value != message["delivery"]:
                connection.execute(update(_table).where(mine).values(settled))
            continue
        transition = transitions.get(message["transition_id"])
        if transition is None:
            continue
        row = {
            **{name: message[name] for name in _SHORT},
            "transition_seq": _number_of(connection, message, transition, run_id, attempt),
            "run_id": run_id,
            "tries": 0,
            "last_error": "",
        }
        connection.execute(insert(_table), row)
        num_entered += 1
    return num_entered


def _number_of(
    connection: Connection,
    message: Mapping[str, Any],
    transition: Transition,
    run_id: str,
    attempt: int,
) -> int:
    """Number of the state that a message tells; it is entered if the store lacks it."""
    table = schema.transitions
    query = select(func.max(table.c.seq)).where(
        table.c.id == transition.id,
        table.c.status == message["state"],
        table.c.kind == message["kind"],
    )
    if (held := connection.execute(query).scalar()) is not None:
        return int(held)
    status = TransitionStatus(message["state"])
    is_open = status in (TransitionStatus.SUSPECTED, TransitionStatus.CONFIRMED)
    told = replace(
        transition,
        run=run_id,
        kind=TransitionKind(message["kind"]),
        status=status,
        end_step=None if is_open else transition.end_step,
    )
    row = TransitionRow(told, message["created_at"], (), attempt)
    return enter_transition(connection, row, told.detected_step)
