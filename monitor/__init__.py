"""Everything that is not a framework adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phasewatch.monitor.config.monitor import MonitorConfig
    from phasewatch.monitor.run.watch import Watch

__all__ = ["MonitorConfig", "Watch"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line does not wait for torch.
    if name == "Watch":
        from phasewatch.monitor.run.watch import Watch

        return Watch
    if name == "MonitorConfig":
        from phasewatch.monitor.config.monitor import MonitorConfig

        return MonitorConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
