"""Local learning coefficients of parts of a model: weight-refined LLCs (Wang et al. 2024)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import LLC as LLC_MEANING
from phasewatch.monitor.core.work import Cost, Steps, Work, run_through
from phasewatch.monitor.observables.llc.parts import HEADS, MODULES, Turns, find_parts
from phasewatch.monitor.observables.llc.values import observed_llc, refusals
from phasewatch.monitor.sampling import Memory
from phasewatch.monitor.sampling.measure import (
    check_llc,
    refined_llc_steps,
    sampling_work,
)
from phasewatch.monitor.sampling.memory import state_of, take_up
from phasewatch.monitor.sampling.restrictions import Selection

log = logging.getLogger("phasewatch")


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
        """The last sharpness of each part, and γ of the run; see `state_of`."""
        return state_of(self._memories)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state of `state_dict`; parts that it does not know start afresh."""
        for part, sharpness in state.get("sharpness", {}).items():
            if sharpness is not None and self._wanted:
                self._memories.setdefault(part, Memory())
        take_up(self._memories, state)
