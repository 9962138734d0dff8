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

USUAL_DRAWS = 256
"""`num_draws` where none are given."""

EARLY_DRAWS = 16
"""In a run that gives none, chains are looked at so early already, and at each doubling after."""

RELAXATIONS = 4.0
"""But not before so many times the draws in which the softest direction may relax, √κ with
κ = 1 + nβ h / γ, h the sharpness: where the loss does not curve downwards, no direction is softer
than γ. Chains that all lag alike agree among themselves."""

EARLY_STDERR = 0.05
"""Relative standard error below which an early look is enough: half of what a late one asks for."""

MARGIN = 1.2
"""The error falls with the root of the draws; a fifth more, as the error has an error too."""

WORTH = 1.25
"""Factor on the draws below which going on is not worth another look."""


def usual_draws(config: SamplerConfig) -> int:
    """`num_draws`, given or not."""
    return USUAL_DRAWS if config.num_draws is None else config.num_draws


def enough(config: SamplerConfig, *, warm: bool) -> int:
    """Draws that need no more than the usual evidence.

    Args:
        config: The budget.
        warm: Whether chains go on from where earlier ones stood.
    """
    draws = usual_draws(config)
    if not warm:
        return draws
    return max(math.ceil(WARM_SHARE * draws), min(MIN_DRAWS, draws))


def first_look(config: SamplerConfig, *, warm: bool) -> int:
    """Draws after which the chains of a live run may be judged for the first time.

    Args:
        config: The budget. A number of draws that is given is what is wanted.
        warm: Whether they go on from where earlier ones stood.
    """
    usual = enough(config, warm=warm)
    return min(EARLY_DRAWS, usual) if config.num_draws is None else usual


def relaxed(run: ChainGroup) -> float:
    """Draws after which even the softest direction has relaxed; inf where nothing bounds it."""
    if run.localization <= 0.0:
        return math.inf
    return RELAXATIONS * math.sqrt(1.0 + run.n_beta * run.curvature / run.localization)


def is_clear(summary: Summary, n_samples: int) -> bool:
    """Whether few draws prove already what many are drawn for.

    The usual checks look for evidence against λ̂, of which few draws hold little. Here the evidence
    must be for it: both sides have met for certain, and the error is half of what is allowed.

    Args:
        summary: What the draws say.
        n_samples: n.
    """
    if verdict.weaknesses(summary, n_samples).keys() - verdict.NOT_BY_DRAWS:
        return False
    sides = summary.sides
    apart = sides.gap + NUM_SIGMAS * sides.gap_stderr
    moves = abs(summary.drift) + NUM_SIGMAS * summary.drift_stderr
    return (
        summary.relative_stderr <= EARLY_STDERR
        and apart <= verdict.MAX_GAP * abs(summary.value)
        and moves <= 2.0 * verdict.MAX_DRIFT
    )


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
        # What begins again at each look would pay for the early ones twice.
        if not self.is_live or isinstance(run, OneByOne):
            return self._enough(run)
        early = first_look(self.config, warm=run.warm)
        return math.ceil(min(max(early, relaxed(run)), self._enough(run)))

    def _enough(self, run: ChainGroup) -> int:
        return enough(self.config, warm=run.warm)

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
        usual = self._enough(run)
        if drawn < usual:
            is_enough = drawn >= relaxed(run) and is_clear(summary, self.n_samples)
            wanted = drawn if is_enough else min(2 * drawn, usual)
        else:
            wanted = self._wanted(summary, drawn)
        if wanted <= drawn:
            return drawn
        left = self.config.max_seconds - self.stopwatch.seconds
        a_draw = seconds / drawn
        if isinstance(run, OneByOne):  # begins again
            return wanted if wanted * a_draw <= left else drawn
        if (wanted - drawn) * a_draw > left:
            wanted = drawn + int(max(left, 0.0) / a_draw) if a_draw > 0.0 else drawn
        return wanted if wanted >= WORTH * drawn or wanted >= usual > drawn else drawn

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
        slow, noisy = (min(g * usual_draws(self.config), self.config.max_draws) for g in growth)
        longer = int(min(2 * drawn, slow))
        if weak - {"stderr"}:
            return longer
        # Just short of enough is short of it: at least what is worth another look.
        needed = drawn * max(MARGIN * (error / limit) ** 2, WORTH)
        if self.is_live and needed > noisy:
            return longer
        return int(min(math.ceil(needed), 4 * drawn, noisy))
