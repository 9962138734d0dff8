"""The local learning coefficient of the whole model as an observable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import DERIVED, SUPPORTING
from phasewatch.monitor.core.meaning import LLC as LLC_MEANING
from phasewatch.monitor.core.work import Cost, Steps, Work, run_through
from phasewatch.monitor.observables.llc.values import beside, observed_llc, refusals
from phasewatch.monitor.sampling import Memory
from phasewatch.monitor.sampling.measure import (
    check_llc,
    llc_steps,
    sampling_work,
)
from phasewatch.monitor.sampling.memory import state_of, take_up
from phasewatch.monitor.sampling.restrictions import Selection

WHOLE = ""
"""The only part of a model that is measured whole."""


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
        return [observed_llc(context, self.name, estimate), *beside(context, self.name, estimate)]

    def work(self, context: MeasureContext) -> Work:
        """Gradients of all chains to the first look at them, of the data it is measured on."""
        _, config = self._posed(context)
        return sampling_work(config, [self._memory])

    def _posed(self, context: MeasureContext) -> tuple[MeasureContext, SamplerConfig]:
        """On what data, and how, is sampled."""
        return context, self._config

    def state_dict(self) -> dict[str, Any]:
        """The last sharpness, and γ of the run; see `state_of`."""
        state = state_of({WHOLE: self._memory})
        return {"sharpness": state["sharpness"][WHOLE], "localization": state["localization"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state of `state_dict`; the mapping is not changed."""
        take_up({WHOLE: self._memory}, {**state, "sharpness": {WHOLE: state.get("sharpness")}})
