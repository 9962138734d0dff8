"""Watches a neural network while it trains and says when it changes in kind.

What most users need, imported when it is first used: `import phasewatch` alone takes next to no
time and imports no torch.

Example:
    >>> import phasewatch
    >>> quiet = {"val_loss": [2.3 + 0.01 * (i % 3) for i in range(200)]}
    >>> phasewatch.detect(quiet).transitions
    ()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phasewatch.callbacks import TransitionMonitor
    from phasewatch.monitor.config.measuring import SamplerConfig
    from phasewatch.monitor.config.monitor import MonitorConfig
    from phasewatch.monitor.core.context import MeasureContext
    from phasewatch.monitor.core.contracts import Observable, Sink
    from phasewatch.monitor.core.estimates import Estimate, Observation
    from phasewatch.monitor.core.transitions import Transition
    from phasewatch.monitor.replay.arrays import detect
    from phasewatch.monitor.reports.run_page import write_report
    from phasewatch.monitor.run.watch import Watch
    from phasewatch.monitor.sampling import estimate_llc
    from phasewatch.monitor.store.store import Store

    __version__: str

_PLACES = {
    "Estimate": "monitor.core.estimates",
    "MeasureContext": "monitor.core.context",
    "MonitorConfig": "monitor.config.monitor",
    "Observable": "monitor.core.contracts",
    "Observation": "monitor.core.estimates",
    "SamplerConfig": "monitor.config.measuring",
    "Sink": "monitor.core.contracts",
    "Store": "monitor.store.store",
    "Transition": "monitor.core.transitions",
    "TransitionMonitor": "callbacks",
    "Watch": "monitor.run.watch",
    "detect": "monitor.replay.arrays",
    "estimate_llc": "monitor.sampling",
    "write_report": "monitor.reports.run_page",
}

__all__ = [
    "Estimate",
    "MeasureContext",
    "MonitorConfig",
    "Observable",
    "Observation",
    "SamplerConfig",
    "Sink",
    "Store",
    "Transition",
    "TransitionMonitor",
    "Watch",
    "__version__",
    "detect",
    "estimate_llc",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from phasewatch.monitor.core.version import phasewatch_version

        return phasewatch_version()
    if name in _PLACES:
        return getattr(import_module(f"phasewatch.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
