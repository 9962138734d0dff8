"""What is measured while a trainer trains: copies of its model, the probe, the loss."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from phasewatch.callbacks.shared.framework import Framework, SubjectLoss
from phasewatch.monitor.core.context import LossFn, MeasureContext
from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.core.seeds import seed_from
from phasewatch.monitor.isolation import guard, live_context, measure_context
from phasewatch.monitor.isolation.batches import count_samples
from phasewatch.monitor.isolation.probe import (
    PassingProbe,
    Probe,
    batch_size_of,
    build_probe,
    find_dataset,
    is_indexed,
    with_terms,
)
from phasewatch.monitor.run.probe_size import Build, builder_of, mean_loss, sized_probe
from phasewatch.monitor.run.watch import Watch
from phasewatch.monitor.sampling.evaluation_cost import EvaluationCost, evaluation_cost

log = logging.getLogger("phasewatch")


class Subject(Framework):
    """The model of one training, as the monitor sees it.

    What is special to a framework is asked of the methods of `Framework`.

    Args:
        module: The live module.
        watch: The run's watch.
        loss_fn: The user's loss.
        probe: The user's probe data.
        val_probe: The user's validation probe data.
        n_samples: The user's number of loss terms.

    Attributes:
        passing: Collects the probe from passing batches, until it is complete; else None.
        reason: Why there is no loss to measure; empty when there is one.
        cost: What one gradient of the probe takes, where that is known already.
        step_seconds: What a training step should take, likewise.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        watch: Watch,
        loss_fn: LossFn | None = None,
        probe: Any = None,
        val_probe: Any = None,
        n_samples: int | None = None,
    ) -> None:
        self._module = module
        self._watch = watch
        self._config = watch.config
        self._sources = (probe, val_probe)
        self._n_samples = n_samples
        self._given_loss = loss_fn
        self._probe: Probe | None = None
        self._val_batches: tuple[Any, ...] = ()
        self._loss: SubjectLoss | None = None
        self._was_passing = False
        self._build: Build | None = None
        self._batch_size = 1
        self.passing: PassingProbe | None = None
        self.reason = ""
        self.cost: EvaluationCost | None = None
        self.step_seconds: float | None = None

    @property
    def loss_source(self) -> str:
        """Where the loss comes from, in a word."""
        return self._loss.source if self._loss is not None else "no loss"

    @contextmanager
    def guarded(self, step: int, turn: int, touched: list[Any] | None = None) -> Iterator[None]:
        """Shield training from what is measured inside.

        Args:
            step: Optimizer steps completed.
            turn: Which turn of the run it is; seeds what is random inside.
            touched: Further live objects, of which a change is no news.
        """
        extra = [*(touched or ()), *self._live_objects()]
        report = None
        try:
            with guard(
                self._module, seed=seed_from(self._config.seed, step, turn), extra=extra
            ) as report:
                yield
        finally:
            if report is not None and report.repairs and touched is None:
                self._watch.health.repairs += len(report.repairs)
                self._watch.failures.tell_once(
                    "repairs",
                    "measuring changed what is alive, which was put back: "
                    + "; ".join(report.repairs[:5]),
                )

    def touched(self) -> list[Any]:
        """Live objects that building a probe reads from, and that must be as before."""
        candidates = [*self._sources, self._loader(), *self._live_objects()]
        found = [c.dataset if isinstance(c, DataLoader) else c for c in candidates]
        return [
            item
            for item in found
            if item is not None and not isinstance(item, (list, tuple, dict, torch.Tensor))
        ]

    def prepare(self, saved: Sequence[Any] | None = None) -> None:
        """Build loss and probe. Call it inside a guard that watches `touched()`.

        Args:
            saved: Batches of the probe of an earlier attempt, where they were kept.

        Raises:
            ConfigError: What the user gave as probe, or as loss, cannot be used.
        """
        try:
            self._loss = self._make_loss()
            self._build_probe(saved)
        except RefusedError as error:
            self._refuse(str(error), given=self._sources[0] is not None, what="probe")
        if self.passing is None:
            self.settle()

    def settle(self) -> bool:
        """Look at the loss on the probe so far, and size the probe. Call it inside a guard.

        Returns:
            Whether the probe is complete; if not, more batches are to pass by.

        Raises:
            ConfigError: The user's loss or probe cannot be used.
        """
        passing = self.passing
        if passing is not None:
            self._probe, self.passing = passing.probe(), None
        if self.reason or self._probe is None or self._loss is None:
            return True
        try:
            self._survey()
            if passing is not None:
                if self._wants_more(passing):
                    self.passing = passing
                    return False
            elif self._build is not None:
                self._size(self._build)
        except RefusedError as error:
            self._refuse(str(error), given=self._given_loss is not None, what="loss_fn")
        return True

    def _survey(self) -> None:
        if self._loss is None or self._probe is None:
            return
        terms, unit = self._loss.survey(self.context(0))
        self._probe = with_terms(self._probe, self._n_samples or terms, unit)

    def _size(self, build: Build) -> None:
        """Grow the probe while it pays, in batches of a shape that the loss takes."""
        first = self._probe
        if first is None:
            return
        context = self.context(0)
        self._probe = sized_probe(
            first,
            build,
            self._batch_size,
            self._config.probe.num_samples,
            growth=lambda _: self._growth(context),
            loss_of=partial(mean_loss, context),
            kept_bytes=lambda _: self.cost.kept_bytes if self.cost else 0,
        )
        if self._probe is not first:
            self.cost = None
            self._survey()

    def _growth(self, context: MeasureContext) -> float:
        """How many times as large the probe may be; notes what a gradient of it takes now."""
        try:
            self.cost = evaluation_cost(context)
        except MeasurementError as error:  # not finite now, perhaps later
            log.debug("one gradient of the probe could not be timed: %s", error)
            return 1.0
        samples = self._num_samples(context)
        self.step_seconds = self.cost.gradient_seconds * self._batch_size / max(1, samples)
        return self._watch.probe_growth(context, self.cost, self.step_seconds)

    def _num_samples(self, context: MeasureContext) -> int:
        return sum(map(count_samples, context.batches))

    def _wants_more(self, passing: PassingProbe) -> bool:
        """Whether further batches are to pass by before the probe is complete."""
        if passing.closed:
            return False
        context = self.context(0)
        have = self._num_samples(context)
        self._batch_size = max(1, have // len(context.batches))
        wanted = min(self._growth(context) * have, self._config.probe.num_samples)
        return passing.extend(int(wanted))

    def context(self, step: int, epoch: int | None = None) -> MeasureContext:
        """Copy the live module as it is now. Call it inside a guard.

        Raises:
            RefusedError: It cannot be copied.
        """
        if self._config.probe.mode == "train":
            self._refuse_synchronised()
        stand_ins = self._loss.substitutes() if self._loss is not None else {}
        context = measure_context(
            self._module,
            step=step,
            epoch=epoch,
            mode=self._config.probe.mode,
            seed=self._config.seed,
            substitutes=stand_ins,
        )
        context = replace(context, learning_rate=self._learning_rate())
        loss = self._loss.attach(context.model) if self._loss is not None else None
        if self.reason or self._probe is None:
            return context
        return replace(
            context,
            loss_fn=loss,
            batches=self._probe.batches,
            val_batches=self._val_batches,
            n_samples=self._probe.n_samples,
            n_data=self._probe.n_data,
            sample_unit=self._probe.sample_unit,
        )

    def _learning_rate(self) -> float | None:
        """The largest of all parameter groups: where plain descent is closest to its edge."""
        rates = [group.get("lr") for o in self._optimizers() for group in o.param_groups]
        known = [float(rate) for rate in rates if rate is not None]
        return max(known, default=None)

    def context_to_check(self, step: int) -> MeasureContext:
        """The same, for asking what can be measured. Call it inside a guard.

        Where there is no loss, one that refuses says why to each observable that asks for it.
        """
        context = self.context(step)
        if not self.reason:
            return context
        return replace(context, loss_fn=_refusing(self.reason), batches=(None,))

    def batches_taken_in_passing(self) -> tuple[Any, ...]:
        """Batches that a resumed run could not find again."""
        return self._probe.batches if self._probe is not None and self._was_passing else ()

    def live_context(self, step: int, epoch: int | None = None) -> MeasureContext:
        """The weights as they are, for observables that only read them."""
        context = live_context(
            self._module,
            step=step,
            epoch=epoch,
            mode=self._config.probe.mode,
            seed=self._config.seed,
            substitutes=self._live_substitutes,
        )
        return replace(context, learning_rate=self._learning_rate())

    def _build_probe(self, saved: Sequence[Any] | None) -> None:
        source, val_source = self._sources
        config, seed = self._config.probe, self._config.seed
        settings: dict[str, Any] = {
            "config": config,
            "seed": seed,
            "prepare": self._as_training_sees,
        }
        if val_source is not None:
            self._val_batches = build_probe(val_source, **settings).batches
        loader = self._loader()
        if source is not None:
            self._take(source, settings)
        elif saved:
            self._was_passing = True
            moved = [self._to_device(batch) for batch in saved]
            self._probe = build_probe(moved, config=config, seed=seed, n_samples=self._n_samples)
        elif find_dataset(loader) is not None:
            self._take_from_loader(loader, settings)
        if self._probe is None:
            self._was_passing = True
            sized = "num_samples" not in config.model_fields_set and self._watch.has_budget
            self.passing = PassingProbe(config, self._n_samples, one_batch_first=sized)

    def _take(self, source: Any, settings: dict[str, Any]) -> None:
        """The probe of a source; where it can be read by index, one batch to begin with."""
        config = settings["config"]
        self._batch_size = config.batch_size or batch_size_of(source) or config.num_samples
        fixed = {"num_samples", "batch_size"} & config.model_fields_set
        if not is_indexed(source) or fixed:
            self._probe = build_probe(source, n_samples=self._n_samples, **settings)
            return

        build = builder_of(source, self._n_samples, **settings)
        first = min(self._batch_size, config.num_samples)
        self._probe, self._build = build(first, first), build

    def _take_from_loader(self, loader: Any, settings: dict[str, Any]) -> None:
        try:
            self._take(loader, settings)
        except RefusedError:
            raise
        except ConfigError as error:  # about data the user did not choose as probe
            raise RefusedError(str(error)) from error
        except Exception as error:
            # What the training itself loads is good; what it loads by other means still passes by.
            log.info(
                "the probe is taken from passing batches: the dataset cannot be read by index "
                "(%s: %s)",
                type(error).__name__,
                error,
            )
            self._probe = None

    def _refuse(self, reason: str, *, given: bool, what: str) -> None:
        if given:
            raise ConfigError(f"{what}: {reason}")
        self.reason = reason

    def _refuse_synchronised(self) -> None:
        if self._world_size() > 1 and any(
            isinstance(module, nn.SyncBatchNorm) for module in self._module.modules()
        ):
            raise RefusedError(
                "SyncBatchNorm communicates in train mode, and only one process measures; "
                'set probe.mode to "eval"'
            )


def _refusing(reason: str) -> LossFn:
    def loss_fn(*_: Any) -> torch.Tensor:
        raise RefusedError(reason)

    return loss_fn
