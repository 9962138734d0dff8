"""A run that goes on in another store takes its history along, where the old store is in reach."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Table, insert, select, update
from sqlalchemy.engine import Connection

from phasewatch.monitor import store_schema as schema
from phasewatch.monitor.errors import StoreError
from phasewatch.monitor.outbox import Delivery
from phasewatch.monitor.store import Store

log = logging.getLogger("phasewatch")

ROWS_AT_ONCE = 2000


def bring_along(store: Store, run_id: str, name: str, old_place: str) -> bool:
    """Copy a run from the store it was in; say where it was where that cannot be.

    Args:
        store: Where the run goes on.
        run_id: Identity of the run.
        name: Its name.
        old_place: The store it was in, as its checkpoint names it; a server's has no password.

    Returns:
        Whether the history is here now.
    """
    if old_place in ("", store.where):
        return False
    if "://" in old_place or not Path(old_place).exists():
        why = "is on a server" if "://" in old_place else "is not there any more"
        log.warning(
            "run %s goes on in store %s; its history until now is in %s, which %s, and stays there",
            name,
            store.where,
            old_place,
            why,
        )
        return False
    try:
        with Store(old_place, create=False) as old:
            if not old.knows(run_id):
                raise StoreError("it is not in that store any more")
            number = _copy(old, store, run_id)
            _give_up_messages(old, run_id, store.where)
    except Exception as error:
        log.warning(
            "run %s goes on in store %s; its history until now is in %s, and could not be taken "
            "along: %s",
            name,
            store.where,
            old_place,
            error,
        )
        return False
    log.warning(
        "run %s goes on in store %s; its history of %d values was taken along from %s",
        name,
        store.where,
        number,
        old_place,
    )
    return True


def _copy(old: Store, new: Store, run_id: str) -> int:
    """Copy everything of a run and of what it branched off, in one transaction."""
    with old.database.reading() as source, new.database.writing() as target:
        number = 0
        for run in _family(source, run_id):
            number += _copy_run(source, target, run)
        return number


def _family(source: Connection, run_id: str) -> list[str]:
    """The run, and the runs it descends from, the eldest first."""
    table, found = schema.attempts, [run_id]
    while True:
        query = select(table.c.parent_run).where(
            table.c.run_id == found[0], table.c.parent_run.is_not(None)
        )
        parent = source.execute(query.limit(1)).scalar()
        if parent is None or parent in found:
            return found
        found.insert(0, parent)


def _copy_run(source: Connection, target: Connection, run_id: str) -> int:
    attempts, streams, observations = schema.attempts, schema.streams, schema.observations
    if target.execute(select(attempts.c.attempt).where(attempts.c.run_id == run_id)).first():
        return 0
    _insert(target, attempts, _rows(source, attempts, attempts.c.run_id == run_id))
    _insert(
        target, schema.holes, _rows(source, schema.holes, schema.holes.c.run_id == run_id, "id")
    )
    number = 0
    for stream in [*_rows(source, streams, streams.c.run_id == run_id)]:
        old_id = stream.pop("id")
        new_id = _new_key(target, streams, stream)
        detailed = {
            row["observation_id"]: row
            for row in _rows(
                source,
                schema.estimates,
                schema.estimates.c.observation_id.in_(
                    select(observations.c.id).where(observations.c.stream_id == old_id)
                ),
            )
        }
        batch: list[dict[str, Any]] = []
        for row in _rows(source, observations, observations.c.stream_id == old_id):
            number += 1
            row["stream_id"] = new_id
            if (detail := detailed.get(row.pop("id"))) is None:
                batch.append(row)
                if len(batch) >= ROWS_AT_ONCE:
                    _insert(target, observations, batch)
                    batch = []
            else:
                detail["observation_id"] = _new_key(target, observations, row)
                _insert(target, schema.estimates, [detail])
        _insert(target, observations, batch)
    _copy_transitions(source, target, run_id)
    return number


def _copy_transitions(source: Connection, target: Connection, run_id: str) -> None:
    table, outbox = schema.transitions, schema.outbox
    numbers: dict[int, int] = {}
    for row in _rows(source, table, table.c.run_id == run_id):
        numbers[row.pop("seq")] = _new_key(target, table, row)
    for row in _rows(source, outbox, outbox.c.run_id == run_id, "id"):
        row["transition_seq"] = numbers[row["transition_seq"]]
        row["claimed_by"] = row["claimed_until"] = None
        known = select(outbox.c.id).where(outbox.c.key == row["key"])
        if target.execute(known).first() is None:
            _insert(target, outbox, [row])


def _give_up_messages(old: Store, run_id: str, place: str) -> None:
    """What waits was taken along: it must not be sent from here as well."""
    table = schema.outbox
    try:
        with old.database.writing() as connection:
            connection.execute(
                update(table)
                .where(table.c.run_id == run_id, table.c.delivery == Delivery.WAITING.value)
                .values(delivery=Delivery.DROPPED.value, last_error=f"moved to {place}")
            )
    except Exception as error:
        raise StoreError(
            f"messages that wait in {old.where} cannot be given up there: {schema.reason_of(error)}"
        ) from None


def _rows(source: Connection, table: Table, where: Any, *without: str) -> list[dict[str, Any]]:
    columns = [column for column in table.columns if column.name not in without]
    order = [*table.primary_key.columns]
    found = source.execute(select(*columns).where(where).order_by(*order))
    return [dict(row._mapping) for row in found]


def _insert(target: Connection, table: Table, rows: Iterable[dict[str, Any]]) -> None:
    if rows := [*rows]:
        target.execute(insert(table), rows)


def _new_key(target: Connection, table: Table, row: dict[str, Any]) -> int:
    key = target.execute(insert(table), row).inserted_primary_key
    assert key is not None  # noqa: S101 - a plain insert of one row always has one
    return int(key[0])
