"""The history: tables, writer, reader, outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phasewatch.monitor.store.store import Store

__all__ = ["Store"]


def __getattr__(name: str) -> Any:
    if name == "Store":  # lazy: its own modules are imported through here
        from phasewatch.monitor.store.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
