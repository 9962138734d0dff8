"""Which phasewatch this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def phasewatch_version() -> str:
    """Version of the installed package; "unknown" where it runs without being installed."""
    try:
        return version("phasewatch")
    except PackageNotFoundError:
        return "unknown"
