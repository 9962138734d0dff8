"""Change-point detection on streams of numbers. Knows nothing of training.

Example:
    >>> from phasewatch import detectors
    >>> detector = detectors.create("slope_shift", gate=0.2)
    >>> detector.update(step=1, value=2.3) is None
    True
"""

from phasewatch.detectors.base import BaseDetector, Detector, StateError
from phasewatch.detectors.level_shift import LevelShift
from phasewatch.detectors.registry import (
    StreamKind,
    UnknownDetectorError,
    create,
    default,
    names,
    register,
)
from phasewatch.detectors.ruptures_window import RupturesWindow
from phasewatch.detectors.slope_shift import SlopeShift
from phasewatch.detectors.types import Alarm, AlarmKind, Direction

__all__ = [
    "Alarm",
    "AlarmKind",
    "BaseDetector",
    "Detector",
    "Direction",
    "LevelShift",
    "RupturesWindow",
    "SlopeShift",
    "StateError",
    "StreamKind",
    "UnknownDetectorError",
    "create",
    "default",
    "names",
    "register",
]
