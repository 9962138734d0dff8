"""Running the chains: draws, sharpness checks on the way, and what happens when one blows up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phasewatch.monitor.sampling.calibration import Sharpness, measure_sharpness
from phasewatch.monitor.sampling.engine import Engine, Evaluation, evaluate
from phasewatch.monitor.sampling.integrators import Chains, Integrator
from phasewatch.monitor.sampling.pointwise import TermSums
from phasewatch.monitor.sampling.posterior import Problem

BLOW_UP_PER_PARAMETER, BLOW_UP = 5.0, 50.0
"""A chain has left when nβ K exceeds 5 d + 50 nats; in equilibrium it is about d/2 or less. A
*fall* of any depth is no blow-up: far from a minimum the loss really falls."""

MAX_RESTARTS = 6
RESTART_FACTOR = 4.0
"""Restarts, each with a quarter of the squared step, before a chain that still blows up is given
up."""

SAFETY = 1.2
"""Factor on the sharpness met by the chains: they go on to sharper places."""

FIRST_CHECK = 1
"""Draw after which the sharpness is measured on the chains for the first time; again at each
doubling. The first step is the longest: from the initial weights of a transformer it led to places
10⁴ times as sharp, and a first look at draw 8 came after the blow-up."""

MAX_REHEAT = 4.0
"""Where the change of the landscape between two measurements changes the virial of the same
displacements by more than this factor, they tell nothing about the new one."""

MIN_DRAWS = 32
"""Draws that a deadline cannot take away: fewer say nothing."""

VIRIAL_EVERY = 4
"""The virial costs two passes over the state; neighbouring draws would say the same."""

TERMS_EVERY, TERM_BLOCK = 4, 16
"""Loss terms are summed at every fourth draw, in sums over sixteen: burn-in is dropped by sums."""


class Recorder:
    """What is kept of each draw.

    Attributes:
        losses: Per draw, the loss of each chain.
        baselines: Per draw, L at w* on the very same batches: one number, or one for each chain.
        virials: Per recorded draw, (draw, V of each chain).
        terms: Sums of the loss terms, `TERM_BLOCK` draws each.
    """

    def __init__(self) -> None:
        self.losses: list[list[float]] = []
        self.baselines: list[Any] = []
        self.virials: list[tuple[int, Tensor]] = []
        self.terms: list[TermSums] = []

    def __len__(self) -> int:
        return len(self.losses)

    def excess(self) -> NDArray[np.float64]:
        """K = L − L(w*), paired draw by draw; shape (chains, draws), in nats."""
        baselines = np.asarray(self.baselines, dtype=np.float64)
        return self.chain_loss() - baselines.T

    def chain_loss(self) -> NDArray[np.float64]:
        """L of each chain and draw, shape (chains, draws), in nats."""
        losses: NDArray[np.float64] = np.asarray(self.losses, dtype=np.float64)
        return losses.T

    def virial(self, burnin: int) -> NDArray[np.float64]:
        """V after burn-in, shape (chains, records)."""
        kept = [values.double().cpu().numpy() for draw, values in self.virials if draw >= burnin]
        return np.asarray(kept, dtype=np.float64).T


class Run:
    """All chains of one measurement.

    Args:
        problem: What is sampled.
        engine: How gradients are computed.
        integrator: How the chains move.
        n_beta: nβ.
        localization: γ.
        generator: Own generator, on the device of the weights.
        adaptive: Set the step from the measured sharpness. False where the step was given.
        num_chains: Chains.
        pick: Which batches the next step uses.
        deadline: When to stop, on the monotonic clock.
    """

    def __init__(
        self,
        problem: Problem,
        engine: Engine,
        integrator: Integrator,
        *,
        n_beta: float,
        localization: float,
        generator: torch.Generator,
        adaptive: bool,
        num_chains: int,
        pick: Callable[[], Sequence[int]] | None = None,
        deadline: float = math.inf,
    ) -> None:
        self.problem = problem
        self.engine = engine
        self.integrator = integrator
        self.n_beta = n_beta
        self.localization = localization
        self.adaptive = adaptive
        self.deadline = deadline
        self.chains = Chains.at_center(problem.displacements(num_chains))
        self.record = Recorder()
        self.alive = [True] * num_chains
        self.num_resets = 0
        self.num_restarts = 0
        self.warm = False
        self.sharpness: float | None = None
        self.latest: Sharpness | None = None
        self.curvature = 0.0
        self._generator = generator
        self._all = range(len(problem.batches))
        self._pick = pick or (lambda: self._all)
        self._partial = pick is not None
        self._center_losses: list[float] = []
        self.center_terms = torch.empty(0)
        self._next_check = FIRST_CHECK

    # -- before the first draw ---------------------------------------------------------------

    def prepare(self, warm: Tensor | None = None, guess: float | None = None) -> Evaluation:
        """Evaluate w* by the same engine as the chains, and measure the sharpness there.

        Args:
            warm: Vector of shape (d,) from an earlier measurement, near the sharpest direction.
            guess: The sharpness found then.
        """
        at_center = self._evaluate_center()
        if self.adaptive:
            shape = self.chains.x.shape
            vectors = torch.empty_like(self.chains.x).normal_(generator=self._generator)
            if warm is not None and warm.shape == shape[1:]:
                vectors.mul_(0.1 / math.sqrt(shape[1])).add_(warm.to(vectors))
            self.latest = self._sharpness(at_center.grad, vectors, guess, max_iterations=10)
            self.sharpness = self.curvature = self.latest.value
            self._set_curvature()
        self.integrator.start(self.chains, self._generator)
        return at_center

    def resume(self, displacement: Tensor, heat: float) -> None:
        """Put the chains where those of an earlier measurement stood, if they fit in here.

        The landscape may have changed since. Chains that are hotter or colder in it by less than
        `MAX_REHEAT` are brought back to the heat they had, by one factor on all displacements (V
        grows with their square on a quadratic); what is further off starts at w*.

        Args:
            displacement: Where they stood, shape (chains, d).
            heat: Their mean V in the landscape of then.
        """
        if displacement.shape != self.chains.x.shape or not heat > 0.0:
            return
        found = self._evaluate(displacement, self._all)
        ratio = float(self._virial(displacement, found.grad).mean()) / heat
        lost = self._lost(found.loss.tolist(), self.baseline(self._all))
        if lost or not 1.0 / MAX_REHEAT < ratio < MAX_REHEAT:
            return
        torch.mul(displacement, ratio**-0.5, out=self.chains.x)
        self.chains.velocity.normal_(generator=self._generator)
        self.warm = True

    def heat(self) -> float:
        """Mean V where the chains stand."""
        x = self.chains.x
        return float(self._virial(x, self._evaluate(x, self._all).grad).mean())

    def _evaluate_center(self) -> Evaluation:
        """L, its terms and its gradient at w*; the loss of each batch is the paired baseline."""
        whole = self._evaluate(torch.zeros_like(self.chains.x), self._all)
        # One number for each batch: all chains are at w*, so their losses differ by rounding only.
        self._center_losses = whole.batch_losses.double().mean(dim=1).tolist()
        self.center_terms = whole.terms[0].clone()
        return whole

    def baseline(self, indices: Sequence[int]) -> float:
        """L(w*) on these batches."""
        weights = [self.problem.weights[index] for index in indices]
        losses = [self._center_losses[index] for index in indices]
        return math.fsum(map(math.prod, zip(weights, losses, strict=True))) / math.fsum(weights)

    # -- draws -------------------------------------------------------------------------------

    def extend(self, num_draws: int) -> None:
        """Draw until there are `num_draws`, the deadline has passed, or no chain is left."""
        while len(self.record) < num_draws and any(self.alive):
            if len(self.record) >= MIN_DRAWS and time.monotonic() > self.deadline:
                return
            self._draw(num_draws)

    def _draw(self, num_draws: int) -> None:
        """Keep one draw and move on. Its gradient is let go before the next one is taken."""
        indices = self._pick()
        found = self._evaluate(self.chains.x, indices)
        values = found.loss.tolist()
        base = self.baseline(indices)
        lost = self._lost(values, base)
        if lost and self._restart(lost):
            return
        self._keep(values, base, found)
        if self.adaptive and self.latest and self._next_check == len(self.record) < num_draws:
            self._check(found, self.latest)
        self.integrator.advance(self.chains, found.grad, self._generator)

    def _evaluate(self, x: Tensor, indices: Sequence[int]) -> Evaluation:
        return evaluate(self.engine, self.problem, x, indices)

    def _keep(self, values: list[float], base: float, found: Evaluation) -> None:
        draw = len(self.record)
        self.record.losses.append(values)
        self.record.baselines.append(base)
        if draw % VIRIAL_EVERY == 0:
            self.record.virials.append((draw, self._virial(self.chains.x, found.grad)))
        # Single loss terms exist where a batch gives more than one number.
        if draw % TERMS_EVERY == 0 and not self._partial and found.terms.shape[1] > len(self._all):
            self._keep_terms(draw, found.terms)

    def _keep_terms(self, draw: int, terms: Tensor) -> None:
        sums = self.record.terms
        if not sums or draw - sums[-1].first >= TERM_BLOCK:
            sums.append(TermSums(draw, terms.shape[1], terms))
        sums[-1].add(terms[self.alive] - self.center_terms)

    def _virial(self, x: Tensor, grad: Tensor) -> Tensor:
        """V = x·(nβ∇L + γx)/d of each chain."""
        forces: Tensor = torch.linalg.vecdot(x, grad) * self.n_beta
        pull: Tensor = torch.linalg.vecdot(x, x) * self.localization
        return (forces + pull) / x.shape[1]

    # -- sharpness and blow-ups --------------------------------------------------------------

    def _sharpness(
        self, base: Tensor, vectors: Tensor, guess: float | None, max_iterations: int
    ) -> Sharpness:
        return measure_sharpness(
            lambda vectors, length: (
                evaluate(
                    self.engine, self.problem, self.chains.x, self._all, (vectors, length)
                ).grad
            ),
            base,
            vectors,
            n_beta=self.n_beta,
            localization=self.localization,
            guess=guess,
            max_iterations=max_iterations,
        )

    def _check(self, found: Evaluation, latest: Sharpness) -> None:
        """Measure the sharpness where the chains are now; the step is never made longer."""
        base = found.grad
        if self._partial:
            base = self._evaluate(self.chains.x, self._all).grad
        self.latest = met = self._sharpness(base, latest.vectors, self.curvature, max_iterations=5)
        self.curvature = max(self.curvature, SAFETY * met.value)
        self._set_curvature()
        self._next_check *= 2

    def _set_curvature(self) -> None:
        kappa = self.n_beta * self.curvature + self.localization
        self.integrator.set_curvature(max(kappa, 1e-12))

    def _lost(self, values: list[float], base: float) -> list[int]:
        """Chains that have left."""
        limit = base + (BLOW_UP_PER_PARAMETER * self.chains.x.shape[1] + BLOW_UP) / self.n_beta
        return [
            index
            for index, value in enumerate(values)
            if not (math.isfinite(value) and value <= limit)
        ]

    def _restart(self, lost: list[int]) -> bool:
        """Begin again with a shorter step; or give the lost chains up. True if begun again."""
        fresh = [index for index in lost if self.alive[index]]
        self.num_resets += len(fresh)
        if fresh and self.adaptive and self.num_restarts < MAX_RESTARTS:
            self.num_restarts += 1
            self.warm = False
            self.curvature *= RESTART_FACTOR
            self._set_curvature()
            self.record = Recorder()
            self._next_check = FIRST_CHECK
            self.integrator.start(self.chains, self._generator)
            return True
        if fresh:  # their earlier draws are in these sums
            self.record.terms.clear()
        for index in lost:
            self.alive[index] = False
            self.chains.x[index] = 0.0
            self.chains.velocity[index] = 0.0
        return False


class OneByOne(Run):
    """Chains one after another, each from w* to its last draw; there is the state of one only.

    The sharpness is shared: each chain begins with the shortest step that one before it needed,
    and none is begun again because a later one blew up. A chain that is over cannot be drawn
    further, so for more draws all begin again. A deadline is shared out among them.

    Args:
        problem: What is sampled.
        num_chains: Chains.
        deadline: When to stop, on the monotonic clock.
        **settings: As for `Run`.
    """

    def __init__(self, problem: Problem, *args: Any, num_chains: int, **settings: Any) -> None:
        super().__init__(problem, *args, num_chains=1, **settings)
        self._num_chains = num_chains
        self._last = self.deadline

    def resume(self, displacement: Tensor, heat: float) -> None:
        """Each chain starts at w*: the earlier ones are gone."""

    def extend(self, num_draws: int) -> None:
        """Draw `num_draws` of each chain, or as many as the deadline leaves to the first."""
        records, alive = [], []
        for chain in range(self._num_chains):
            self.record, self.alive = Recorder(), [True]
            self.num_restarts, self._next_check = 0, FIRST_CHECK
            now = time.monotonic()
            self.deadline = now + (self._last - now) / (self._num_chains - chain)
            self.integrator.start(self.chains, self._generator)
            super().extend(num_draws)
            records.append(self.record)
            alive += self.alive
        self.record, self.alive = _side_by_side(records, alive), alive


def _side_by_side(records: Sequence[Recorder], alive: Sequence[bool]) -> Recorder:
    """One record of chains that ran alone, as long as the shortest that lived.

    What a lost chain did not draw is NaN.
    """
    living = [record for record, lived in zip(records, alive, strict=True) if lived] or records
    length = min(map(len, living))
    virials = [dict(record.virials) for record in records]
    missing = torch.full_like(records[0].virials[0][1], math.nan)
    joined = Recorder()
    for draw in range(length):
        drawn = [draw < len(record) for record in records]
        pairs = list(zip(records, drawn, strict=True))
        joined.losses.append([r.losses[draw][0] if there else math.nan for r, there in pairs])
        joined.baselines.append([r.baselines[draw] if there else math.nan for r, there in pairs])
        if draw % VIRIAL_EVERY == 0:
            joined.virials.append((draw, torch.cat([v.get(draw, missing) for v in virials])))
    joined.terms = [sums for record in living for sums in record.terms]
    return joined
