"""What one worker does: measure checkpoints one after another, as a live run would.

A worker keeps the model, the probe and the chains of its block of checkpoints: the next checkpoint
is measured from where the chains ended at the one before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from phasewatch.monitor.backfill.checkpoints import Checkpoint, mark_of
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.errors import ConfigError, UnreadableError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.work import Cost
from phasewatch.monitor.observables import create, selected
from phasewatch.monitor.run.live_model import PlainSubject
from phasewatch.monitor.run.measurements import Measuring
from phasewatch.monitor.run.roster import Roster
from phasewatch.monitor.sampling.factory import load_checkpoint, load_subject


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured at every checkpoint; plain, so that any process can have it.

    Attributes:
        factory: `module:function` of the model and its probe.
        config: The configuration, as `MonitorConfig.load` takes it.
        prefix: Of the keys in the checkpoints; it is cut off.
    """

    factory: str
    config: Mapping[str, Any]
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one checkpoint gave.

    Attributes:
        step: Its step.
        observations: Everything observed.
        reasons: Why an observable was not measured, by name.
        unread: Why the checkpoint itself could not be read; empty if it was.
    """

    step: int
    observations: tuple[Observation, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    unread: str = ""


def measurable(config: MonitorConfig) -> MonitorConfig:
    """The configuration by which every checkpoint is measured, without a budget.

    Of the observables that are on by default, those that look at a gradient step are left out.

    Raises:
        ConfigError: The user named one that only a live run can measure.
    """
    needing = [name for name in config.observables if name != "all" and _needs_step(name, config)]
    if needing and "observables" in config.model_fields_set:
        raise ConfigError(
            f"observable {needing[0]!r} looks at an optimizer step, of which a checkpoint holds "
            "nothing; leave it out of --observables"
        )
    kept = {
        name: settings.model_copy(update={"every_n_steps": None, "schedule": None})
        for name, settings in config.observables.items()
        if name not in needing
    }
    return config.replace(observables=kept, every_n_steps=1, schedule=None, overhead=1.0)


def prepared(plan: Plan) -> Plan:
    """The plan as workers have it.

    Args:
        plan: Its configuration as the user gave it.

    Raises:
        ConfigError: It names what only a live run can measure.
    """
    config = measurable(MonitorConfig.load(plan.config))
    return replace(plan, config=config.model_dump(mode="json", exclude_unset=True))


def _needs_step(name: str, config: MonitorConfig) -> bool:
    observable = create(name, config)
    return getattr(observable, "cost", None) is Cost.STEP or bool(
        getattr(observable, "needs_record", False)
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """An observable that is asked for.

    Attributes:
        name: Its name.
        declared: Streams that it declares; those of its own name and below it are its, too.
        remembers: Whether its values depend on the checkpoints before.
    """

    name: str
    declared: frozenset[str]
    remembers: bool

    def owns(self, stream: str) -> bool:
        """Whether a stream is one of its."""
        return stream in self.declared or stream.partition("/")[0] == self.name


def asked_for(config: MonitorConfig) -> list[Asked]:
    """The observables of a configuration."""
    made = [create(name, config) for kept in config.observables for name in selected(kept)]
    return [
        Asked(o.name, frozenset(getattr(o, "streams", {})), getattr(o, "compares_steps", False))
        for o in made
    ]


class Block:
    """Measures checkpoints of ascending steps.

    Args:
        plan: What is measured.

    Raises:
        ConfigError: The factory, or an observable, cannot be had.
    """

    def __init__(self, plan: Plan) -> None:
        config = MonitorConfig.load(plan.config)
        subject = load_subject(plan.factory)
        self._prefix = plan.prefix
        self._model = subject.model
        self._health = Health(overhead_budget=config.budget)
        roster = Roster(config, self._health)
        self._measuring = Measuring(roster, self._health, config.seed)
        self._subject = PlainSubject(
            subject.model,
            list(subject.batches),
            None,
            subject.loss_fn,
            subject.n_samples,
            config,
            self._health,
        )
        self._checked = False

    def measure(self, checkpoint: Checkpoint) -> Measured:
        """Load a checkpoint into the model and measure it.

        Raises:
            ConfigError: It is of another model, or holds nothing that can be measured.
        """
        step = checkpoint.step
        try:
            load_checkpoint(self._model, checkpoint.path, self._prefix)
        except UnreadableError as error:
            return Measured(step, unread=str(error))
        # A file that was written anew in the meantime holds the weights of another step.
        if checkpoint.mark is not None and mark_of(checkpoint.path) not in (checkpoint.mark, None):
            anew = f"checkpoint {str(checkpoint.path)!r} was written anew after it was looked at"
            return Measured(step, unread=anew)
        failures = self._health.measurement_failures.copy()
        if not self._checked:
            with self._subject.guarded(step, 0):
                self._measuring.roster.check(self._subject.context(step, None))
            self._checked = True
        self._measuring.planner.start(step - 1)
        found = self._measuring.turn(step, self._subject)
        failed = self._health.measurement_failures - failures
        reasons = dict.fromkeys(failed, "failed; the log says why")
        return Measured(step, tuple(found), {**self._health.skip_reasons, **reasons})


_block: tuple[int, Block] | None = None


def measure(plan: Plan, number: int, checkpoint: Checkpoint) -> Measured:
    """Measure one checkpoint of a block, in whatever process this is.

    Args:
        plan: What is measured.
        number: Which block it is of; the first checkpoint of another begins afresh.
        checkpoint: The checkpoint.
    """
    global _block
    if _block is None or _block[0] != number:
        _block = (number, Block(plan))
    return _block[1].measure(checkpoint)


def measure_block(plan: Plan, checkpoints: Sequence[Checkpoint]) -> list[Measured]:
    """Measure a block of checkpoints from its beginning: a function of these alone.

    Args:
        plan: What is measured.
        checkpoints: By ascending steps.
    """
    block = Block(plan)
    return [block.measure(checkpoint) for checkpoint in checkpoints]
