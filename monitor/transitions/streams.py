"""Streams: one series of numbers each, with its detector and its role in a transition."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from phasewatch import detectors
from phasewatch.detectors.base import Detector
from phasewatch.detectors.error_control.alpha_spending import Budgeted
from phasewatch.detectors.types import Alarm
from phasewatch.monitor.config.streams import DetectorConfig
from phasewatch.monitor.core.errors import ConfigError, UnknownNameError
from phasewatch.monitor.core.meaning import DetectorKind, Meanings, Panel, Role, StreamMeaning
from phasewatch.monitor.core.ownership import is_ours

log = logging.getLogger("phasewatch")

Override = Callable[[str, Detector | None], Detector | None]
"""From a stream's name, and the detector it would have, to the one it gets."""

SCORE_EFFECT = 0.05
"""Smallest change of a score that counts. An accuracy lies between 0 and 1 and stands near one end
for long, where any little thing is a large share of its range so far."""

SCALARS = {"certainty": 2.0, "falls": 1.0}
"""Of streams that are no losses. On repositories left out of the fit losses lose no hit by the
detector's own settings, rewards lose half of theirs."""

SHARES = 8
"""So many measured streams share half of a run's false alarms equally; as many again half of the
rest."""

MEASURED_POINTS = 200
"""Points of a measured stream such as λ̂: each costs too much for there to be many."""


def kind_of(meaning: StreamMeaning, stderr: float | None) -> DetectorKind:
    """Which default detector fits: by the standard error, else by what the stream means."""
    return "measured" if stderr is not None else meaning.detector


@dataclass(slots=True)
class Stream:
    """One series with its detector; `detector` is None where nothing is to be detected."""

    name: str
    detector: Detector | None
    role: Role
    meaning: StreamMeaning

    def update(self, step: int, value: float, stderr: float | None) -> Alarm | None:
        """Feed one good value.

        Args:
            step: Optimizer steps completed; increases from call to call.
            value: The value of the stream.
            stderr: Its standard error; None if it is exact or unknown.
        """
        return None if self.detector is None else self.detector.update(step, value, stderr)

    @property
    def active(self) -> bool:
        """Whether the detector is still inside an episode."""
        return self.detector is not None and self.detector.active

    @property
    def score(self) -> float:
        """Statistic over threshold; NaN without a detector."""
        if self.detector is None or not self.detector.threshold:
            return math.nan
        return self.detector.statistic / self.detector.threshold


