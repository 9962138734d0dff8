"""What Alembic runs: the migrations, on the connection that the store has opened."""

from __future__ import annotations

from alembic import context

from phasewatch.monitor.migrations import VERSION_TABLE

__all__: list[str] = []


def _run() -> None:
    context.configure(
        connection=context.config.attributes["connection"],
        version_table=VERSION_TABLE,
        transaction_per_migration=False,
    )
    # The store's own transaction holds all of it: `begin_transaction` would commit it.
    context.run_migrations()


if hasattr(context, "config"):  # only while Alembic runs it
    _run()
