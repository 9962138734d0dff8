"""Local learning coefficients as observables: of the whole model, and of parts of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from phasewatch.monitor.config import SamplerConfig
from phasewatch.monitor.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.sampling import Memory, measure_llc, measure_refined_llc
from phasewatch.monitor.sampling.measure import check_llc
from phasewatch.monitor.sampling.restrictions import Selection
from phasewatch.monitor.types import Cost, Estimate, MeasureContext, Observation


class LLC:
    """Local learning coefficient λ̂ = nβ (E_w[L_n(w)] − L_n(w*)) on the fixed probe.

    What is kept between two measurements: which engine to use; the sharpest direction, so that the
    step size is known after few gradients; and where the chains stood, so that burn-in is paid
    once (`SamplerConfig.warm_start`).

    Args:
        config: How the local posterior is sampled.
        parameters: Names, shell patterns or masks; restricts sampling to part of the weights.
        name: Name of the stream.
    """

    unit = "1"
    cost = Cost.SAMPLING
    needs = "a probe loss"
    source = "Lau et al. 2023, arXiv 2308.12108, eq. (6)"

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
        with _refusals():
            check_llc(context, self._config, parameters=self._parameters, memory=self._memory)

    def measure(self, context: MeasureContext) -> Observation:
        """Measure at `context.step`, within `context.deadline_seconds`.

        Raises:
            RefusedError: It cannot be measured safely.
            MeasurementError: The loss at w* is not finite.
        """
        estimate = measure_llc(
            context, self._config, parameters=self._parameters, memory=self._memory
        )
        return _observed(context, self.name, estimate)

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
    """Weight-refined λ̂ of each part, as streams "<name>/<part>"; the parts share their gradients.

    Args:
        parts: Names, shell patterns or masks of each part's parameters, by its name; for example
            what `attention_heads` returns.
        config: How the local posterior is sampled.
        name: Start of the streams' names.

    Raises:
        ConfigError: There are no parts.
    """

    unit = "1"
    cost = Cost.SAMPLING
    needs = "a probe loss"
    source = "Wang et al. 2024, arXiv 2410.02984, §2.2"

    def __init__(
        self,
        parts: Mapping[str, Selection],
        config: SamplerConfig | None = None,
        *,
        name: str = "refined_llc",
    ) -> None:
        if not parts:
            raise ConfigError("RefinedLLC has no parts; name at least one part of the model")
        self.name = name
        self._parts = dict(parts)
        self._config = config or SamplerConfig()
        self._memories = {part: Memory() for part in self._parts}

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: Says what was looked for, and the way out.
        """
        for name, part in self._parts.items():
            with _refusals():
                memory = self._memories[name]
                check_llc(context, self._config, parameters=part, memory=memory)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Measure all parts at `context.step`, within `context.deadline_seconds`.

        Raises:
            RefusedError: They cannot be measured safely.
            MeasurementError: The loss at w* is not finite.
        """
        found = measure_refined_llc(context, self._config, self._parts, self._memories)
        return [
            _observed(context, f"{self.name}/{part}", estimate) for part, estimate in found.items()
        ]

    def state_dict(self) -> dict[str, Any]:
        """The last sharpness of each part; see `LLC.state_dict`."""
        return {"sharpness": {part: m.sharpness for part, m in self._memories.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state of `state_dict`; parts that it does not know start afresh."""
        for part, sharpness in state.get("sharpness", {}).items():
            if part in self._memories and sharpness is not None:
                self._memories[part].sharpness = float(sharpness)


@contextmanager
def _refusals() -> Iterator[None]:
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


def _observed(context: MeasureContext, name: str, estimate: Estimate) -> Observation:
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
