"""Local learning coefficients as observables: of the whole model, and of parts of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import Estimate, EstimateStatus, Observation
from phasewatch.monitor.core.meaning import DERIVED, SUPPORTING
from phasewatch.monitor.core.meaning import LLC as LLC_MEANING
from phasewatch.monitor.core.work import Cost, Steps, Work, run_through
from phasewatch.monitor.observables.llc.parts import HEADS, MODULES, Turns, find_parts
from phasewatch.monitor.sampling import Memory
from phasewatch.monitor.sampling.measure import (
    check_llc,
    llc_steps,
    refined_llc_steps,
    sampling_work,
)
from phasewatch.monitor.sampling.restrictions import Selection

log = logging.getLogger("phasewatch")

NU_HAT = "nu_hat"
"""Stream of the singular fluctuation that belongs to "llc"; to another name it is a part."""


class LLC:
    """Local learning coefficient λ̂ = nβ (E_w[L_n(w)] − L_n(w*)) on the fixed probe.

    The same chains give, where the loss comes for each sample: "nu_hat", the singular fluctuation
    ν̂ = (β/2) Σ_i Var_w[log p(x_i|w)] (1; Watanabe 2010); and where that is defined, as parts that
    no detector watches, "llc/wbic" = n E_w[L_n(w)] (nats; Watanabe 2013) and "llc/waic" =
    T_n + (β/n) V (nats a sample; Watanabe 2010). They have the status of λ̂.

    What is kept between two measurements: which engine to use; the sharpest direction, so that the
    step size is known after few gradients; and where the chains stood, so that burn-in is paid
    once (`SamplerConfig.warm_start`).

    Args:
        config: How the local posterior is sampled.
        parameters: Names, shell patterns or masks; restricts sampling to part of the weights.
        name: Name of the stream.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> x = torch.arange(1.0, 5.0)[:, None]
        >>> loss = lambda model, batch: 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)
        >>> config = SamplerConfig(num_draws=200, max_draws=200)
        >>> found = measure_once(LLC(config), model, [(x, x)], loss)
        >>> found[0].name, found[0].value > 0, found[0].stderr > 0
        ('llc', True, True)
    """

    unit = "1"
    cost = Cost.SAMPLING
    needs = "a probe loss"
    source = "Lau et al. 2023, arXiv 2308.12108, eq. (6)"
    streams: ClassVar = {
        "llc": LLC_MEANING,
        "llc/wbic": DERIVED,
        "llc/waic": DERIVED,
        "nu_hat": SUPPORTING,
    }

    def __init__(
        self,
        config: SamplerConfig | None = None,
        *,
        parameters: Selection = None,
        name: str = "llc",
    ) -> None:
        self.name = name
        self._config = config or SamplerConfig()
        self._parameters = parameters
        self._memory = Memory()

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: Says what was looked for, and the way out.
        """
        context, config = self._posed(context)
        with refusals():
            check_llc(context, config, parameters=self._parameters, memory=self._memory)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Measure at `context.step`, within `context.deadline_seconds`; λ̂ comes first.

        Raises:
            RefusedError: It cannot be measured safely.
            MeasurementError: The loss at w* is not finite.
        """
        return run_through(self.measure_in_steps(context))

    def measure_in_steps(self, context: MeasureContext) -> Steps[list[Observation]]:
        """The same in steps."""
        context, config = self._posed(context)
        estimate = yield from llc_steps(
            context, config, parameters=self._parameters, memory=self._memory
        )
        return [observed_llc(context, self.name, estimate), *self._beside(context, estimate)]

    def work(self, context: MeasureContext) -> Work:
        """Gradients of all chains to the first look at them, of the data it is measured on."""
        _, config = self._posed(context)
        return sampling_work(config, [self._memory])

    def _posed(self, context: MeasureContext) -> tuple[MeasureContext, SamplerConfig]:
        """On what data, and how, is sampled."""
        return context, self._config

    def _beside(self, context: MeasureContext, estimate: Estimate) -> Iterator[Observation]:
        """What else the chains tell; without single losses, nothing."""
        if estimate.nu_hat is None:
            return
        nu_name = NU_HAT if self.name == "llc" else f"{self.name}/{NU_HAT}"
        yield _derived(context, nu_name, "1", estimate.nu_hat, estimate.nu_stderr, estimate)
        if estimate.wbic is not None:
            error = estimate.lambda_stderr * estimate.n_samples / estimate.n_beta
            yield _derived(context, f"{self.name}/wbic", "nats", estimate.wbic, error, estimate)
        if estimate.waic is not None:
            name, unit = f"{self.name}/waic", "nats per sample"
            yield _derived(context, name, unit, estimate.waic, estimate.waic_stderr, estimate)

    def state_dict(self) -> dict[str, Any]:
        """The last sharpness.

        Neither chains nor the sharpest direction are kept: each is as large as the model, and a
        checkpoint must not grow by that. A resumed run starts them cold.
        """
        return {"sharpness": self._memory.sharpness}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state of `state_dict`; the mapping is not changed."""
        sharpness = state.get("sharpness")
        self._memory.sharpness = None if sharpness is None else float(sharpness)
        self._memory.sharpest = None


