"""Messages about transitions: entered with the transition, kept until they are delivered.

A message is entered once for each transition, state and target, in the transaction that stores the
transition. Senders take the messages of a target one after the other, in the order of entry. One
that is being sent is claimed for a while, so that two senders do not send it both. The claim of a
sender that has died ends with it on its own machine, and runs out seen from others.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import func, insert, inspect, select, update
from sqlalchemy.engine import Connection, Row

from phasewatch.monitor.core.processes import ProcessIdentity
from phasewatch.monitor.core.types import Recipient, Transition, TransitionStatus
from phasewatch.monitor.store import schema
from phasewatch.monitor.store.codec import decode_transition
from phasewatch.monitor.store.database import Database

CLAIM_SECONDS = 120.0
"""How long a message belongs to the sender that took it: longer than any one try."""

_table = schema.outbox


class Delivery(StrEnum):
    """What has become of a message. DROPPED: taken back in time, or given up by a person."""

    WAITING = "waiting"
    SENT = "sent"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message in the outbox.

    Attributes:
        id: Its number: the order of entry.
        key: Transition, state and target: the same whenever the message is sent again.
        target: Name of the target.
        state: The state of the transition that the message tells.
        delivery: What has become of it.
        created_at: When it was entered, in Unix seconds.
        sent_at: When it was delivered; None while it was not.
        tries: How often sending it was tried.
        not_before: When the target takes messages again, if it has said so.
        last_error: Why the last try failed; empty if none did.
        transition: The transition as it stood then.
        first: The transition as the first message of it to this target told it.
    """

    id: int
    key: str
    target: str
    state: TransitionStatus
    delivery: Delivery
    created_at: float
    sent_at: float | None
    tries: int
    not_before: float | None
    last_error: str
    transition: Transition
    first: Transition


def enter(
    connection: Connection,
    transition: Transition,
    seq: int,
    recipients: Iterable[Recipient],
    now: float,
) -> None:
    """Enter the messages that a state of a transition calls for, in the caller's transaction.

    The first message of a transition is an alert. What follows goes only to targets that were
    alerted, and that want it; a withdrawal goes to all of them.

    Args:
        connection: The caller's transaction.
        transition: The transition as it stands.
        seq: Number of this state of it.
        recipients: Whom to tell.
        now: Unix time in seconds.
    """
    for recipient in recipients:
        state = transition.status
        known = set(
            connection.execute(
                select(_table.c.state).where(
                    _table.c.transition_id == transition.id, _table.c.target == recipient.target
                )
            ).scalars()
        )
        if known:
            wanted = state not in known and (
                recipient.updates or state is TransitionStatus.WITHDRAWN
            )
        else:
            wanted = state is TransitionStatus.CONFIRMED or (
                state is TransitionStatus.SUSPECTED and recipient.from_suspected
            )
        if wanted:
            row = {
                "key": f"{transition.id}/{state.value}/{recipient.target}",
                "transition_seq": seq,
                "transition_id": transition.id,
                "run_id": transition.run,
                "state": state.value,
                "target": recipient.target,
                "delivery": Delivery.WAITING.value,
                "created_at": now,
                "tries": 0,
                "last_error": "",
            }
            connection.execute(insert(_table), row)


