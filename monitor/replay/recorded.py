"""Detection over numbers that exist already: files of curves, and stored runs.

Both take the road of a live run: the same streams, detectors and fusing, in the same order. Without
an override, a stored run gives the transitions that it gave when it was live.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from phasewatch import detectors
from phasewatch.detectors.base import Detector
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.config.streams import DetectorConfig
from phasewatch.monitor.core.columns import Chunk, chunked
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.meaning import StreamMeaning
from phasewatch.monitor.core.transitions import Transition, TransitionStatus
from phasewatch.monitor.store.store import RunInfo, Store
from phasewatch.monitor.transitions.classification import seen_by
from phasewatch.monitor.transitions.hindsight import Arrays, History, review, stored_history
from phasewatch.monitor.transitions.pipeline import Detection
from phasewatch.monitor.transitions.streams import Stream, create_detector, name_of, parameters_of
from phasewatch.monitor.transitions.thinning import thinned

DETECTION_SETTINGS = ("detectors", "precursors", "streams", "better", "false_alarms_per_run")
"""Fields of a stored configuration that matter to detection."""

COMPARED = ("kind", "onset_step", "detected_step", "end_step", "severity")
"""Fields in which equal transitions agree, beside the status that was streamed."""


class DetectorOverride:
    """Other detectors than those that streams would have: "what if …".

    Args:
        detector: Name of a detector for every chosen stream; "none" watches none of them. None
            leaves each its own.
        parameters: Its parameters; without `detector`, parameters of the detectors that streams
            have, for those that know them.
        streams: The chosen streams. Empty chooses all that are watched.

    Raises:
        UnknownNameError: There is no such detector.
        ConfigError: The detector refuses a parameter, or no detector has one of that name.
    """

    def __init__(
        self,
        detector: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        streams: Collection[str] = (),
    ) -> None:
        self._parameters = dict(parameters or {})
        self._streams = frozenset(streams)
        self._unused = set() if detector else set(self._parameters)
        self._settings: DetectorConfig | None = None
        if detector:
            self._settings = DetectorConfig(name=detector, parameters=self._parameters)
            create_detector(self._settings)

    def __bool__(self) -> bool:
        return self._settings is not None or bool(self._parameters)

    def __str__(self) -> str:
        parts = [self._settings.name] if self._settings else []
        parts += [f"{key} = {value}" for key, value in self._parameters.items()]
        where = f" on {', '.join(sorted(self._streams))}" if self._streams else ""
        return ", ".join(parts) + where

    def replaces(self, name: str) -> bool:
        """Whether stream `name` gets another detector, whatever it had."""
        return self._settings is not None and (not self._streams or name in self._streams)

    def __call__(self, name: str, detector: Detector | None) -> Detector | None:
        """The detector of stream `name`, which would have `detector`.

        Raises:
            ConfigError: The detector refuses a parameter.
        """
        if self._streams and name not in self._streams:
            return detector
        if self._settings is not None:
            wanted = detector is not None or name in self._streams
            return create_detector(self._settings) if wanted else None
        if detector is None:
            return None
        known = parameters_of(detector)
        changes = {key: value for key, value in self._parameters.items() if key in known}
        if not changes:
            return detector
        self._unused -= changes.keys()
        return create_detector(
            DetectorConfig(name=name_of(detector), parameters={**known, **changes})
        )

    def check_used(self, watched: Iterable[Watched]) -> None:
        """Refuse parameters that no stream's detector has.

        Raises:
            ConfigError: Names the parameter, and those there are.
        """
        if not self._unused:
            return
        known = {w.detector: ", ".join(w.parameters) for w in watched if w.parameters}
        listed = "; ".join(f"{name}: {keys}" for name, keys in sorted(known.items())) or "none"
        raise ConfigError(
            f"no detector here has a parameter {sorted(self._unused)[0]!r}; those of the streams' "
            f"detectors are {listed}"
        )


@dataclass(frozen=True, slots=True)
class Watched:
    """How one stream was watched.

    Attributes:
        name: Name of the stream.
        detector: Name of its detector; "none" without one.
        parameters: Parameters of the detector.
        skipped: Points that the detector did not use.
        too_few: The points it needs, where it has seen fewer: its silence says nothing then.
        meaning: What the stream was taken for.
        undefined: Whether it never had a finite value: its silence says nothing then either.
    """

    name: str
    detector: str
    parameters: Mapping[str, Any]
    skipped: int
    too_few: int | None = None
    meaning: StreamMeaning = field(default_factory=StreamMeaning)
    undefined: bool = False

    @classmethod
    def of(cls, stream: Stream) -> Watched:
        """How a stream was watched up to now."""
        if stream.detector is None:
            return cls(stream.name, "none", {}, 0, meaning=stream.meaning)
        ready = getattr(stream.detector, "ready", True)
        return cls(
            stream.name,
            name_of(stream.detector),
            parameters_of(stream.detector),
            stream.detector.num_skipped,
            None if ready else getattr(stream.detector, "min_points", None),
            stream.meaning,
            bool(getattr(stream.detector, "undefined", False)),
        )

    def __str__(self) -> str:
        if self.undefined:
            return f"{self.detector}: undefined, it was never a finite number"
        needs = f": too few points, it needs {self.too_few}"
        return self.detector + ("" if self.too_few is None else needs)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What detection found.

    Attributes:
        transitions: By onset, each as it stands in the end.
        watched: The streams.
    """

    transitions: tuple[Transition, ...]
    watched: tuple[Watched, ...]