class Streams:
    """All streams of a run, made when their first value arrives.

    Args:
        chosen: Detector by stream name, from the configuration.
        given: Detector objects by stream name, from the user's code.
        override: Which detector a stream gets in place of the one it would have.
        false_alarms: Expected false alarms of the run over all streams with a default detector.
        meanings: What the streams mean; None goes by their names.

    Attributes:
        horizon: Steps at which the run began and is expected to end; None where nobody knows.

    Raises:
        ConfigError: A detector's name or parameters are wrong.
    """

    def __init__(
        self,
        chosen: Mapping[str, DetectorConfig],
        given: Mapping[str, Detector | str] | None = None,
        override: Override | None = None,
        false_alarms: float = 0.1,
        meanings: Meanings | None = None,
    ) -> None:
        self._meanings = meanings or Meanings()
        self.horizon: tuple[int, float] | None = None
        self._false_alarms = false_alarms
        self._num_measured = 0
        self._override = override
        self._given: dict[str, Detector] = {}
        self._chosen = dict(chosen)
        for name, detector in (given or {}).items():
            if isinstance(detector, str):
                self._chosen[name] = DetectorConfig(name=detector)
            else:
                self._given[name] = detector
        for settings in self._chosen.values():
            create_detector(settings)  # a wrong name must fail before the first step
        self._streams: dict[str, Stream] = {}
        self._restored: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams.values())

    def get(self, name: str, stderr: float | None = None, *, measured: bool = False) -> Stream:
        """The stream of that name, made on first use.

        Args:
            name: Its name.
            stderr: Standard error of its first value, if that has one.
            measured: Whether an observable measures it; "total/part" is then a part, which is
                shown beside its total and not watched. A logged "train/loss" is no part.
        """
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = self._make(
                name, stderr, is_part=measured and "/" in name
            )
        return stream

    def _make(self, name: str, stderr: float | None, *, is_part: bool) -> Stream:
        detector: Detector | None
        meaning = self._meanings.of(name)
        role = Role.LEADING  # of who chose a detector for it
        if name in self._given:
            detector = self._given[name]
        elif name in self._chosen:
            detector = create_detector(self._chosen[name])
        elif is_part or meaning.role is Role.DIAGNOSTIC:
            detector = None
        else:
            detector = self._default(meaning, stderr)
            role = meaning.role
        if self._override is not None:
            detector = self._override(name, detector)
        if detector is not None and name in self._restored:
            self._restore(name, detector)
        return Stream(name, detector, role, meaning)

    def _default(self, meaning: StreamMeaning, stderr: float | None) -> Detector:
        """The default detector, as strict as the run's false alarms ask.

        A logged stream needs more certain alarms the longer it gets; nobody need know how long.
        """
        kind = kind_of(meaning, stderr)
        if kind != "measured":
            return detectors.default(
                kind,
                false_alarms=self._false_alarms,
                min_effect=SCORE_EFFECT if meaning.panel is Panel.FRACTIONS else 0.0,
                **({} if meaning.is_loss else SCALARS),
            )
        share = self._false_alarms * 0.5 ** (self._num_measured // SHARES + 1) / SHARES
        self._num_measured += 1
        return Budgeted(detectors.default_name(kind), share, MEASURED_POINTS)

    def _restore(self, name: str, detector: Detector) -> None:
        """Go on from a saved state; one of another detector is no reason to stop a run."""
        try:
            detector.load_state_dict(self._restored.pop(name))
        except (ValueError, KeyError, TypeError) as error:
            detector.reset()
            log.warning("the detector of %s starts afresh: %s", name, error)

    @property
    def is_ours(self) -> bool:
        """Whether no detector runs code of the user's."""
        made = (create_detector(settings) for settings in self._chosen.values())
        return all(map(is_ours, (*self._given.values(), *filter(None, made))))

    def settings(self) -> dict[str, Any]:
        """Detectors that were chosen or given, as a configuration would say them."""
        chosen = {name: settings.model_dump(mode="json") for name, settings in self._chosen.items()}
        given = {
            name: {"name": name_of(detector), "parameters": parameters_of(detector)}
            for name, detector in self._given.items()
        }
        return chosen | given

    def state_dict(self) -> dict[str, Any]:
        """State of every detector, by stream."""
        live = {s.name: s.detector.state_dict() for s in self if s.detector is not None}
        return self._restored | live

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over detectors' states; a stream picks up its own when it is made."""
        self._streams.clear()
        self._restored = dict(state)


def name_of(detector: Detector) -> str:
    """Its registered name, or that of its class."""
    return str(getattr(detector, "name", type(detector).__name__))


def parameters_of(detector: Detector) -> Mapping[str, Any]:
    """The arguments it was made with, if it tells them."""
    given = getattr(detector, "parameters", {})  # of a user's own detector it may be anything
    return dict(given) if isinstance(given, Mapping) else {}


def create_detector(settings: DetectorConfig) -> Detector | None:
    """Make a configured detector; "none" gives None.

    Raises:
        UnknownNameError: No detector of that name.
        ConfigError: The detector refuses its parameters.
    """
    if settings.name == "none":
        return None
    if settings.name not in detectors.names():
        raise UnknownNameError(
            "detector",
            settings.name,
            [*detectors.names(), "none"],
            "register your own with phasewatch.detectors.register",
        )
    try:
        return detectors.create(settings.name, **settings.parameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"detector {settings.name!r} refuses its parameters "
            f"{dict(settings.parameters)!r}: {error}"
        ) from error
