"""Migrations of the run history between released schemas, by Alembic.

Revision `0002` leads from schema version 1 to 2, and so on. The version a store has stands in its
table `phasewatch_schema`; Alembic's own table is kept beside it, for who looks with its tools.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import String, column, delete, inspect, table
from sqlalchemy.engine import Connection

VERSION_TABLE = "phasewatch_alembic"


def upgrade(connection: Connection, version: int) -> None:
    """Bring a store from `version` to the newest schema, within the caller's transaction.

    Args:
        connection: In a transaction that may write.
        version: Schema version of the store.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    if inspect(connection).has_table(VERSION_TABLE):
        # What `phasewatch_schema` says counts: it is written by every version of phasewatch.
        connection.execute(delete(table(VERSION_TABLE, column("version_num", String))))
    command.stamp(config, f"{version:04d}")
    command.upgrade(config, "head")
