"""How many draws are enough, and how many are too many."""

from __future__ import annotations

import math
from dataclasses import dataclass

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.sampling import verdict
from phasewatch.monitor.sampling.chains import MIN_DRAWS, ChainGroup
from phasewatch.monitor.sampling.diagnostics import NUM_SIGMAS, Summary
from phasewatch.monitor.sampling.one_by_one import OneByOne
from phasewatch.monitor.sampling.stopwatch import Stopwatch

SLOW_GROWTH, NOISE_GROWTH = 4, 8
"""In a live run chains that have not settled go on up to this many times `num_draws`, and those
that are only noisy up to the second: the next measurement goes on where they stand, and a run is
better served by two numbers than by one that is twice as exact."""

WARM_SHARE = 0.5
"""Share of `num_draws` after which warm chains look at their error for the first time."""

MARGIN = 1.2
"""The error falls with the root of the draws; a fifth more, as the error has an error too."""

WORTH = 1.25
"""Factor on the draws below which going on is not worth another look."""


def first_look(config: SamplerConfig, *, warm: bool) -> int:
    """Draws after which chains are judged for the first time.

    Args:
        config: The budget.
        warm: Whether they go on from where earlier ones stood.
    """
    if not warm:
        return config.num_draws
    return max(math.ceil(WARM_SHARE * config.num_draws), min(MIN_DRAWS, config.num_draws))


@dataclass(frozen=True, slots=True)
class Pace:
    """When the chains of one measurement are looked at.

    Attributes:
        config: The budget.
        n_samples: n.
        stopwatch: Seconds that the measurement was at work.
        is_live: Another measurement of the same run will follow.
    """

    config: SamplerConfig
    n_samples: int
    stopwatch: Stopwatch
    is_live: bool

    def first(self, run: ChainGroup) -> int:
        """Draws at the first look."""
        return first_look(self.config, warm=run.warm)

    def next(self, run: ChainGroup, summary: Summary | None, drawn: int, seconds: float) -> int:
        """Draws at the next look; `drawn` if this was the last.

        Args:
            run: The chains.
            summary: What they say; None if nothing is left of them.
            drawn: Draws asked for so far.
            seconds: Time the draws have taken.
        """
        if summary is None or len(run.record) < drawn:  # lost, or out of time
            return drawn
        wanted = max(self._wanted(summary, drawn), self.first(run))
        if wanted <= drawn:
            return drawn
        left = self.config.max_seconds - self.stopwatch.seconds
        a_draw = seconds / drawn
        if isinstance(run, OneByOne):  # begins again
            return wanted if wanted * a_draw <= left else drawn
        if (wanted - drawn) * a_draw > left:
            wanted = drawn + int(max(left, 0.0) / a_draw) if a_draw > 0.0 else drawn
        return wanted if wanted >= WORTH * drawn or wanted >= self.first(run) > drawn else drawn

    def _wanted(self, summary: Summary, drawn: int) -> int:
        """How many draws would mend the estimate; `drawn` or less if none would."""
        if verdict.is_negative(summary):
            return 0
        weak = verdict.weaknesses(summary, self.n_samples).keys() - verdict.NOT_BY_DRAWS
        error, limit = summary.relative_stderr, verdict.MAX_RELATIVE_STDERR
        if not self.is_live:
            limit = min(limit, self.config.target_error / NUM_SIGMAS)
        if not weak and error <= limit:
            return 0
        growth = (SLOW_GROWTH, NOISE_GROWTH) if self.is_live else (math.inf, math.inf)
        slow, noisy = (min(g * self.config.num_draws, self.config.max_draws) for g in growth)
        longer = int(min(2 * drawn, slow))
        if weak - {"stderr"}:
            return longer
        # Just short of enough is short of it: at least what is worth another look.
        needed = drawn * max(MARGIN * (error / limit) ** 2, WORTH)
        if self.is_live and needed > noisy:
            return longer
        return int(min(math.ceil(needed), 4 * drawn, noisy))