class Kept:
    """Passes chunks on, and keeps the values of each stream.

    Args:
        chunks: Read once.
    """

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = chunks
        self._columns: dict[str, tuple[array[int], array[float], array[float]]] = {}

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._chunks:
            if isinstance(chunk, Observation):
                if chunk.status is EstimateStatus.OK:
                    stderr = math.nan if chunk.stderr is None else chunk.stderr
                    self._add(chunk.name, [chunk.step], [chunk.value], [stderr])
            else:
                for name, column in chunk.items():
                    exact = [math.nan] * len(column.steps)
                    self._add(name, column.steps, column.values, exact)
            yield chunk

    def _add(self, name: str, steps: list[int], values: list[float], stderrs: list[float]) -> None:
        kept = self._columns.setdefault(name, (array("q"), array("d"), array("d")))
        kept[0].extend(steps)
        kept[1].extend(values)
        kept[2].extend(stderrs)

    def history(self, name: str) -> Arrays:
        """Steps, values and standard errors of one stream; empty if it never came."""
        steps, values, stderrs = self._columns.get(name, (array("q"), array("d"), array("d")))
        return (
            np.array(steps, dtype=np.int64),
            np.array(values, dtype=np.float64),
            np.array(stderrs, dtype=np.float64),
        )


def detect(
    chunks: Iterable[Chunk],
    *,
    run: str,
    attempt: int = 1,
    config: MonitorConfig | None = None,
    change: DetectorOverride | None = None,
    history: History | None = None,
    horizon: tuple[int, float] | None = None,
    is_over: bool = True,
) -> Outcome:
    """Detect and fuse as a live run does, and look back at the end.

    Args:
        chunks: Values in the order in which they came.
        run: Identity of the run, from which transitions get their ids.
        attempt: Which fit of the run.
        config: The run's configuration.
        change: Other detectors than the configured ones.
        history: Where the full history is to be had; None keeps it, 24 bytes a value.
        horizon: Steps at which the run begins and was expected to end; None where nobody knew.
        is_over: Whether no more is to come. Otherwise what is not settled stays so, and nobody
            looks back.

    Raises:
        ConfigError: A detector's name or parameters are wrong.
    """
    change = change or DetectorOverride()
    if history is None:
        chunks = kept = Kept(chunks)
        history = kept.history
    detection = Detection(config or MonitorConfig(), None, run, Health(), change)
    if horizon is not None:
        detection.expect(*horizon)
    detection.start(run, attempt)
    for chunk in thinned(chunks, detection.meanings):
        detection.take_chunk(chunk)
    if is_over:
        detection.finish()
    watched = [Watched.of(stream) for stream in detection.streams]
    change.check_used(watched)
    said = {transition.id: transition for transition in detection.transitions}
    if is_over:
        reviewed = review(
            said.values(), detection.streams, history, run=run, attempt=attempt, seconds=math.inf
        )
        said.update((transition.id, transition) for transition in reviewed)
    found = sorted(said.values(), key=lambda t: (t.onset_step, t.detected_step))
    return Outcome(tuple(found), tuple(watched))


