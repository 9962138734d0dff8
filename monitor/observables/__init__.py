"""The observables: a registry of those by name, and users' own through an entry point.

A package adds an observable with the entry-point group `phasewatch.observables`; the entry point
names a class or function without required arguments that returns an `Observable`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points

from phasewatch.monitor.config import MonitorConfig
from phasewatch.monitor.errors import ConfigError, UnknownNameError
from phasewatch.monitor.types import Observable

__all__ = ["create", "names", "register"]

ENTRY_POINT_GROUP = "phasewatch.observables"

Factory = Callable[[MonitorConfig], Observable]


def _builtin(module: str, attribute: str) -> Factory:
    # Imported when made: the command line lists names without waiting for torch.
    def make(config: MonitorConfig) -> Observable:
        found = getattr(import_module(f"phasewatch.monitor.observables.{module}"), attribute)
        made: Observable = found(config.sampler) if attribute == "LLC" else found()
        return made

    return make


_factories: dict[str, Factory] = {
    "gradient_norm": _builtin("norms", "GradientNorm"),
    "weight_norm": _builtin("norms", "WeightNorm"),
    "update_ratio": _builtin("norms", "UpdateRatio"),
    "llc": _builtin("llc", "LLC"),
}


def register(name: str, factory: Factory) -> None:
    """Make an observable known by name.

    Args:
        name: Its name in configurations.
        factory: Called with the run's configuration; returns the observable.

    Raises:
        ConfigError: The name is taken.
    """
    if name in _factories:
        raise ConfigError(f"observable {name!r} exists already; register yours under another name")
    _factories[name] = factory


def names() -> list[str]:
    """Every name `create` knows."""
    return sorted({*_factories, *entry_points(group=ENTRY_POINT_GROUP).names})


def create(name: str, config: MonitorConfig) -> Observable:
    """Make the observable of that name.

    Raises:
        UnknownNameError: Nobody registered the name.
    """
    if name in _factories:
        return _factories[name](config)
    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        made: Observable = entry_point.load()()
        return made
    raise UnknownNameError(
        "observable",
        name,
        names(),
        f"pass your own as an object, or install one under the entry point {ENTRY_POINT_GROUP!r}",
    )
