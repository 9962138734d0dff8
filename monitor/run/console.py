"""Being heard where nobody set up logging: a user must not wait without being told for what."""

from __future__ import annotations

import logging

log = logging.getLogger("phasewatch")


def ensure_heard() -> None:
    """Show what is logged on stderr, unless the program has handlers or a level of its own."""
    if logging.root.handlers or log.handlers or log.level != logging.NOTSET:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
