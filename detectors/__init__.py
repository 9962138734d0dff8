"""Change-point detection on streams of numbers. Knows nothing of training.

Example:
    >>> from phasewatch import detectors
    >>> detector = detectors.create("slope_shift", gate=0.2)
    >>> detector.update(step=1, value=2.3) is None
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from phasewatch.detectors.base import BaseDetector, Detector, StateError
from phasewatch.detectors.registry import (
    StreamKind,
    UnknownDetectorError,
    create,
    default,
    default_name,
    names,
    register,
)
from phasewatch.detectors.types import Alarm, AlarmKind, Direction

if TYPE_CHECKING:
    from phasewatch.detectors.online.abrupt_change import AbruptChange
    from phasewatch.detectors.online.bocpd import Bocpd
    from phasewatch.detectors.online.cusum import Cusum
    from phasewatch.detectors.online.early_warning import Precursor
    from phasewatch.detectors.online.focus import Focus
    from phasewatch.detectors.online.level_shift import LevelShift
    from phasewatch.detectors.online.local_change import LocalChange
    from phasewatch.detectors.online.page_hinkley import PageHinkley
    from phasewatch.detectors.online.ruptures_window import RupturesWindow
    from phasewatch.detectors.online.slope_shift import SlopeShift

_LAZY = {
    "AbruptChange": "online.abrupt_change",
    "Bocpd": "online.bocpd",
    "Cusum": "online.cusum",
    "Focus": "online.focus",
    "LevelShift": "online.level_shift",
    "LocalChange": "online.local_change",
    "PageHinkley": "online.page_hinkley",
    "Precursor": "online.early_warning",
    "RupturesWindow": "online.ruptures_window",
    "SlopeShift": "online.slope_shift",
}

__all__ = [
    "AbruptChange",
    "Alarm",
    "AlarmKind",
    "BaseDetector",
    "Bocpd",
    "Cusum",
    "Detector",
    "Direction",
    "Focus",
    "LevelShift",
    "LocalChange",
    "PageHinkley",
    "Precursor",
    "RupturesWindow",
    "SlopeShift",
    "StateError",
    "StreamKind",
    "UnknownDetectorError",
    "create",
    "default",
    "default_name",
    "names",
    "register",
]


def __getattr__(name: str) -> Any:
    # scipy and ruptures take their time to import, and the command line has no need of them.
    if name in _LAZY:
        return getattr(import_module(f"phasewatch.detectors.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
