"""Taking a run out of a store, with everything that was observed of it."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.store import schema
from phasewatch.monitor.store.reader import RunInfo
from phasewatch.monitor.store.store import Store


def check_removable(store: Store, info: RunInfo) -> None:
    """Refuse a run that is being written, or whose history another run goes on with.

    Args:
        store: The run history.
        info: The run.

    Raises:
        StoreError: It must stay; says why and what to do.
    """
    if info.state is RunState.RUNNING:
        raise StoreError(
            f"run {info.name!r} is running (process {info.pid} on {info.host}); end it first"
        )
    branches = [run for run in store.runs() if run.branch_of == info.id]
    if branches:
        listed = ", ".join(f"{run.name} ({run.id[:8]})" for run in branches)
        raise StoreError(
            f"run {info.name!r} holds the beginning of its branches: {listed}; remove those first"
        )


def remove_run(store: Store, info: RunInfo) -> int:
    """Remove a run, in one transaction.

    Args:
        store: The run history.
        info: The run.

    Returns:
        How many observations are gone.

    Raises:
        StoreError: It must stay, or the store cannot be written.
    """
    check_removable(store, info)
    observations = schema.observations
    own = select(schema.streams.c.id).where(schema.streams.c.run_id == info.id)
    seen = select(observations.c.id).where(observations.c.stream_id.in_(own))
    try:
        with store.database.writing() as connection:
            connection.execute(
                delete(schema.estimates).where(schema.estimates.c.observation_id.in_(seen))
            )
            count = connection.execute(
                delete(observations).where(observations.c.stream_id.in_(own))
            ).rowcount
            for table in (
                schema.streams,
                schema.outbox,
                schema.transitions,
                schema.holes,
                schema.attempts,
            ):
                connection.execute(delete(table).where(table.c.run_id == info.id))
    except SQLAlchemyError as error:
        raise StoreError(
            f"run {info.name!r} cannot be removed from store {store.where}: "
            f"{schema.reason_of(error)}"
        ) from error
    return int(count)
