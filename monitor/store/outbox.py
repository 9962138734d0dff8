"""Messages about transitions: entered with the transition, kept until they are delivered.

A message is entered once for each transition, state and target, in the transaction that stores the
transition. Senders take the messages of a target one after the other, in the order of entry. One
that is being sent is claimed for a while, so that two senders do not send it both. The claim of a
sender that has died ends with it on its own machine, and runs out seen from others.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, and_, false, func, insert, inspect, or_, select, update
from sqlalchemy.engine import Connection, Row

from phasewatch.monitor.core.processes import ProcessIdentity
from phasewatch.monitor.core.redaction import redact
from phasewatch.monitor.core.transitions import (
    Recipient,
    Transition,
    TransitionKind,
    TransitionStatus,
)
from phasewatch.monitor.store import schema
from phasewatch.monitor.store.codec import decode_transition
from phasewatch.monitor.store.database import Database

CLAIM_SECONDS = 120.0
"""How long a message belongs to the sender that took it: longer than any one try."""

MAX_LOOKED_AT = 500
"""Waiting messages among which the next is chosen."""

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
        told_as: Kinds that earlier messages of it to this target told, in their order.
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
    told_as: tuple[TransitionKind, ...]


def enter(
    connection: Connection,
    transition: Transition,
    seq: int,
    recipients: Iterable[Recipient],
    now: float,
) -> None:
    """Enter the messages that a state of a transition calls for, in the caller's transaction.

    The first message of a transition is an alert. What follows goes only to targets that were
    alerted, and that want it; a withdrawal, and a kind that is another than was told, go to all of
    them, also to those that this run's configuration no longer names.

    Args:
        connection: The caller's transaction.
        transition: The transition as it stands.
        seq: Number of this state of it.
        recipients: Whom to tell.
        now: Unix time in seconds.
    """
    recipients = [*recipients]
    if not recipients:
        return
    told: dict[str, list[_Told]] = {}
    bodies = schema.transitions
    query = (
        select(_table.c.target, _table.c.state, bodies.c.kind)
        .join(bodies, bodies.c.seq == _table.c.transition_seq)
        .where(_table.c.transition_id == transition.id)
        .order_by(_table.c.id)
    )
    for seen in connection.execute(query):
        told.setdefault(seen.target, []).append(_Told(seen.state, seen.kind))
    wanted = [recipient.target for recipient in recipients if _wants(recipient, transition, told)]
    known = {recipient.target for recipient in recipients}
    by_stem = {stem_of(recipient.target): recipient for recipient in recipients}
    for target, messages in told.items():
        heir = by_stem.get(stem_of(target))
        updates = heir is not None and heir.updates
        if target not in known and _is_news(transition, messages, updates=updates):
            wanted.append(target)
    for target in wanted:
        state = transition.status.value
        is_told = any(message.state == state for message in told.get(target, ()))
        row = {
            "key": "/".join(
                [transition.id, state, *([transition.kind.value] if is_told else []), target]
            ),
            "transition_seq": seq,
            "transition_id": transition.id,
            "run_id": transition.run,
            "state": state,
            "target": target,
            "delivery": Delivery.WAITING.value,
            "created_at": now,
            "tries": 0,
            "last_error": "",
        }
        connection.execute(insert(_table), row)


@dataclass(frozen=True, slots=True)
class _Told:
    """What an earlier message told."""

    state: str
    kind: str


def _is_news(transition: Transition, told: Sequence[_Told], *, updates: bool) -> bool:
    """Whether those who were told something before are to be told how it goes on."""
    state = transition.status
    if state is TransitionStatus.CONFIRMED:
        # Once for each kind: a resumed run goes through them again.
        return all(one.kind != transition.kind for one in told)
    if any(one.state == state for one in told):
        return False
    is_corrected = state is TransitionStatus.ENDED and told[-1].kind != transition.kind
    return updates or is_corrected or state is TransitionStatus.WITHDRAWN


def stem_of(target: str) -> str:
    """Position and service of a target: what stays when its secret is changed."""
    return target.rsplit("-", 1)[0]


def _wants(
    recipient: Recipient, transition: Transition, told: Mapping[str, Sequence[_Told]]
) -> bool:
    state = transition.status
    if known := told.get(recipient.target):
        return _is_news(transition, known, updates=recipient.updates)
    if any(stem_of(target) == stem_of(recipient.target) for target in told):
        return False  # alerted under the name it had before its secret was changed
    return state is TransitionStatus.CONFIRMED or (
        state is TransitionStatus.SUSPECTED and recipient.from_suspected
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailbox:
    """The messages that one target may be sent.

    The digest in a target's name stands for its whole URL: whoever has it may send what waits
    for it. What waits under another digest, for the same position and service, is only its own
    run's: there, the secret was changed.

    Attributes:
        target: Name of the target.
        run_id: The run that sends, or for which a person has asked; None adopts nothing.
    """

    target: str
    run_id: str | None = None

    @property
    def condition(self) -> ColumnElement[bool]:
        """Which messages these are."""
        own = _table.c.target == self.target
        if self.run_id is None:
            return own
        stem = stem_of(self.target).replace("/", "//").replace("%", "/%").replace("_", "/_")
        alike = _table.c.target.like(f"{stem}-%", escape="/")
        return or_(own, and_(alike, _table.c.run_id == self.run_id))


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

    def num_waiting(self, boxes: Iterable[Mailbox]) -> int:
        """Messages not yet delivered."""
        mine = or_(false(), *(box.condition for box in boxes))
        return self._count(mine, _table.c.delivery == Delivery.WAITING.value)

    def num_sent_since(self, target: str, timestamp: float) -> int:
        """Messages delivered to a target after `timestamp`."""
        return self._count(_table.c.target == target, _table.c.sent_at > timestamp)

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

    def first(self, box: Mailbox, skip: Collection[int] = ()) -> Message | None:
        """The first message that may be sent now; None if there is none.

        What tells a later state of a transition waits for the earlier one; a message that is put
        off holds up no other.

        Args:
            box: The target's messages.
            skip: Ids of messages that are put off.
        """
        columns = (_table.c.id, _table.c.transition_id)
        with self._database.reading() as connection:
            waiting = connection.execute(
                select(*columns)
                .where(box.condition, _table.c.delivery == Delivery.WAITING.value)
                .order_by(_table.c.id)
                .limit(MAX_LOOKED_AT)
            ).all()
            held = {row.transition_id for row in waiting if row.id in skip}
            chosen = next((row.id for row in waiting if row.transition_id not in held), None)
            if chosen is None:
                return None
            head = connection.execute(select(_table).where(_table.c.id == chosen)).one()
            if (head.not_before or 0.0) > time.time():
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
        self._settle(message, last_error=redact(reason), not_before=not_before)

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
                .where(_table.c.id == message.id, _table.c.key == message.key)
                .values(claimed_by=None, claimed_until=None, **values)
            )

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

    def _count(self, *conditions: ColumnElement[bool]) -> int:
        query = select(func.count()).select_from(_table).where(*conditions)
        with self._database.reading() as connection:
            return connection.execute(query).scalar_one()


def _message(connection: Connection, row: Row[Any]) -> Message:
    bodies = schema.transitions
    earlier = connection.execute(
        select(bodies.c.kind)
        .join(_table, bodies.c.seq == _table.c.transition_seq)
        .where(
            _table.c.transition_id == row.transition_id,
            _table.c.target == row.target,
            _table.c.id < row.id,
        )
        .order_by(_table.c.id)
    ).scalars()
    told_as = tuple(dict.fromkeys(TransitionKind(kind) for kind in earlier))
    body = connection.execute(select(bodies.c.body).where(bodies.c.seq == row.transition_seq))
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
        transition=decode_transition(body.scalar_one()),
        told_as=told_as,
    )
