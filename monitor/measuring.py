"""Runs the observables that are due, and keeps account of what fails and what cannot be done."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from phasewatch.detectors.types import Direction
from phasewatch.monitor import observables as registry
from phasewatch.monitor.config import MonitorConfig
from phasewatch.monitor.errors import ConfigError, RefusedError
from phasewatch.monitor.health import Health
from phasewatch.monitor.schedule import WANTED_MEASUREMENTS, Planner
from phasewatch.monitor.stray import let_through
from phasewatch.monitor.types import Cost, Estimate, MeasureContext, Observable, Observation
from phasewatch.monitor.watchdog import Watchdog

log = logging.getLogger("phasewatch")

LONG_SECONDS = 10.0
"""A first measurement that takes so long is told: training stood still meanwhile."""

MAX_BACKOFF = 6
"""After k failures in a row an observable sits out 2^k − 1 of its turns, k up to this."""


class Measuring:
    """The observables of one run.

    Args:
        config: The run's configuration; names its observables.
        health: Where successes, failures and refusals are counted.
        given: Names or objects from the user's code; they take the place of the configured ones.

    Raises:
        ConfigError: A name is unknown, given twice, or an object is no observable.
    """

    def __init__(
        self,
        config: MonitorConfig,
        health: Health,
        given: Iterable[str | Observable] | None = None,
    ) -> None:
        self._health = health
        self.watchdog = Watchdog()
        self._seed = config.seed
        self._observables: dict[str, Observable] = {}
        self._named: set[str] = set()
        self._offered: set[str] = set()
        wanted = list(config.observables if given is None else given)
        by_user = given is not None or "observables" in config.model_fields_set
        for item in sorted(wanted, key=lambda one: one == registry.ALL):  # a name goes before "all"
            if not isinstance(item, str):
                self._add(item)
                self._named.add(item.name)
                continue
            for name in registry.selected(item):
                if item == registry.ALL and name in self._observables:
                    continue
                self._add(registry.create(name, config))
                if item == registry.ALL:
                    self._offered.add(name)
                elif by_user:
                    self._named.add(name)
        self.planner = Planner(
            {
                name: settings.cadence or config.cadence
                if (settings := config.observables.get(name))
                else config.cadence
                for name in self._observables
            },
            config.budget,
            dear=(name for name, o in self._observables.items() if _is_dear(o)),
        )
        self._previous: dict[str, Estimate] = {}
        self._failures_in_row: dict[str, int] = {}
        self._told_few: set[str] = set()

    def _add(self, observable: Observable) -> None:
        if not isinstance(observable, Observable):
            raise ConfigError(
                f"observable {observable!r} lacks one of name, unit, measure(context); "
                "see phasewatch.monitor.types.Observable"
            )
        if observable.name in self._observables:
            raise ConfigError(f"observable {observable.name!r} is given twice; names must differ")
        better = getattr(observable, "better", None)
        if better is not None and better not in [*Direction]:
            raise ConfigError(
                f"observable {observable.name!r} says that {better!r} is better; it must say "
                '"up" or "down", or have no attribute `better`'
            )
        self._observables[observable.name] = observable

    @property
    def names(self) -> tuple[str, ...]:
        """Observables still measured, in order."""
        return tuple(self._observables)

    @property
    def better(self) -> dict[str, Direction]:
        """Which way is better, for the observables that say so."""
        stated = {name: getattr(o, "better", None) for name, o in self._observables.items()}
        return {name: Direction(way) for name, way in stated.items() if way is not None}

    def locate(self, onset: int, end: int) -> tuple[tuple[str, float], ...]:
        """Where in the model something moved between two steps, if an observable can tell."""
        for name, observable in self._observables.items():
            locate = getattr(observable, "locate", None)
            if locate is None:
                continue
            try:
                found: tuple[tuple[str, float], ...] = tuple(locate(onset, end))
            except Exception as error:
                self._fail(name, end, error)
            else:
                return found
        return ()

    def check(self, context: MeasureContext) -> None:
        """Ask each observable, before the first step, whether it can measure this model.

        Raises:
            ConfigError: One that the user named cannot. One that is on by default is skipped.
        """
        for name, observable in list(self._observables.items()):
            check = getattr(observable, "check", None)
            if check is None:
                continue
            try:
                check(context)
            except RefusedError as error:
                self.refuse(name, str(error))
            except BaseException as error:  # whatever it is: what is on by default kills no run
                let_through(error)
                self.refuse(name, f"{type(error).__name__}: {error}")

    def refuse(self, name: str, reason: str) -> None:
        """Measure `name` no more: it cannot be measured here.

        Raises:
            ConfigError: The user named it.
        """
        if name in self._named:
            raise ConfigError(
                f"observable {name!r} cannot be measured here: {reason}. "
                "Mend that, or leave it out of `observables`"
            )
        self.skip(name, reason)

    def skip(self, name: str, reason: str) -> None:
        """Measure `name` no more, count it and say so once."""
        if name not in self._observables:
            return
        del self._observables[name]
        self.planner.drop(name)
        self._health.skipped[name] += 1
        self._health.skip_reasons[name] = reason
        # Of "all" observables many never fit: no news worth a warning.
        level = logging.INFO if name in self._offered else logging.WARNING
        log.log(level, "%s is not measured: %s", name, reason)

    def measure(self, step: int, context: MeasureContext) -> list[Observation]:
        """Run what is due at `step`. An exception is counted and said, and training goes on."""
        results: list[Observation] = []
        for name in self.planner.due_names(step):
            begin = time.perf_counter()
            try:
                with self.watchdog.over(f"the measurement of {name} at step {step}"):
                    results += self._measure_one(name, context)
            except RefusedError as error:
                self.skip(name, str(error))
            except BaseException as error:
                let_through(error)
                self._fail(name, step, error)
            else:
                self._failures_in_row.pop(name, None)
                self._health.measured(name, time.perf_counter() - begin, step)
                self._tell_if_long(name, step)
            finally:
                seconds = time.perf_counter() - begin
                self.planner.charge(name, step, seconds)
            if failures := self._failures_in_row.get(name, 0):
                self.planner.postpone(name, step, 2 ** min(failures, MAX_BACKOFF) - 1)
        return results

    def _measure_one(self, name: str, context: MeasureContext) -> list[Observation]:
        context.generator.manual_seed(
            zlib.crc32(f"{self._seed}/{context.step}/{name}".encode()),
        )
        own = replace(
            context,
            deadline_seconds=min(context.deadline_seconds, self.planner.deadline(name)),
            previous=self._previous.get(name),
        )
        begin = time.perf_counter()
        result = self._observables[name].measure(own)
        seconds = time.perf_counter() - begin
        observations = [result] if isinstance(result, Observation) else list(result)
        if wrong := next((o for o in observations if not isinstance(o, Observation)), None):
            raise TypeError(f"measure() gave {wrong!r:.80}; it must give Observations")
        now = time.time()
        completed = []
        for observation in observations:
            if observation.detail is not None:
                self._previous[name] = observation.detail
                self._health.estimates[observation.detail.status] += 1
            completed.append(
                replace(
                    observation,
                    epoch=observation.epoch if observation.epoch is not None else context.epoch,
                    timestamp=observation.timestamp or now,
                    duration_seconds=observation.duration_seconds or seconds,
                )
            )
        return completed

    def _fail(self, name: str, step: int, error: BaseException) -> None:
        self._health.measurement_failures[name] += 1
        failures = self._failures_in_row[name] = self._failures_in_row.get(name, 0) + 1
        if failures == 1:
            log.warning(
                "measuring %s at step %d failed: %s: %s; training goes on, further failures are "
                "counted in phasewatch_measurement_failures_total",
                name,
                step,
                type(error).__name__,
                error,
                exc_info=log.isEnabledFor(logging.DEBUG),
            )

    def _tell_if_long(self, name: str, step: int) -> None:
        """Say of a first measurement that training stood still for it."""
        seconds = self._health.durations[name].latest_seconds
        if self._health.measurements[name] > 1 or seconds < LONG_SECONDS:
            return
        limit = f"{self.planner.budget:.0%} of the time" if self.planner.budget < 1.0 else "nothing"
        log.info(
            "the first measurement of %s, at step %d, took %.0f s; all that are to come are "
            "limited by %s (`overhead`)",
            name,
            step,
            seconds,
            limit,
        )

    def tell_if_few(self) -> None:
        """Say once of each observable that the budget leaves too few measurements of it."""
        for name in self._observables:
            expected = self.planner.expected_measurements(name)
            if expected >= WANTED_MEASUREMENTS or name in self._told_few:
                continue
            self._told_few.add(name)
            log.warning(
                "%s will be measured about %d times in the rest of this run, within an overhead of "
                "%.0f %%; raise `overhead`, set `every_n_steps`, or make the probe or "
                "`sampler.num_draws` smaller",
                name,
                max(1, round(expected)),
                100 * self.planner.budget,
            )

    def state_dict(self) -> dict[str, Any]:
        """Schedule and observables' own states, as plain containers."""
        own = {
            name: observable.state_dict()
            for name, observable in self._observables.items()
            if hasattr(observable, "state_dict")
        }
        return {"planner": self.planner.state_dict(), "observables": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.planner.load_state_dict(state["planner"])
        for name, own in state["observables"].items():
            observable = self._observables.get(name)
            if observable is not None and hasattr(observable, "load_state_dict"):
                observable.load_state_dict(own)


def _is_dear(observable: Observable) -> bool:
    """Whether a measurement takes tens of gradients or more."""
    return getattr(observable, "cost", None) in (Cost.GRADIENT, Cost.SAMPLING)
