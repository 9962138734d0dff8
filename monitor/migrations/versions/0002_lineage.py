"""Attempts know what they resumed; holes of the history; indexes for counting and for a run's mail.

What a table held keeps its meaning: an attempt without a parent goes on from the one before.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_name = sa.String(255)


def upgrade() -> None:
    """From schema version 1 to 2."""
    op.add_column("phasewatch_attempts", sa.Column("parent_run", _name))
    op.add_column("phasewatch_attempts", sa.Column("parent_attempt", sa.Integer))
    op.drop_index("phasewatch_observations_by_step", "phasewatch_observations")
    op.create_index(
        "phasewatch_observations_by_step",
        "phasewatch_observations",
        ["stream_id", "step", "attempt"],
    )
    op.create_table(
        "phasewatch_holes",
        sa.Column("id", _id, primary_key=True),
        sa.Column("run_id", _name, nullable=False, index=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("stream", _name, nullable=False),
        sa.Column("first_step", sa.BigInteger, nullable=False),
        sa.Column("last_step", sa.BigInteger, nullable=False),
        sa.Column("num_rows", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("noted_at", sa.Double, nullable=False),
    )
    if not sa.inspect(op.get_bind()).has_table("phasewatch_outbox"):
        _create_outbox()  # a store of before there were alerts
    op.create_index("phasewatch_outbox_by_run", "phasewatch_outbox", ["run_id", "delivery"])


def _create_outbox() -> None:
    op.create_table(
        "phasewatch_outbox",
        sa.Column("id", _id, primary_key=True),
        sa.Column("key", _name, nullable=False, unique=True),
        sa.Column(
            "transition_seq", _id, sa.ForeignKey("phasewatch_transitions.seq"), nullable=False
        ),
        sa.Column("transition_id", sa.String(64), nullable=False),
        sa.Column("run_id", _name, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("target", sa.String(100), nullable=False),
        sa.Column("delivery", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("sent_at", sa.Double),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Double),
        sa.Column("claimed_by", sa.Text),
        sa.Column("claimed_until", sa.Double),
        sa.Column("last_error", sa.Text, nullable=False),
        sa.Index("phasewatch_outbox_by_target", "target", "delivery", "id"),
        sa.Index("phasewatch_outbox_by_transition", "transition_id", "target"),
    )
