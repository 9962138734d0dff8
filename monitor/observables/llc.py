"""The local learning coefficient as an observable."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from phasewatch.monitor.config import SamplerConfig
from phasewatch.monitor.errors import MeasurementError, RefusedError
from phasewatch.monitor.sampling import Memory, measure_llc
from phasewatch.monitor.sampling.measure import check_llc
from phasewatch.monitor.types import MeasureContext, Observation


class LLC:
    """Local learning coefficient λ̂ = nβ (E_w[L_n(w)] − L_n(w*)) on the fixed probe.

    What is kept between two measurements: which engine to use; the sharpest direction, so that the
    step size is known after few gradients; and where the chains stood, so that burn-in is paid
    once (`SamplerConfig.warm_start`).

    Args:
        config: How the local posterior is sampled.
        parameters: Names or shell patterns; restricts sampling to part of the weights.
        name: Name of the stream.
    """

    unit = "1"
    cost = "expensive"
    source = "Lau et al. 2023, arXiv 2308.12108, eq. (6)"

    def __init__(
        self,
        config: SamplerConfig | None = None,
        *,
        parameters: Sequence[str] | None = None,
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
        try:
            check_llc(context, self._config, parameters=self._parameters, memory=self._memory)
        except RefusedError:
            raise
        except MeasurementError:
            return  # a loss that is not finite now may be finite later
        except Exception as error:
            raise RefusedError(
                f"the loss cannot be evaluated on a copy ({type(error).__name__}: {error}); "
                "give the monitor a loss_fn= that can"
            ) from error

    def measure(self, context: MeasureContext) -> Observation:
        """Measure at `context.step`, within `context.deadline_seconds`.

        Raises:
            RefusedError: It cannot be measured safely.
            MeasurementError: The loss at w* is not finite.
        """
        estimate = measure_llc(
            context, self._config, parameters=self._parameters, memory=self._memory
        )
        return Observation(
            name=self.name,
            step=context.step,
            epoch=context.epoch,
            value=estimate.lambda_hat,
            unit=self.unit,
            stderr=estimate.lambda_stderr,
            timestamp=time.time(),
            duration_seconds=estimate.duration_seconds,
            status=estimate.status,
            reason=estimate.reason,
            detail=estimate,
        )

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
