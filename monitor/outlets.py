"""Where results go: the store first, then every sink. A failing one is counted, never raised."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from phasewatch.monitor.health import Health
from phasewatch.monitor.store import Store
from phasewatch.monitor.types import Observation, Sink, Transition

log = logging.getLogger("phasewatch")


class Outlets:
    """The store and the sinks of one fit.

    Args:
        store: The run history.
        sinks: Further places; each may raise.
        health: Where their failures are counted.
        run_id: Identity of the run.
        attempt: Which fit of the run.
    """

    def __init__(
        self, store: Store, sinks: Sequence[Sink], health: Health, run_id: str, attempt: int
    ) -> None:
        self.store = store
        self._sinks = tuple(sinks)
        self._health = health
        self._run_id = run_id
        self._attempt = attempt
        self._told: set[str] = set()

    def emit(self, observation: Observation) -> None:
        """Store one observation and pass it on."""
        self.store.add_observation(self._run_id, self._attempt, observation)
        for sink in self._sinks:
            self._call(sink, lambda s: s.emit(observation))

    def notify(self, transition: Transition) -> None:
        """Store a transition that changed and pass it on."""
        self.store.add_transition(transition)
        for sink in self._sinks:
            self._call(sink, lambda s: s.notify(transition))

    def flush(self) -> None:
        """Ask every sink to send out what it holds back."""
        for sink in self._sinks:
            self._call(sink, lambda s: s.flush())

    def close(self) -> None:
        """Close every sink. The store outlives them: its last rows say how the run ended."""
        for sink in self._sinks:
            self._call(sink, lambda s: s.close())

    def _call(self, sink: Sink, call: Callable[[Sink], None]) -> None:
        try:
            call(sink)
        except Exception as error:
            name = type(sink).__name__
            self._health.sink_failures[name] += 1
            if name not in self._told:
                self._told.add(name)
                log.warning(
                    "sink %s failed: %s: %s; training goes on, further failures are counted in "
                    "phasewatch_sink_failures_total",
                    name,
                    type(error).__name__,
                    error,
                )