class RefinedLLC:
    """Weight-refined λ̂ of each part of the model, as streams "<name>/<part>".

    Only the part's weights are sampled; the rest stay at w*. Parts that are measured at the same
    time share their gradients. Where the budget does not reach for all of them, they are measured
    in turn, those that have waited longest first, and the log names those that were left.

    Args:
        parts: Names, shell patterns or masks of each part's parameters, by its name; for example
            what `attention_heads` returns. Or "modules": the parameter groups of `weight_norm`,
            the smallest of them together as "other"; or "heads": every `nn.MultiheadAttention`'s.
            Of those found by themselves, one that cannot be sampled is left out, and told.
        config: How the local posterior is sampled.
        max_parts: Most parts that are found by themselves.
        name: Start of the streams' names.

    Raises:
        ConfigError: There are no parts, or `max_parts` is below 2.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> x = torch.arange(1.0, 5.0)[:, None]
        >>> loss = lambda model, batch: 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)
        >>> config = SamplerConfig(num_draws=200, max_draws=200)
        >>> found = measure_once(RefinedLLC({"weights": "weight"}, config), model, [(x, x)], loss)
        >>> [o.name for o in found]
        ['refined_llc/weights']
    """

    unit = "1"
    cost = Cost.SAMPLING
    needs = "a probe loss; two parameter groups, or attention heads"
    source = "Wang et al. 2024, arXiv 2410.02984, §2.2"
    streams: ClassVar = {"refined_llc": LLC_MEANING}

    def __init__(
        self,
        parts: Mapping[str, Selection] | str = MODULES,
        config: SamplerConfig | None = None,
        *,
        max_parts: int = 8,
        name: str = "refined_llc",
    ) -> None:
        if not parts:
            raise ConfigError("RefinedLLC has no parts; name at least one part of the model")
        if isinstance(parts, str) and parts not in (MODULES, HEADS):
            raise ConfigError(
                f"RefinedLLC: parts is {parts!r}; give {MODULES!r}, {HEADS!r}, or names of "
                "parameters by part"
            )
        if max_parts < 2:
            raise ConfigError(f"RefinedLLC: max_parts is {max_parts}; give at least 2")
        self.name = name
        self._wanted = parts if isinstance(parts, str) else ""
        self._parts = {} if isinstance(parts, str) else dict(parts)
        self._max_parts = max_parts
        self._config = config or SamplerConfig()
        self._memories = {part: Memory() for part in self._parts}
        self._turns: Turns | None = None

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: Says what was looked for, and the way out.
        """
        if not self._wanted:
            for part in self._parts:
                self._check_part(context, part)
            return
        self._find(context)
        refused: dict[str, RefusedError] = {}
        for part in self._parts:
            try:
                self._check_part(context, part)
            except RefusedError as error:
                refused[part] = error
        if len(refused) == len(self._parts):
            raise next(iter(refused.values()))
        for part, reason in refused.items():
            log.info("%s/%s is not measured: %s", self.name, part, reason)
            del self._parts[part]
            self._memories.pop(part, None)
        self._turns = None

    def _check_part(self, context: MeasureContext, part: str) -> None:
        with refusals():
            memory = self._memories.setdefault(part, Memory())
            if memory.examination is None:  # the loss is that of all parts
                known = (other.examination for other in self._memories.values())
                memory.examination = next(filter(None, known), None)
            check_llc(context, self._config, parameters=self._parts[part], memory=memory)

    def _find(self, context: MeasureContext) -> None:
        self._parts = find_parts(context, self._wanted, self._max_parts)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Measure parts at `context.step`, as many as `context.deadline_seconds` reach for.

        Raises:
            RefusedError: They cannot be measured safely.
            MeasurementError: The loss at w* is not finite.
        """
        return run_through(self.measure_in_steps(context))

    def work(self, context: MeasureContext) -> Work:
        """Gradients of all parts' chains."""
        if not self._parts:
            self._find(context)
        one = sampling_work(self._config, self._memories.values())
        return replace(one, gradients=len(self._parts) * one.gradients)

    def measure_in_steps(self, context: MeasureContext) -> Steps[list[Observation]]:
        """The same in steps."""
        if not self._parts:
            self._find(context)
        if self._turns is None:
            self._turns = Turns(self.name, list(self._parts))
        chosen = {
            part: self._parts[part]
            for part in self._turns.next(context.step, context.deadline_seconds)
        }
        memories = {part: self._memories.setdefault(part, Memory()) for part in chosen}
        found = yield from refined_llc_steps(context, self._config, chosen, memories)
        seconds = {part: estimate.duration_seconds for part, estimate in found.items()}
        self._turns.took(seconds, context.deadline_seconds)
        return [
            observed_llc(context, f"{self.name}/{part}", estimate)
            for part, estimate in found.items()
        ]

    def state_dict(self) -> dict[str, Any]:
        """The last sharpness of each part; see `LLC.state_dict`."""
        return {"sharpness": {part: m.sharpness for part, m in self._memories.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state of `state_dict`; parts that it does not know start afresh."""
        for part, sharpness in state.get("sharpness", {}).items():
            if sharpness is not None and (self._wanted or part in self._memories):
                self._memories.setdefault(part, Memory()).sharpness = float(sharpness)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn whatever a check raises into a refusal, but for what may pass at a later step."""
    try:
        yield
    except RefusedError:
        raise
    except MeasurementError:
        return  # a loss that is not finite now may be finite later
    except Exception as error:
        raise RefusedError(
            f"the loss cannot be evaluated on a copy ({type(error).__name__}: {error}); "
            "give the monitor a loss_fn= that can"
        ) from error


def observed_llc(context: MeasureContext, name: str, estimate: Estimate) -> Observation:
    """λ̂ as a value of the stream `name`.

    Args:
        context: The measurement's context.
        name: Name of the stream.
        estimate: What was estimated.
    """
    return Observation(
        name=name,
        step=context.step,
        epoch=context.epoch,
        value=estimate.lambda_hat,
        unit="1",
        stderr=estimate.lambda_stderr,
        timestamp=time.time(),
        duration_seconds=estimate.duration_seconds,
        status=estimate.status,
        reason=estimate.reason,
        detail=estimate,
    )


def _derived(
    context: MeasureContext,
    name: str,
    unit: str,
    value: float,
    stderr: float | None,
    estimate: Estimate,
) -> Observation:
    """What the same chains tell beside λ̂, and no better than that."""
    status, reason = estimate.status, estimate.reason
    if status is EstimateStatus.OK and not math.isfinite(math.nan if stderr is None else stderr):
        status, reason = EstimateStatus.UNCONVERGED, f"too few draws to tell the error of {name}"
    return replace(
        observed_llc(context, name, estimate),
        value=value,
        unit=unit,
        stderr=stderr,
        status=status,
        reason=reason,
        detail=None,
    )
