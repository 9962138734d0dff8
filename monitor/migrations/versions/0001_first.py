"""The first released schema: what a new store of that time got from `create_all`."""

from __future__ import annotations

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Do nothing: every store had these tables."""
