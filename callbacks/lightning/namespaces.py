"""One callback for two namespaces.

`lightning.pytorch` and `pytorch_lightning` hold unrelated classes of one name. A callback that
inherits both is accepted everywhere: in a list, alone, and by either command line interface.
"""

from __future__ import annotations

import importlib
from typing import Any

from phasewatch.callbacks.lightning.hooks import MonitorHooks

NAMESPACES = ("lightning.pytorch", "pytorch_lightning")


def build_monitor_class() -> type[Any]:
    """`TransitionMonitor`, a callback in every namespace that is installed.

    Raises:
        ImportError: None is installed.
    """
    bases = []
    missing = []
    for namespace in NAMESPACES:
        try:
            bases.append(importlib.import_module(namespace).Callback)
        except ImportError as error:
            missing.append(f"{namespace}: {error}")
    if not bases:
        raise ImportError(
            "TransitionMonitor needs Lightning: pip install lightning. phasewatch.monitor.Watch "
            f"works in any training loop. ({'; '.join(missing)})"
        )
    attributes = {
        "__module__": "phasewatch.callbacks",
        "__qualname__": "TransitionMonitor",
        "__doc__": MonitorHooks.__doc__,
    }
    return type("TransitionMonitor", (MonitorHooks, *bases), attributes)
