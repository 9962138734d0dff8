"""Running the chains: draws, sharpness checks on the way, and what happens when one blows up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from phasewatch.monitor.core.work import Steps
from phasewatch.monitor.sampling.acceptance import EVERY, WatchedStep
from phasewatch.monitor.sampling.bias import (
    NOISE_EVERY,
    Inflation,
    euler_heat,
    noise_heat,
    noise_share,
    predict,
)
from phasewatch.monitor.sampling.diagnostics import Descent
from phasewatch.monitor.sampling.engine import Evaluation
from phasewatch.monitor.sampling.integrators import Chains, Integrator
from phasewatch.monitor.sampling.landscape import Landscape
from phasewatch.monitor.sampling.mass import APART, FIRST_UPDATE, Mass
from phasewatch.monitor.sampling.mass import EVERY as MASS_EVERY
from phasewatch.monitor.sampling.outside import descend, spread
from phasewatch.monitor.sampling.pointwise import TermSums
from phasewatch.monitor.sampling.recorder import Recorder
from phasewatch.monitor.sampling.sharpness import Sharpness, measure_sharpness
from phasewatch.monitor.sampling.stopwatch import Stopwatch
from phasewatch.monitor.sampling.underdamped import Baoab
from phasewatch.monitor.sampling.witness import Witness

BLOW_UP_PER_PARAMETER, BLOW_UP = 5.0, 50.0
"""A chain has left when nβ K exceeds 5 d + 50 nats; in equilibrium it is about d/2 or less. A
*fall* of any depth is no blow-up: far from a minimum the loss really falls."""

DESCENT_SHARE = 1 / 3
"""Chains from outside come down within this share of the time that is left, or not at all: what is
left is for the draws."""

BLOW_UP_FROM_OUTSIDE = 3.0
"""Chains from outside have left when K exceeds this many times what it was at their release."""

MAX_RESTARTS = 6
RESTART_FACTOR = 4.0
"""Restarts, each with a quarter of the squared step, before a chain that still blows up is given
up."""

NEGLIGIBLE = 0.2
"""Share of γ that nβ times the curvature may be before the curvature is worth more digits."""

WARM_CHECK = 4
"""Draw of the first such check where chains go on from where earlier ones stood: they have been
there."""

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
"""Virial, slope and heat cost some passes over the state; neighbouring draws would say the same."""

TERMS_EVERY, TERM_BLOCK, SHORT = 4, 16, 64
"""Loss terms are summed at every fourth draw, in sums over sixteen: burn-in is dropped by sums. Of
the first draws, which may be all, each has its own."""


class ChainGroup:
    """Some chains of one measurement.

    Args:
        landscape: What is sampled.
        integrator: How the chains move.
        generator: Own generator, on the device of the weights, for the noise.
        common: The generator of what all processes draw alike; None is the same.
        adaptive: Set the step from the measured sharpness. False where the step was given.
        num_chains: Chains.
        num_outside: How many of them, the last ones, start outside; see `outside`.
        pick: Which batches the next step uses.
        stopwatch: Says when to stop; None never does.
        witness: What else is recorded of the draws.
    """

    def __init__(
        self,
        landscape: Landscape,
        integrator: Integrator,
        *,
        generator: torch.Generator,
        adaptive: bool,
        num_chains: int,
        num_outside: int = 0,
        pick: Callable[[], Sequence[int]] | None = None,
        stopwatch: Stopwatch | None = None,
        common: torch.Generator | None = None,
        witness: Witness | None = None,
    ) -> None:
        self.landscape = landscape
        self.integrator = integrator
        self.n_beta = landscape.n_beta
        self.localization = landscape.localization
        self.adaptive = adaptive
        self.stopwatch = stopwatch or Stopwatch()
        self.last_second = self.stopwatch.deadline_seconds
        self.chains = Chains.at_center(landscape.problem.displacements(num_chains))
        self.record = Recorder()
        self.alive = [True] * num_chains
        self.outside = [index >= num_chains - num_outside for index in range(num_chains)]
        self.num_resets = 0
        self.num_restarts = 0
        self.warm = False
        self.sharpness: float | None = None
        self.latest: Sharpness | None = None
        self.curvature = 0.0
        self.descent = Descent()
        self._generator = generator
        self._common = common or generator
        self._all = landscape.all
        self._pick = pick
        self._witness = witness
        self._partial = pick is not None
        self._watched: WatchedStep | None = None
        self._next_check = FIRST_CHECK
        self._caution = 1.0
        self._start_excess = 0.0
        self._mass: Mass | None = None
        self._next_mass = FIRST_UPDATE
        if adaptive and isinstance(integrator, Baoab) and not self._partial:
            self._mass = Mass(self.chains.x[0], landscape.mask, landscape.together)

    # -- before the first draw ---------------------------------------------------------------

    def prepare(
        self,
        warm: Tensor | None = None,
        guess: float | None = None,
        displacement: Tensor | None = None,
        heat: float = math.nan,
    ) -> Steps[None]:
        """Evaluate w* by the same engine as the chains, measure the sharpness there, and start.

        Args:
            warm: Vector of shape (d,) from an earlier measurement, near the sharpest direction.
            guess: The sharpness found then.
            displacement: Where the chains stood then; see `_resume`.
            heat: Their mean V then.
        """
        at_center = self.landscape.look_at_center(len(self.chains.x))
        yield
        if self.adaptive:
            shape = self.chains.x.shape
            vectors = torch.empty_like(self.chains.x).normal_(generator=self._generator)
            if warm is not None and warm.shape == shape[1:]:
                size = self.landscape.problem.num_parameters
                vectors.mul_(0.1 / math.sqrt(size)).add_(warm.to(vectors))
            self.landscape.restrict(vectors)
            self.latest = yield from measure_sharpness(
                lambda x: self.landscape.gradient(x, self._all),
                self.chains.x,
                at_center.grad,
                vectors,
                n_beta=self.n_beta,
                localization=self.localization,
                guess=guess,
                max_iterations=10,
                norms=self.landscape.norms,
            )
            self.sharpness = self.latest.value
            self.curvature = self.sharpness * self._largest_metric()
            self._set_curvature()
        self.descent = self.landscape.descent(self.sharpness, len(self.chains.x))
        resumed = displacement is not None and (yield from self._resume(displacement, heat))
        if not resumed:
            yield from self._start()

    def _start(self) -> Steps[None]:
        self.integrator.start(self.chains, self._generator)
        self.landscape.restrict(self.chains.velocity)
        self._watched = None
        first = len(self.outside) - sum(self.outside)
        if first < len(self.outside):
            yield from self._go_outside(slice(first, None))

    def _go_outside(self, rows: slice) -> Steps[None]:
        """Let these chains start outside, and make the step short enough for what they met."""
        chains = Chains(self.chains.x[rows], self.chains.velocity[rows])
        vectors = torch.empty_like(chains.x) if self.latest is None else self.latest.vectors[rows]
        met = yield from descend(
            chains,
            vectors,
            lambda x: self.landscape.evaluate(x, self._all),
            scale=spread(self.landscape.problem.center(), self.localization, self.landscape.total),
            center_loss=self.landscape.baseline(self._all),
            n_beta=self.n_beta,
            localization=self.localization,
            num_sampled=self.landscape.num_sampled,
            restrict=self.landscape.restrict,
            generator=self._generator,
            is_over=self.stopwatch.share_is_over(DESCENT_SHARE),
            total=self.landscape.total,
            norms=self.landscape.norms,
        )
        if met is None:
            self.outside = [False] * len(self.outside)
        else:
            sharpness, self._start_excess = met
            if self.adaptive:
                self.curvature = max(self.curvature, SAFETY * sharpness * self._largest_metric())
                self._set_curvature()
        if isinstance(self.integrator, Baoab):
            chains.velocity.normal_(generator=self._generator)
            self.landscape.restrict(chains.velocity)
        else:
            chains.velocity.zero_()

    def _resume(self, displacement: Tensor, heat: float) -> Steps[bool]:
        """Put the chains where those of an earlier measurement stood, if they fit in here.

        The landscape may have changed since. Chains that are hotter or colder in it by less than
        `MAX_REHEAT` are brought back to the heat they had, by one factor on all displacements (V
        grows with their square on a quadratic); what is further off starts at w*.

        Args:
            displacement: Where they stood, shape (chains, d).
            heat: Their mean V in the landscape of then.

        Returns:
            Whether they stand there now.
        """
        if displacement.shape != self.chains.x.shape or not heat > 0.0:
            return False
        found = self.landscape.evaluate(displacement, self._all)
        yield
        ratio = float(self.landscape.virial(displacement, found.grad).mean()) / heat
        lost = self._lost(found.loss.tolist(), self.landscape.baseline(self._all))
        if lost or not 1.0 / MAX_REHEAT < ratio < MAX_REHEAT:
            return False
        torch.mul(displacement, ratio**-0.5, out=self.chains.x)
        self.integrator.refresh(self.chains, self._generator)
        self.landscape.restrict(self.chains.velocity)
        self.warm = True
        self._next_check = WARM_CHECK
        return True

    def heat(self) -> float:
        """Mean V where the chains stand."""
        x = self.chains.x
        return float(self.landscape.virial(x, self.landscape.evaluate(x, self._all).grad).mean())

    # -- draws -------------------------------------------------------------------------------

    def extend(self, num_draws: int) -> Steps[None]:
        """Draw until there are `num_draws`, time is up, or no chain is left."""
        yield from extend_together([self], [num_draws])

    def wants(self, num_draws: int) -> bool:
        """Whether to go on to `num_draws`."""
        if len(self.record) >= num_draws or not any(self.alive):
            return False
        if len(self.record) < MIN_DRAWS:
            return True
        return self.stopwatch.seconds <= self.last_second and not self.stopwatch.over()

    def pick(self) -> Sequence[int]:
        """The batches of the next step."""
        return self._all if self._pick is None else self._pick()

    def receive(self, found: Evaluation, indices: Sequence[int], num_draws: int) -> Steps[None]:
        """Keep one draw and move on.

        Args:
            found: Loss and gradient of these batches where the chains are.
            indices: The batches.
            num_draws: Draws in the end.
        """
        found = self.landscape.seen(found, self.chains.x, indices)
        values = found.loss.tolist()
        base = self.landscape.baseline(indices)
        lost = self._lost(values, base)
        if lost and (yield from self._restart(lost)):
            return
        self._keep(values, base, found, indices)
        if self._mass is not None and len(self.record) % MASS_EVERY == 0:
            self._mass.add(self.chains.x, found.grad, self.n_beta, self.localization)
        if self.adaptive and self.latest and self._next_check == len(self.record) < num_draws:
            yield from self._check(found, indices, self.latest)
        if not self._partial and len(self.record) % EVERY == 0:
            self._watched = WatchedStep(
                self.chains,
                found,
                self.integrator,
                self.n_beta,
                self.localization,
                self.landscape.total,
            )
        self.integrator.advance(self.chains, found.grad, self._generator)
        self.landscape.restrict(self.chains.x)
        self.landscape.restrict(self.chains.velocity)

    def _keep(
        self, values: list[float], base: float, found: Evaluation, indices: Sequence[int]
    ) -> None:
        draw, record, x = len(self.record), self.record, self.chains.x
        record.losses.append(values)
        record.baselines.append(base)
        if self._watched is not None:
            record.acceptance.add(draw, self._watched.arrive(self.chains, found))
            self._watched = None
        if draw % VIRIAL_EVERY == 0:
            record.virial.add(draw, self.landscape.virial(x, found.grad))
            record.work.add(draw, self.landscape.work(x, found.grad))
            heat = euler_heat(
                x,
                found.grad,
                self.integrator,
                self.chains,
                n_beta=self.n_beta,
                pull=self.localization,
            )
            if heat is not None:
                record.euler.add(draw, self.landscape.total(heat))
        if self._partial and draw % NOISE_EVERY == 0:
            record.noise.add(draw, self._noise_heat(found, indices))
        if draw % TERMS_EVERY == 0 and not self._partial and self.landscape.has_terms:
            self._keep_terms(draw, found.terms)
        if self._witness is not None and draw % record.witness_every == 0:
            record.witnessed.add(draw, self._witness.look(x, found))
            if len(record.witnessed) > self._witness.room:
                record.witnessed.thin()
                record.witness_every *= 2

    def _noise_heat(self, found: Evaluation, indices: Sequence[int]) -> Tensor:
        """Look at the minibatch noise: the same points on other batches."""
        rest = [index for index in self._all if index not in indices]
        device = self._common.device
        order = torch.randperm(len(rest), generator=self._common, device=device).tolist()
        others = [rest[place] for place in order[: len(indices)]]
        gap = found.grad - self.landscape.evaluate(self.chains.x, others).grad
        share = noise_share(len(indices), len(others), len(self._all))
        heat = noise_heat(gap, self.integrator, self.chains, n_beta=self.n_beta, share=share)
        return self.landscape.total(heat)

    def _keep_terms(self, draw: int, terms: Tensor) -> None:
        sums = self.record.terms
        if not sums or draw < SHORT or draw - sums[-1].first >= TERM_BLOCK:
            sums.append(TermSums(draw, terms.shape[1], terms))
        sums[-1].add(terms[self.alive] - self.landscape.center_terms)

    # -- what the draws say ------------------------------------------------------------------

    def inflation(self, burnin: int) -> Inflation:
        """Predicted excess of λ̂ over its value for ε → 0 and the whole probe."""
        record = self.record
        return predict(record.euler, record.noise, burnin, self.alive, minibatch=self._partial)

    def acceptance(self, burnin: int) -> float | None:
        """Mean acceptance over the living chains; None if no step was watched."""
        value = self.record.acceptance.mean(burnin, self.alive)
        return None if math.isnan(value) else value

    # -- sharpness and blow-ups --------------------------------------------------------------

    def _check(self, found: Evaluation, indices: Sequence[int], latest: Sharpness) -> Steps[None]:
        """Measure the sharpness where the chains are now; only with a new mass may the step grow.

        It is the one that the steps meet: of this step's batches, and in the scheme's metric P,
        where it is the largest eigenvalue of √P ∇²L √P.
        """
        renewed = self._renew_mass()
        metric = self.integrator.metric(self.chains)
        base = found.grad
        if self.landscape.control:
            base = self.landscape.gradient(self.chains.x, indices)
        self.latest = met = yield from measure_sharpness(
            lambda x: self.landscape.gradient(x, indices),
            self.chains.x,
            base,
            latest.vectors,
            n_beta=self.n_beta,
            localization=self.localization,
            guess=self.curvature,
            allowed=0.0 if renewed else max(self.curvature, self._negligible()),
            max_iterations=5,
            root=None if metric is None else metric.sqrt_(),
            norms=self.landscape.norms,
        )
        known = 0.0 if renewed else self.curvature
        self.curvature = max(known, SAFETY * met.value)
        self._set_curvature()
        self._next_check *= 2

    def _negligible(self) -> float:
        """A curvature that is nothing beside the pull back to w*, which sets the step then."""
        return NEGLIGIBLE * self.localization / self.n_beta

    def _renew_mass(self) -> bool:
        """Set the metric from the forces met so far, at a few draws. Whether it was."""
        integrator = self.integrator
        if self._mass is None or not isinstance(integrator, Baoab):
            return False
        if len(self.record) < self._next_mass:
            return False
        self._next_mass *= APART
        root = self._mass.root(self.localization)
        if root is not None:
            integrator.root = root
        return root is not None

    def _set_curvature(self) -> None:
        pull = self.localization * self._largest_metric()
        kappa = self._caution * self.n_beta * self.curvature + pull
        self.integrator.set_curvature(max(kappa, 1e-12))

    def _largest_metric(self) -> float:
        metric = self.integrator.metric(self.chains)
        if metric is None:
            return 1.0
        return max(self.landscape.together.each(float(metric.max()) if metric.numel() else 0.0))

    def _lost(self, values: list[float], base: float) -> list[int]:
        """Chains that have left."""
        limit = (BLOW_UP_PER_PARAMETER * self.landscape.num_sampled + BLOW_UP) / self.n_beta
        limit = base + max(limit, BLOW_UP_FROM_OUTSIDE * self._start_excess)
        return [
            index
            for index, value in enumerate(values)
            if not (math.isfinite(value) and value <= limit)
        ]

    def _restart(self, lost: list[int]) -> Steps[bool]:
        """Begin again with a shorter step; or give the lost chains up. True if begun again."""
        fresh = [index for index in lost if self.alive[index]]
        self.num_resets += len(fresh)
        if fresh and self.adaptive and self.num_restarts < MAX_RESTARTS:
            self.num_restarts += 1
            self.warm = False
            self._caution *= RESTART_FACTOR
            self._set_curvature()
            self.record = Recorder()
            self._next_check, self._next_mass = FIRST_CHECK, FIRST_UPDATE
            yield from self._start()
            return True
        if fresh:  # their earlier draws are in these sums
            self.record.terms.clear()
        for index in lost:
            self.alive[index] = False
            self.chains.x[index] = 0.0
            self.chains.velocity[index] = 0.0
        return False


def extend_together(runs: Sequence[ChainGroup], num_draws: Sequence[int]) -> Steps[None]:
    """Draw until each run has its number of draws; all get their gradients from one call.

    A step is one draw, or one look at the sharpness.

    Args:
        runs: Runs of one problem, by one engine, that use the same batches at each step.
        num_draws: Draws that each shall have.
    """
    wanted = list(zip(runs, num_draws, strict=True))
    while wanted := [(run, target) for run, target in wanted if run.wants(target)]:
        first = wanted[0][0]
        indices = first.pick()
        if len(wanted) == 1:
            found = first.landscape.raw(first.chains.x, indices)
            yield from first.receive(found, indices, wanted[0][1])
            del found  # before the next one is taken
            yield
            continue
        x = torch.cat([run.chains.x for run, _ in wanted])
        found = first.landscape.raw(x, indices)
        sizes = [len(run.alive) for run, _ in wanted]
        for (run, target), part in zip(wanted, found.split(sizes), strict=True):
            yield from run.receive(part, indices, target)
        del found
        yield
