"""Chains in the memory of one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from phasewatch.monitor.core.work import Steps
from phasewatch.monitor.sampling.chains import FIRST_CHECK, ChainGroup
from phasewatch.monitor.sampling.integrators import Integrator
from phasewatch.monitor.sampling.landscape import Landscape
from phasewatch.monitor.sampling.mass import FIRST_UPDATE
from phasewatch.monitor.sampling.recorder import Recorder


class OneByOne(ChainGroup):
    """Chains one after another, each from w* to its last draw; there is the state of one only.

    The sharpness is shared: each chain begins with the shortest step that one before it needed,
    and none is begun again because a later one blew up. A chain that is over cannot be drawn
    further, so for more draws all begin again, and none can be gone on with later. A deadline is
    shared out among them.

    Args:
        landscape: What is sampled.
        integrator: How the chains move.
        num_chains: Chains.
        num_outside: How many of them start outside.
        **settings: As for `ChainGroup`.
    """

    def __init__(
        self,
        landscape: Landscape,
        integrator: Integrator,
        *,
        num_chains: int,
        num_outside: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(landscape, integrator, num_chains=1, **settings)
        self._num_chains = num_chains
        self._num_outside = num_outside

    def _resume(self, displacement: Tensor, heat: float) -> Steps[bool]:  # noqa: ARG002
        """Each chain starts anew: the earlier ones are gone."""
        yield from ()
        return False

    def extend(self, num_draws: int) -> Steps[None]:
        """Draw `num_draws` of each chain, or as many as the deadline leaves to the first."""
        records, alive, outside = [], [], []
        for chain in range(self._num_chains):
            self.record, self.alive = Recorder(), [True]
            self.outside = [chain >= self._num_chains - self._num_outside]
            self.num_restarts = 0
            self._next_check, self._next_mass = FIRST_CHECK, FIRST_UPDATE
            now, last = self.stopwatch.seconds, self.stopwatch.deadline_seconds
            self.last_second = now + (last - now) / (self._num_chains - chain)
            yield from self._start()
            yield from super().extend(num_draws)
            records.append(self.record)
            alive += self.alive
            outside += self.outside
        self.record, self.alive = Recorder.beside(records, alive), alive
        self.outside = outside
