"""One seeding rule: what is random in a measurement is the same in every process."""

from __future__ import annotations

import zlib


def seed_from(*parts: object) -> int:
    """A seed for one purpose, from what names it.

    Args:
        *parts: The run's seed first; then what tells this purpose from others, such as the step.

    Example:
        >>> seed_from(0, 100, "llc") == seed_from(0, 100, "llc") != seed_from(0, 101, "llc")
        True
    """
    return zlib.crc32("/".join(map(str, parts)).encode())
