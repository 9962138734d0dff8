"""Adapters to training frameworks: hooks in, `Watch` calls out.

`TransitionMonitor` is built at first use: importing this package does not import Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from phasewatch.callbacks.lightning.hooks import MonitorHooks

    class TransitionMonitor(MonitorHooks, Callback):  # noqa: D101  (documented on MonitorHooks)
        pass


__all__ = ["TransitionMonitor"]


def __getattr__(name: str) -> Any:
    if name == "TransitionMonitor":
        from phasewatch.callbacks.lightning.namespaces import build_monitor_class

        globals()[name] = built = build_monitor_class()
        return built
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
