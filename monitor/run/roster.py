"""Which observables a run has, what each takes, and what the run will see of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from phasewatch.detectors.types import Direction
from phasewatch.monitor import observables as registry
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.contracts import Observable
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.forecast import ForecastRow, duration_in_words
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.meaning import StreamMeaning, guess
from phasewatch.monitor.core.ownership import is_ours
from phasewatch.monitor.core.stray import let_through
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.run.budget import Budget
from phasewatch.monitor.run.density import Density
from phasewatch.monitor.run.planner import Account, Planner

if TYPE_CHECKING:
    from phasewatch.monitor.sampling.evaluation_cost import EvaluationCost

log = logging.getLogger("phasewatch")

FIRST_OF_ALL = "llc"
WEIGHT_OF_FIRST = 4.0
"""λ̂ gets so many times the budget of another observable that is not light."""

BY_CLASS: Mapping[Cost | None, Work] = {
    Cost.STEP: Work(weight_passes=2.0),
    Cost.WEIGHTS: Work(weight_passes=4.0),
    Cost.FORWARD: Work(forwards=1.0),
    Cost.GRADIENT: Work(gradients=30.0),
    Cost.SAMPLING: Work(gradients=1000.0),
}
"""What a measurement is taken to need where the observable tells only its class."""


class Roster:
    """The observables of one run: which there are, what each takes, and what the run will see.

    Args:
        config: The run's configuration; names its observables.
        health: Where failures and refusals are counted.
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
        self._num_chains = config.sampler.num_chains
        self.observables: dict[str, Observable] = {}
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
                if item == registry.ALL and name in self.observables:
                    continue
                self._add(registry.create(name, config))
                if item == registry.ALL:
                    self._offered.add(name)
                elif by_user:
                    self._named.add(name)
        accounts = [self._account(name, config) for name in self.observables]
        denser = config.around.denser
        if denser is None and (config.budget >= 1.0 or all(a.lifted for a in accounts)):
            denser = 1  # every cadence was asked for, and is kept to
        self.planner = Planner(accounts, Budget(config.budget), Density(denser, health))
        self.cost: EvaluationCost | None = None
        self.failures_in_row: dict[str, int] = {}

    def _account(self, name: str, config: MonitorConfig) -> Account:
        settings, observable = config.observables.get(name), self.observables[name]
        own = settings.cadence if settings else None
        return Account(
            name=name,
            cadence=own or config.cadence,
            lifted=own is not None,
            expensive=_is_expensive(observable),
            spread=measures_in_steps(observable),
            weight=WEIGHT_OF_FIRST if name == FIRST_OF_ALL else 1.0,
        )

    def _add(self, observable: Observable) -> None:
        if not isinstance(observable, Observable):
            raise ConfigError(
                f"observable {observable!r} lacks one of name, unit, measure(context); "
                "see phasewatch.monitor.core.contracts.Observable"
            )
        if observable.name in self.observables:
            raise ConfigError(f"observable {observable.name!r} is given twice; names must differ")
        better = getattr(observable, "better", None)
        if better is not None and better not in [*Direction]:
            raise ConfigError(
                f"observable {observable.name!r} says that {better!r} is better; it must say "
                '"up" or "down", or have no attribute `better`'
            )
        self.observables[observable.name] = observable

    @property
    def names(self) -> tuple[str, ...]:
        """Observables still measured, in order."""
        return tuple(self.observables)

    @property
    def declared(self) -> dict[str, StreamMeaning]:
        """What the observables declare of their streams."""
        found: dict[str, StreamMeaning] = {}
        for name, observable in self.observables.items():
            found |= getattr(observable, "streams", {})
            if (better := getattr(observable, "better", None)) is not None:
                known = found.get(name) or guess(name)
                found[name] = replace(known, better=Direction(better))
        return found

    @property
    def locates_by_itself(self) -> bool:
        """Whether telling where something moved runs no code of the user's."""
        return all(is_ours(o) for o in self.observables.values() if hasattr(o, "locate"))

    def locate(self, onset: int, end: int) -> tuple[tuple[str, float], ...]:
        """Where in the model something moved between two steps, if an observable can tell."""
        for name, observable in list(self.observables.items()):  # asked beside training
            locate = getattr(observable, "locate", None)
            if locate is None:
                continue
            try:
                found: tuple[tuple[str, float], ...] = tuple(locate(onset, end))
            except Exception as error:
                self.failed(name, end, error)
            else:
                return found
        return ()

    def check(self, context: MeasureContext, cost: EvaluationCost | None = None) -> None:
        """Ask each observable, before the first step, whether it can measure this model.

        One evaluation of the probe is timed, and from it what each measurement will take.

        Args:
            context: What will be measured.
            cost: What one evaluation takes, where that is known already.

        Raises:
            ConfigError: One that the user named cannot. One that is on by default is skipped.
        """
        self.cost = cost or _evaluation_cost(context)
        for name, observable in list(self.observables.items()):
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
        for name in self.observables:
            self.predict(name, context)

    def predict(self, name: str, context: MeasureContext) -> None:
        """Tell the planner what the next measurement should take, as far as that is known."""
        observable: Any = self.observables[name]
        kind = getattr(observable, "cost", None)
        try:
            tells = _has_method(observable, "work")
            work = observable.work(context) if tells else BY_CLASS.get(kind, Work(gradients=1.0))
        except Exception as error:  # the user's own, or one that cannot tell beforehand
            log.debug("what %s takes is not known before: %s", name, error)
            return
        if self.cost is None:
            return
        gradient = self.cost.gradient_seconds
        chains = self._num_chains if kind is Cost.SAMPLING else 1
        self.planner.predict(name, self.cost.of(work), chains * gradient)

    def probe_growth(
        self, context: MeasureContext, cost: EvaluationCost, expected_seconds: float
    ) -> float:
        """How many times as large a probe leaves the run enough of the most expensive measurement.

        Args:
            context: The model and the probe as they are now.
            cost: What one gradient of it takes.
            expected_seconds: Length of the run; inf where it is not known.
        """
        if not self.planner.ledger.limited:
            return math.inf
        growth = math.inf
        observable: Any
        for name, observable in self.observables.items():
            account = self.planner.accounts[name]
            if not account.expensive or account.lifted or not _has_method(observable, "work"):
                continue
            try:
                seconds = cost.of(observable.work(context))
            except Exception as error:  # what cannot be measured here is told by its check
                log.debug("what %s takes is not known: %s", name, error)
                continue
            affordable = self.planner.affordable_seconds(name, expected_seconds)
            growth = min(growth, affordable / max(seconds, 1e-9))
        return growth

    def forecast(self) -> list[ForecastRow]:
        """What the run will see of each observable, as far as is known now."""
        return [self._row(account) for account in self.planner.accounts.values()]

    def _row(self, account: Account) -> ForecastRow:
        planner, note = self.planner, ""
        expected = planner.expected_measurements(account.name)
        first = f"step {account.next_step}"
        if account.cadence is None and planner.ledger.limited and not account.light:
            if account.expensive:
                first = planner.begins_in_words()
            if planner.at_end(account.name):
                first, expected = "when training ends", 1.0
            if planner.never(account.name):
                first, expected = "–", 0.0
            if expected < 1.5:
                note = (
                    f"one takes {duration_in_words(account.predicted)}, this run's budget has "
                    f"{duration_in_words(planner.ledger.left_until(planner.seconds_left))} left; "
                    "raise overhead, or give it every_n_steps, which no budget holds back"
                )
        return ForecastRow(
            name=account.name,
            seconds=account.predicted,
            first=first,
            count=None if math.isinf(expected) else round(expected),
            note=note,
        )

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
        if name not in self.observables:
            return
        del self.observables[name]
        self.planner.drop(name)
        self._health.skipped[name] += 1
        self._health.skip_reasons[name] = reason
        # Of "all" observables many never fit: no news worth a warning.
        level = logging.INFO if name in self._offered else logging.WARNING
        log.log(level, "%s is not measured: %s", name, reason)

    def failed(self, name: str, step: int, error: BaseException) -> None:
        """Count a failure, and say the first of several in a row.

        Args:
            name: The observable.
            step: Optimizer steps completed.
            error: What it raised.
        """
        self._health.measurement_failures[name] += 1
        failures = self.failures_in_row[name] = self.failures_in_row.get(name, 0) + 1
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


def measures_in_steps(observable: Observable) -> bool:
    """Whether its steps are its measurement: not where a subclass has a `measure` of its own."""
    for kind in type(observable).__mro__:
        if "measure_in_steps" in vars(kind):
            return callable(vars(kind)["measure_in_steps"])
        if "measure" in vars(kind):
            return False
    return False


def _has_method(observable: Observable, name: str) -> bool:
    """Whether its class has that method; an attribute of a user's own may have the same name."""
    return callable(getattr(type(observable), name, None))


def _evaluation_cost(context: MeasureContext) -> EvaluationCost | None:
    """What one evaluation takes; None where there is nothing to evaluate."""
    from phasewatch.monitor.sampling.evaluation_cost import evaluation_cost  # imports torch

    try:
        return evaluation_cost(context)
    except Exception as error:  # the observables that need it say why themselves
        log.debug("no evaluation of the probe was timed: %s", error)
        return None


def _is_expensive(observable: Observable) -> bool:
    """Whether a measurement takes tens of gradients or more."""
    return getattr(observable, "cost", None) in (Cost.GRADIENT, Cost.SAMPLING)
