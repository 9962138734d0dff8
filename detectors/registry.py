"""Detectors by name, and the default for each kind of stream.

A package adds one with the entry-point group `phasewatch.detectors`: the entry point names a class
or function that makes a detector from keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, get_args

from phasewatch.detectors.base import Detector

ENTRY_POINT_GROUP = "phasewatch.detectors"

StreamKind = Literal["loss", "measured", "scalar"]

_DEFAULTS: dict[StreamKind, str] = {
    "loss": "abrupt_change",
    "measured": "level_shift",
    "scalar": "abrupt_change",
}


def _shipped(module: str, attribute: str) -> Callable[..., Detector]:
    # Imported when made: who only reads a run's history need not wait for scipy and ruptures.
    def make(**parameters: Any) -> Detector:
        kind = getattr(import_module(f"phasewatch.detectors.{module}"), attribute)
        detector: Detector = kind(**parameters)
        return detector

    return make


_FACTORIES: dict[str, Callable[..., Detector]] = {
    name: _shipped(module, attribute)
    for name, module, attribute in (
        ("abrupt_change", "online.abrupt_change", "AbruptChange"),
        ("bocpd", "online.bocpd", "Bocpd"),
        ("cusum", "online.cusum", "Cusum"),
        ("focus", "online.focus", "Focus"),
        ("level_shift", "online.level_shift", "LevelShift"),
        ("local_change", "online.local_change", "LocalChange"),
        ("page_hinkley", "online.page_hinkley", "PageHinkley"),
        ("precursor", "online.early_warning", "Precursor"),
        ("ruptures_window", "online.ruptures_window", "RupturesWindow"),
        ("slope_shift", "online.slope_shift", "SlopeShift"),
    )
}


class UnknownDetectorError(ValueError):
    """No detector is registered under the name that was asked for.

    Attributes:
        known: The names there are.
    """

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(
            f"unknown detector {name!r}; known are {', '.join(known)}; register your own with "
            f"phasewatch.detectors.register, or install one under the entry point "
            f"{ENTRY_POINT_GROUP!r}"
        )
        self.known = known


def names() -> tuple[str, ...]:
    """Names of all detectors that come along, are registered or are installed, sorted."""
    return tuple(sorted({*_FACTORIES, *entry_points(group=ENTRY_POINT_GROUP).names}))


def create(name: str, **parameters: Any) -> Detector:
    """Make a detector.

    Args:
        name: One of `names()`.
        parameters: Keyword arguments of the detector.

    Raises:
        UnknownDetectorError: No detector of that name.
        TypeError: The detector has no parameter of that name.
        ValueError: A parameter is out of its range.

    Example:
        >>> create("slope_shift", gate=0.2).threshold
        1.0
    """
    return _factory(name)(**parameters)


def _factory(name: str) -> Callable[..., Detector]:
    if name in _FACTORIES:
        return _FACTORIES[name]
    installed: EntryPoint
    for installed in entry_points(group=ENTRY_POINT_GROUP, name=name):
        factory: Callable[..., Detector] = installed.load()
        return factory
    raise UnknownDetectorError(name, names())


def register(name: str, factory: Callable[..., Detector]) -> None:
    """Add a detector under a name of its own.

    Args:
        name: The name `create` will know it by.
        factory: Makes a fresh detector from keyword arguments; usually its class.

    Raises:
        ValueError: The name is empty, or taken by another factory.
        TypeError: The factory cannot be called.
    """
    if not name:
        raise ValueError("a detector's name is '', but must have at least one character")
    if not callable(factory):
        raise TypeError(f"the factory of detector {name!r} is {factory!r}, which is not callable")
    if _FACTORIES.get(name, factory) is not factory:
        raise ValueError(
            f"detector {name!r} is already registered as {_FACTORIES[name]!r}: choose another name"
        )
    _FACTORIES[name] = factory


def default_name(stream: StreamKind) -> str:
    """Name of the detector to use when nothing else is said.

    Raises:
        ValueError: No such kind of stream.
    """
    if stream not in _DEFAULTS:
        raise ValueError(
            f"stream is {stream!r}, but must be one of {', '.join(get_args(StreamKind))}"
        )
    return _DEFAULTS[stream]


def default(stream: StreamKind, **parameters: Any) -> Detector:
    """The detector to use when nothing else is said.

    Args:
        stream: "loss" for losses in nats (log10 is taken inside), "measured" for sparse values
            with a standard error such as λ̂, "scalar" for anything else.
        parameters: Keyword arguments of the detector.

    Raises:
        ValueError: No such kind of stream, or a parameter is out of its range.
    """
    return create(default_name(stream), **parameters)