def replay(
    store: Store, run: RunInfo, change: DetectorOverride | None = None, *, is_over: bool = True
) -> Outcome:
    """Detect over the stored history of a run.

    Args:
        store: The run history.
        run: The run.
        change: Other detectors than those it had.
        is_over: Whether no more is to come.

    Raises:
        ConfigError: A detector of the run cannot be made again, or `change` does not fit.
        StoreError: The history cannot be read.
    """
    change = change or DetectorOverride()
    kept = {key: value for key, value in (run.config or {}).items() if key in DETECTION_SETTINGS}
    own = kept.get("detectors") or {}
    kept["detectors"] = {name: own[name] for name in own if not change.replaces(name)}
    config = MonitorConfig.load(kept)
    for name, settings in config.detectors.items():
        if settings.name not in (*detectors.names(), "none"):
            raise ConfigError(
                f"run {run.name!r} watched {name!r} by a detector of its own, {settings.name!r}, "
                f"which is not known here; choose another with --stream {name} --detector"
            )
    outcome = detect(
        chunked(store.in_order(run.id)),
        run=run.id,
        attempt=run.attempt,
        config=config,
        change=change,
        history=stored_history(store, run.id),
        horizon=(run.config or {}).get("horizon"),
        is_over=is_over,
    )
    # The weights are not stored: where it happened is known of what the live run saw as well.
    known = {(t.id, t.onset_step, t.end_step): t.where for t in store.transitions(run.id)}
    located = (
        replace(t, where=known.get((t.id, t.onset_step, t.end_step), ()))
        for t in outcome.transitions
    )
    return replace(outcome, transitions=tuple(located))


# ---- beside what was stored


class Verdict(StrEnum):
    """A replayed transition beside the stored one; by what was streamed, not by hindsight."""

    SAME = "same"
    MOVED = "moved"
    GONE = "gone"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class Pair:
    """A stored and a replayed transition that are one; one of them is None where it stands alone.

    Attributes:
        stored: What the live run said.
        found: What the replay says.
    """

    stored: Transition | None
    found: Transition | None

    @property
    def onset_step(self) -> int:
        """The earlier onset of the two."""
        return min(t.onset_step for t in (self.stored, self.found) if t is not None)

    @property
    def cells(self) -> dict[str, str]:
        """What a table says; "old→new" where they differ."""
        sides = [_cells(t) for t in (self.stored, self.found) if t is not None]
        both = [dict.fromkeys(values) for values in zip(*(s.values() for s in sides), strict=True)]
        texts = ("→".join(values) for values in both)
        return {"verdict": str(self.verdict), **dict(zip(sides[0], texts, strict=True))}

    @property
    def verdict(self) -> Verdict:
        """How they compare."""
        said = self.stored is not None and _streamed(self.stored) is not None
        says = self.found is not None and _streamed(self.found) is not None
        if self.stored is None or (says and not said):
            return Verdict.NEW
        if self.found is None or (said and not says):
            return Verdict.GONE
        return Verdict.SAME if equal(self.stored, self.found) else Verdict.MOVED


def _cells(transition: Transition) -> dict[str, str]:
    return {
        "kind": transition.kind.value,
        "status": str(_streamed(transition) or "–"),
        "onset": str(transition.onset_step),
        "detected": str(transition.detected_step),
        "end": "–" if transition.end_step is None else str(transition.end_step),
        "severity": f"{transition.severity:.3g}",
        "evidence": seen_by(transition),
        "hindsight": "–" if transition.hindsight is None else str(transition.hindsight),
    }


def _streamed(transition: Transition) -> TransitionStatus | None:
    return transition.hindsight.streamed if transition.hindsight else transition.status


def equal(one: Transition, other: Transition) -> bool:
    """Whether two transitions agree in kind, streamed status, steps and severity."""
    return _streamed(one) is _streamed(other) and all(
        getattr(one, name) == getattr(other, name) for name in COMPARED
    )


def compare(stored: Sequence[Transition], found: Sequence[Transition]) -> list[Pair]:
    """Pair what was stored with what was found: equal ones first, then those that overlap."""
    left = list(found)
    pairs: list[Pair] = []
    unpaired: list[Transition] = []
    for old in stored:
        twin = next((new for new in left if equal(old, new)), None)
        if twin is None:
            unpaired.append(old)
        else:
            left.remove(twin)
            pairs.append(Pair(old, twin))
    for old in unpaired:
        near = [new for new in left if _overlap(old, new)]
        partner = min(near, key=lambda new: _distance(old, new), default=None)
        if partner is not None:
            left.remove(partner)
        pairs.append(Pair(old, partner))
    pairs += [Pair(None, new) for new in left]
    return sorted(pairs, key=lambda pair: pair.onset_step)


def _overlap(one: Transition, other: Transition) -> bool:
    return one.onset_step <= _end(other) and other.onset_step <= _end(one)


def _end(transition: Transition) -> int:
    return max(transition.detected_step, transition.end_step or 0)


def _distance(one: Transition, other: Transition) -> tuple[bool, int]:
    """Transitions of the same kind lie nearer to each other."""
    return one.kind is not other.kind, abs(one.detected_step - other.detected_step)
