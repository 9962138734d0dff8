"""Where results go: the store first, then every sink. A failing one is counted, never raised."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from phasewatch.monitor.alerts.launcher import AlertProcess
from phasewatch.monitor.alerts.queued import QueuedCalls
from phasewatch.monitor.core.columns import Column, observations_of
from phasewatch.monitor.core.contracts import Sink
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.stray import let_through
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.isolation.threads import unfelt
from phasewatch.monitor.prometheus.sink import PrometheusSink
from phasewatch.monitor.run.watchdog import Watchdog
from phasewatch.monitor.store.store import Store

log = logging.getLogger("phasewatch")

_Item = Mapping[str, Column] | Observation | Transition
"""What a sink may be shown."""


class Sinks:
    """The store and the sinks of one fit.

    Args:
        store: The run history.
        sinks: Further places; each may raise.
        own_sinks: Those of the user's code, which only the training thread may run: what is for
            them waits for `deliver`.
        health: Where their failures are counted.
        run_id: Identity of the run.
        attempt: Which fit of the run.
        alerts: Tells people of transitions.
        watchdog: Told which sink training waits for.
    """

    def __init__(
        self,
        store: Store,
        sinks: Sequence[Sink],
        health: Health,
        run_id: str,
        attempt: int,
        alerts: AlertProcess | None = None,
        own_sinks: Sequence[Sink] = (),
        *,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.store = store
        self._sinks = tuple(sinks)
        self._own_sinks = tuple(own_sinks)
        self._waiting: deque[_Item] = deque()
        self._health = health
        self._run_id = run_id
        self._attempt = attempt
        self._alerts = alerts
        self._told: set[str] = set()
        self._watchdog = watchdog or Watchdog()
        self._calls = {
            id(sink): QueuedCalls(sink, partial(self._failed, type(sink).__name__))
            for sink in (*self._sinks, *self._own_sinks)
        }
        if alerts is not None:
            self._guard("alerts", lambda: alerts.resume(store.outbox))

    @property
    def metrics_url(self) -> str | None:
        """Where the metrics are served, if they are."""
        return next((s.url for s in self._sinks if isinstance(s, PrometheusSink)), None)

    def emit(self, observation: Observation) -> None:
        """Store one observation and pass it on."""
        self.store.add_observation(self._run_id, self._attempt, observation)
        for sink in self._sinks:
            if _takes(sink, observation):
                self._call(sink, partial(_emit, observation))
        self._wait(observation)

    def emit_columns(self, columns: Mapping[str, Column]) -> None:
        """Store many exact scalars and pass them on; a sink that shows the latest gets only it."""
        for name, column in columns.items():
            self.keep_column(name, column)
        for sink in self._sinks:
            if _takes(sink, columns):
                self._emit_columns(sink, columns)
        self._wait(columns)

    def keep_column(self, name: str, column: Column) -> None:
        """Store exact scalars of one stream; waits while the store has no room for them."""
        self.store.wait_for_room(len(column.steps))
        self.store.add_scalars(self._run_id, self._attempt, name, column)

    def notify(self, transition: Transition) -> None:
        """Store a transition that changed, with the messages it calls for, and pass it on."""
        transition = self._own(transition)
        alerts = self._alerts
        recipients = alerts.recipients(transition) if alerts is not None else ()
        self.store.add_transition(transition, recipients, attempt=self._attempt)
        if alerts is not None and recipients:
            self._guard("alerts", lambda: alerts.expect(transition))
        for sink in self._sinks:
            self._call(sink, partial(_notify, transition))
        self._wait(transition)

    def _wait(self, item: _Item) -> None:
        """Keep for `deliver` what a sink of the user's takes: each delivery costs training time."""
        if any(_takes(sink, item) for sink in self._own_sinks):
            self._waiting.append(item)

    def deliver(self) -> None:
        """Call the user's sinks with what waits for them. For the training thread alone."""
        if not self._waiting:
            return
        with unfelt():
            while self._waiting:
                self._deliver(self._waiting.popleft())

    def _deliver(self, item: _Item) -> None:
        for sink in self._own_sinks:
            if not _takes(sink, item):
                continue
            if isinstance(item, Observation):
                self._call(sink, partial(_emit, item))
            elif isinstance(item, Transition):
                self._call(sink, partial(_notify, item))
            else:
                self._emit_columns(sink, item)

    def _emit_columns(self, sink: Sink, columns: Mapping[str, Column]) -> None:
        latest_only = getattr(sink, "latest_only", False)
        for name, column in columns.items():
            for observation in observations_of(name, column, latest_only=latest_only):
                self._call(sink, partial(_emit, observation))

    def keep(self, transition: Transition) -> None:
        """Store a transition that changed in a way that is no news for anybody."""
        self.store.add_transition(self._own(transition), attempt=self._attempt)

    def _own(self, transition: Transition) -> Transition:
        """A branch tells of a transition that began before it as of its own run."""
        return replace(transition, run=self._run_id)

    def flush(self) -> None:
        """Ask every sink to send out what it holds back."""
        self.deliver()
        with unfelt():
            for sink in (*self._sinks, *self._own_sinks):
                self._call(sink, lambda s: s.flush())

    def refresh(self) -> None:
        """Hear how the sending of alerts goes."""
        if self._alerts is not None:
            self._guard("alerts", self._alerts.refresh)

    def close(self) -> None:
        """Send the last alerts, then close every sink. The store outlives them."""
        self.deliver()
        if self._alerts is not None:
            self._guard("alerts", self._alerts.close)
        for sink in (*self._sinks, *self._own_sinks):
            with unfelt():
                self._call(sink, lambda s: s.close())
            with self._watchdog.over(f"sink {type(sink).__name__}, at the end"):
                self._calls[id(sink)].close()
        self._watchdog.close()

    def _call(self, sink: Sink, call: Callable[[Sink], None]) -> None:
        name = type(sink).__name__
        self._guard(name, lambda: self._watched(name, sink, call))

    def _watched(self, name: str, sink: Sink, call: Callable[[Sink], None]) -> None:
        with self._watchdog.over(f"sink {name}"):
            self._calls[id(sink)].call(call)

    def _guard(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            let_through(error)
            self._failed(name, error)

    def _failed(self, name: str, error: BaseException) -> None:
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


def _takes(sink: Sink, item: _Item) -> bool:
    """Whether a sink is shown this: one that takes no scalars sees what carries a detail alone."""
    if isinstance(item, Transition) or getattr(sink, "takes_scalars", True):
        return True
    return isinstance(item, Observation) and item.detail is not None


def _emit(observation: Observation, sink: Sink) -> None:
    sink.emit(observation)


def _notify(transition: Transition, sink: Sink) -> None:
    sink.notify(transition)
