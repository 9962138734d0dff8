"""Tables of the run history, and the version they carry.

All names start with `phasewatch_`, so that a database may be shared with other programs. Rows of
observations and transitions are only ever added: which of them belong to a fit follows from its
`parent_attempt` and `resumed_step`, and is worked out when reading. Messages of the outbox are not
superseded: what was told stays told.

Between two versions stands a migration in `monitor/store/migrations`, which runs when a store is
opened.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    inspect,
    select,
)
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.core.redaction import redact

SCHEMA_VERSION = 2
"""Raised by one whenever a table changes; with a migration of the same number."""

# SQLite numbers rows by itself only in a column that is exactly INTEGER.
_Id = BigInteger().with_variant(Integer, "sqlite")
_Name = String(255)

metadata = MetaData()

schema_info = Table(
    "phasewatch_schema",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
)

attempts = Table(
    "phasewatch_attempts",
    metadata,
    Column("run_id", _Name, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("name", _Name, nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("resumed_step", BigInteger),
    # What was resumed: an attempt of the same run, or of the run that this one branched off.
    # Without either, the attempt before.
    Column("parent_run", _Name),
    Column("parent_attempt", Integer),
    Column("last_step", BigInteger),
    Column("heartbeat", Double, nullable=False),
    Column("config", Text),
    Column("host", Text, nullable=False),
    Column("machine", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("process_start", Text, nullable=False),
)

streams = Table(
    "phasewatch_streams",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("run_id", _Name, nullable=False),
    Column("name", _Name, nullable=False),
    Column("unit", _Name, nullable=False),
    UniqueConstraint("run_id", "name", "unit"),
)

observations = Table(
    "phasewatch_observations",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("stream_id", _Id, ForeignKey("phasewatch_streams.id"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("epoch", Integer),
    Column("value", Double),
    Column("stderr", Double),
    # Databases disagree on NaN and infinity (SQLite keeps NaN as NULL), so they are spelt out here.
    Column("nonfinite", SmallInteger),
    Column("timestamp", Double),
    Column("duration_seconds", Double),
    Column("status", String(16), nullable=False),
    Column("reason", Text),
    # The attempt is there so that counting reads nothing but the index.
    Index("phasewatch_observations_by_step", "stream_id", "step", "attempt"),
)

estimates = Table(
    "phasewatch_estimates",
    metadata,
    Column("observation_id", _Id, ForeignKey("phasewatch_observations.id"), primary_key=True),
    Column("body", Text, nullable=False),
    # float64, little-endian, row by row; the shape is in the body
    Column("chain_loss", LargeBinary, nullable=False),
)

transitions = Table(
    "phasewatch_transitions",
    metadata,
    Column("seq", _Id, primary_key=True),
    Column("id", String(64), nullable=False),
    Column("run_id", _Name, nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("recorded_step", BigInteger, nullable=False),
    Column("recorded_at", Double, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("status", String(16), nullable=False),
    Column("onset_step", BigInteger, nullable=False),
    Column("detected_step", BigInteger, nullable=False),
    Column("end_step", BigInteger),
    Column("body", Text, nullable=False),
)

outbox = Table(
    "phasewatch_outbox",
    metadata,
    Column("id", _Id, primary_key=True),
    # transition id / state / target: the same message is never entered twice
    Column("key", _Name, nullable=False, unique=True),
    Column("transition_seq", _Id, ForeignKey("phasewatch_transitions.seq"), nullable=False),
    Column("transition_id", String(64), nullable=False),
    Column("run_id", _Name, nullable=False),
    Column("state", String(16), nullable=False),
    # Names the target without its secrets
    Column("target", String(100), nullable=False),
    Column("delivery", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("sent_at", Double),
    Column("tries", Integer, nullable=False, default=0),
    Column("not_before", Double),
    Column("claimed_by", Text),
    Column("claimed_until", Double),
    Column("last_error", Text, nullable=False, default=""),
    Index("phasewatch_outbox_by_target", "target", "delivery", "id"),
    Index("phasewatch_outbox_by_transition", "transition_id", "target"),
    Index("phasewatch_outbox_by_run", "run_id", "delivery"),
)

holes = Table(
    "phasewatch_holes",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("run_id", _Name, nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("stream", _Name, nullable=False),
    # What is missing lies after the first and up to the last step.
    Column("first_step", BigInteger, nullable=False),
    Column("last_step", BigInteger, nullable=False),
    Column("num_rows", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("noted_at", Double, nullable=False),
)


def stored_version(connection: Connection) -> int | None:
    """Version of the schema in the database; None if it holds no phasewatch tables."""
    if not inspect(connection).has_table(schema_info.name):
        return None
    return connection.execute(select(func.max(schema_info.c.version))).scalar()


def prepare(connection: Connection, where: str) -> None:
    """Create what is missing, within the caller's transaction, and check the version.

    Raises:
        StoreError: The database was written by a newer phasewatch.
    """
    version = stored_version(connection)
    if version is not None:
        check_version(version, where)
        if version < SCHEMA_VERSION:
            migrate(connection, version)
            return
    metadata.create_all(connection)
    if version is None:
        connection.execute(schema_info.insert().values(version=SCHEMA_VERSION))


def migrate(connection: Connection, version: int) -> None:
    """Bring the tables of an older version up to date, within the caller's transaction."""
    from phasewatch.monitor.store.migrations import upgrade  # needed once in a store's life

    upgrade(connection, version)
    connection.execute(schema_info.update().values(version=SCHEMA_VERSION))


def check_version(version: int | None, where: str) -> None:
    """Refuse what this version of phasewatch does not understand.

    Raises:
        StoreError: Not a phasewatch store, or one of a newer schema.
    """
    if version is None:
        raise StoreError(
            f"{where} holds no phasewatch runs; give the file or URL a monitored run has written to"
        )
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"store {where} has schema version {version}, and this phasewatch knows versions up "
            f"to {SCHEMA_VERSION}; upgrade phasewatch, or name another store"
        )


def reason_of(error: BaseException) -> str:
    """What the driver said, without SQLAlchemy's statement and link."""
    if isinstance(error, SQLAlchemyError):
        original = getattr(error, "orig", None)
        return redact(str(original) if original is not None else str(error).splitlines()[0])
    return redact(str(error)) or type(error).__name__
