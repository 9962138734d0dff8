"""Sinks that other packages bring.

A package adds one with the entry-point group `phasewatch.sinks`: the entry point names a class or
function that returns a `Sink`. It is called with the `parameters` of its configuration, and with
the name of the run if it has a parameter `run_name`.
"""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points

from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.contracts import Sink
from phasewatch.monitor.core.errors import ConfigError, UnknownNameError
from phasewatch.monitor.core.health import Health

ENTRY_POINT_GROUP = "phasewatch.sinks"


def open_installed(config: MonitorConfig, run_name: str, health: Health) -> list[Sink]:
    """Make the sinks that the configuration names under `sinks`.

    Args:
        config: The configuration.
        run_name: Name of the run.
        health: Where their failures will be counted.

    Raises:
        UnknownNameError: No package brings a sink of that name.
        ConfigError: A sink cannot be made with the parameters it is given.
    """
    sinks = [_make(name, dict(config.sinks[name].parameters), run_name) for name in config.sinks]
    health.born((), [type(sink).__name__ for sink in sinks])
    return sinks


def _make(name: str, parameters: dict[str, object], run_name: str) -> Sink:
    factory = _found(name).load()
    if "run_name" in inspect.signature(factory).parameters:
        parameters.setdefault("run_name", run_name)
    try:
        sink: Sink = factory(**parameters)
    except Exception as error:
        raise ConfigError(
            f"sink {name!r} cannot be made: {type(error).__name__}: {error}; its arguments are "
            f"given under sinks.{name}.parameters"
        ) from error
    return sink


def _found(name: str) -> EntryPoint:
    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return entry_point
    raise UnknownNameError(
        "sink",
        name,
        sorted(entry_points(group=ENTRY_POINT_GROUP).names),
        f"pass your own as an object, or install one under the entry point {ENTRY_POINT_GROUP!r}",
    )