class Outbox:
    """The messages of a store.

    Args:
        database: Where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        process = ProcessIdentity.current()
        self._owner = f"{process.machine}|{process.pid}|{process.start}|{uuid.uuid4().hex}"

    def messages(self, *targets: str, delivery: Delivery | None = None) -> list[Message]:
        """The messages in the order of entry, of all targets if none is named.

        Raises:
            StoreError: The store cannot be read.
        """
        query = select(_table).order_by(_table.c.id)
        if targets:
            query = query.where(_table.c.target.in_(targets))
        if delivery is not None:
            query = query.where(_table.c.delivery == delivery.value)
        with self._database.reading() as connection:
            if not inspect(connection).has_table(_table.name):
                return []  # written before there were alerts
            return [_message(connection, row) for row in connection.execute(query).all()]

    def num_waiting(self, targets: Iterable[str]) -> int:
        """Messages not yet delivered."""
        return self._count(targets, _table.c.delivery == Delivery.WAITING.value)

    def num_sent_since(self, target: str, timestamp: float) -> int:
        """Messages delivered to a target after `timestamp`."""
        return self._count([target], _table.c.sent_at > timestamp)

    def waiting_targets(self) -> set[str]:
        """Names of the targets that messages wait for."""
        query = select(_table.c.target).where(_table.c.delivery == Delivery.WAITING.value)
        with self._database.reading() as connection:
            return set(connection.execute(query.distinct()).scalars())

    def open_alerts(self, target: str, run_id: str) -> list[Message]:
        """Alerts of a run that were delivered, and that no later message has ended."""
        over = (TransitionStatus.ENDED, TransitionStatus.WITHDRAWN)
        latest = {
            message.transition.id: message
            for message in self.messages(target)
            if message.transition.run == run_id
        }
        return [
            message
            for message in latest.values()
            if message.delivery is Delivery.SENT and message.state not in over
        ]

    def first(self, targets: Sequence[str]) -> Message | None:
        """The first waiting message of a target; None if there is none, or not now.

        Args:
            targets: The names the target goes by.
        """
        with self._database.reading() as connection:
            head = self._head(connection, targets)
            if head is None or (head.not_before or 0.0) > time.time():
                return None
            return _message(connection, head)

    def claim(self, message: Message) -> bool:
        """Take a message, so that nobody else sends it meanwhile; False if it is not to be had.

        An alert that was withdrawn before anybody tried to send it is dropped with its withdrawal.
        """
        now = time.time()
        this = (_table.c.id == message.id, _table.c.delivery == Delivery.WAITING.value)
        columns = (_table.c.claimed_by, _table.c.claimed_until)
        with self._database.writing() as connection:
            claim = connection.execute(select(*columns).where(*this)).first()
            if claim is None or not self._is_free(claim.claimed_by, claim.claimed_until, now):
                return False
            if not message.tries and self._drop_withdrawn(connection, message):
                return False
            taken = connection.execute(
                update(_table)
                .where(*this, _table.c.claimed_by.is_not_distinct_from(claim.claimed_by))
                .values(
                    claimed_by=self._owner,
                    claimed_until=now + CLAIM_SECONDS,
                    tries=_table.c.tries + 1,
                )
            )
            return taken.rowcount == 1

    def _is_free(self, owner: str | None, until: float | None, now: float) -> bool:
        """Whether a claim has run out, is our own, or is that of a process that is gone."""
        if owner is None or until is None or until <= now or owner == self._owner:
            return True
        machine, pid, start = owner.split("|")[:3]
        process = ProcessIdentity(host="", machine=machine, pid=int(pid), start=start)
        return not process.is_alive(heartbeat=now, now=now)

    def delivered(self, message: Message) -> None:
        """The target has taken the message."""
        self._settle(message, delivery=Delivery.SENT.value, sent_at=time.time(), last_error="")

    def failed(self, message: Message, reason: str, not_before: float | None = None) -> None:
        """The target has not taken the message; it waits on.

        Args:
            message: The message.
            reason: Why, without secrets.
            not_before: Unix time before which the target takes none; None where it did not say.
        """
        self._settle(message, last_error=reason, not_before=not_before)

    def drop(self, number: int) -> bool:
        """Give up a waiting message; False if no such message waits."""
        with self._database.writing() as connection:
            dropped = connection.execute(
                update(_table)
                .where(_table.c.id == number, _table.c.delivery == Delivery.WAITING.value)
                .values(delivery=Delivery.DROPPED.value)
            )
            return dropped.rowcount == 1

    def _settle(self, message: Message, **values: Any) -> None:
        with self._database.writing() as connection:
            connection.execute(
                update(_table)
                .where(_table.c.id == message.id)
                .values(claimed_by=None, claimed_until=None, **values)
            )

    def _head(self, connection: Connection, targets: Sequence[str]) -> Row[Any] | None:
        return connection.execute(
            select(_table)
            .where(_table.c.target.in_(targets), _table.c.delivery == Delivery.WAITING.value)
            .order_by(_table.c.id)
            .limit(1)
        ).first()

    def _drop_withdrawn(self, connection: Connection, message: Message) -> bool:
        """Drop an alert that nobody can have got, if its withdrawal waits as well."""
        rows = connection.execute(
            select(_table.c.id, _table.c.state, _table.c.tries).where(
                _table.c.transition_id == message.transition.id,
                _table.c.target == message.target,
            )
        ).all()
        is_withdrawn = any(row.state == TransitionStatus.WITHDRAWN.value for row in rows)
        if not is_withdrawn or any(row.tries for row in rows):
            return False
        connection.execute(
            update(_table)
            .where(_table.c.id.in_([row.id for row in rows]))
            .values(delivery=Delivery.DROPPED.value)
        )
        return True

    def _count(self, targets: Iterable[str], condition: Any) -> int:
        query = select(func.count()).where(_table.c.target.in_([*targets]), condition)
        with self._database.reading() as connection:
            return connection.execute(query).scalar_one()


def _message(connection: Connection, row: Row[Any]) -> Message:
    bodies = schema.transitions
    first = connection.execute(
        select(_table.c.transition_seq)
        .where(_table.c.transition_id == row.transition_id, _table.c.target == row.target)
        .order_by(_table.c.id)
        .limit(1)
    ).scalar_one()

    def transition(seq: int) -> Transition:
        query = select(bodies.c.body).where(bodies.c.seq == seq)
        return decode_transition(connection.execute(query).scalar_one())

    return Message(
        id=row.id,
        key=row.key,
        target=row.target,
        state=TransitionStatus(row.state),
        delivery=Delivery(row.delivery),
        created_at=row.created_at,
        sent_at=row.sent_at,
        tries=row.tries,
        not_before=row.not_before,
        last_error=row.last_error,
        transition=transition(row.transition_seq),
        first=transition(first),
    )
