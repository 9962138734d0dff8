"""Running the chains: draws, sharpness checks on the way, and what happens when one blows up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phasewatch.monitor.core.types import Steps
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
from phasewatch.monitor.sampling.engine import Engine, Evaluation, evaluate
from phasewatch.monitor.sampling.integrators import Baoab, Chains, Integrator
from phasewatch.monitor.sampling.mass import APART, FIRST_UPDATE, Mass
from phasewatch.monitor.sampling.mass import EVERY as MASS_EVERY
from phasewatch.monitor.sampling.outside import descend, spread
from phasewatch.monitor.sampling.pointwise import TermSums
from phasewatch.monitor.sampling.posterior import Problem
from phasewatch.monitor.sampling.sharpness import Sharpness, measure_sharpness
from phasewatch.monitor.sampling.stopwatch import Stopwatch
from phasewatch.monitor.sampling.traces import Trace

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

TERMS_EVERY, TERM_BLOCK = 4, 16
"""Loss terms are summed at every fourth draw, in sums over sixteen: burn-in is dropped by sums."""


class Recorder:
    """What is kept of each draw.

    Attributes:
        losses: Per draw, the loss of each chain.
        baselines: Per draw, L at w* on the very same batches: one number, or one for each chain.
        virial: V of each chain.
        work: x·nβ∇L(x) of each chain.
        acceptance: min(1, r) of each chain's step.
        euler: `inflation.euler_heat`.
        noise: `inflation.noise_heat`.
        terms: Sums of the loss terms, `TERM_BLOCK` draws each.
    """

    def __init__(self) -> None:
        self.losses: list[list[float]] = []
        self.baselines: list[Any] = []
        self.virial = Trace()
        self.work = Trace()
        self.acceptance = Trace()
        self.euler = Trace()
        self.noise = Trace()
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

    @classmethod
    def beside(cls, records: Sequence[Recorder], alive: Sequence[bool]) -> Recorder:
        """One record of chains that ran alone, as long as the shortest that lived.

        What a lost chain did not draw is NaN.
        """
        living = [record for record, lived in zip(records, alive, strict=True) if lived] or records
        length = min(map(len, living))
        joined = cls()
        for draw in range(length):
            drawn = [(record, draw < len(record)) for record in records]
            joined.losses.append([r.losses[draw][0] if there else math.nan for r, there in drawn])
            joined.baselines.append(
                [r.baselines[draw] if there else math.nan for r, there in drawn]
            )
        for name in ("virial", "work", "acceptance", "euler", "noise"):
            traces = [getattr(record, name) for record in records]
            setattr(joined, name, Trace.beside(traces, length))
        joined.terms = [sums for record in living for sums in record.terms]
        return joined


class Run:
    """Some chains of one measurement.

    Args:
        problem: What is sampled.
        engine: How gradients are computed.
        integrator: How the chains move.
        n_beta: nβ.
        localization: γ.
        generator: Own generator, on the device of the weights.
        adaptive: Set the step from the measured sharpness. False where the step was given.
        num_chains: Chains.
        num_outside: How many of them, the last ones, start outside; see `outside`.
        mask: Which coordinates are sampled, shape (d,), ones and zeros; None is all.
        pick: Which batches the next step uses.
        control: Correct each minibatch by its gradient at w* (a control variate):
            ĝ(w) − ĝ(w*) + g(w*) for the gradient, and for the loss
            L̂(w) − [ĝ(w*) − g(w*)]·(w − w*). The probe's batches are fixed, so their gradients at
            w* are computed once, and kept.
        stopwatch: Says when to stop; None never does.
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
        num_outside: int = 0,
        mask: Tensor | None = None,
        pick: Callable[[], Sequence[int]] | None = None,
        control: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.problem = problem
        self.engine = engine
        self.integrator = integrator
        self.n_beta = n_beta
        self.localization = localization
        self.adaptive = adaptive
        self.stopwatch = stopwatch or Stopwatch()
        self.last_second = self.stopwatch.deadline_seconds
        self.chains = Chains.at_center(problem.displacements(num_chains))
        self.num_sampled = self.chains.x.shape[1] if mask is None else int(mask.count_nonzero())
        self.record = Recorder()
        self.alive = [True] * num_chains
        self.outside = [index >= num_chains - num_outside for index in range(num_chains)]
        self.num_resets = 0
        self.num_restarts = 0
        self.warm = False
        self.sharpness: float | None = None
        self.latest: Sharpness | None = None
        self.curvature = 0.0
        self.center_terms = torch.empty(0)
        self._mask = mask
        self._generator = generator
        self._all = range(len(problem.batches))
        self._pick = pick
        self._partial = pick is not None
        self._control = control and self._partial
        self._center_losses: list[float] = []
        self._center_grad = torch.empty(0)
        self._batch_grads: list[Tensor] = []
        self._watched: WatchedStep | None = None
        self._next_check = FIRST_CHECK
        self._caution = 1.0
        self._descent = Descent()
        self._start_excess = 0.0
        self._mass: Mass | None = None
        self._next_mass = FIRST_UPDATE
        if adaptive and isinstance(integrator, Baoab) and not self._partial:
            self._mass = Mass(self.chains.x[0], mask)

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
        at_center = self._evaluate_center()
        yield
        if self.adaptive:
            shape = self.chains.x.shape
            vectors = torch.empty_like(self.chains.x).normal_(generator=self._generator)
            if warm is not None and warm.shape == shape[1:]:
                vectors.mul_(0.1 / math.sqrt(shape[1])).add_(warm.to(vectors))
            self._restrict(vectors)
            self.latest = yield from measure_sharpness(
                lambda x: self._gradient(x, self._all),
                self.chains.x,
                at_center.grad,
                vectors,
                n_beta=self.n_beta,
                localization=self.localization,
                guess=guess,
                max_iterations=10,
            )
            self.sharpness = self.latest.value
            self.curvature = self.sharpness * self._largest_metric()
            self._set_curvature()
        self._look_downhill()
        resumed = displacement is not None and (yield from self._resume(displacement, heat))
        if not resumed:
            yield from self._start()

    def _evaluate_center(self) -> Evaluation:
        """L, its terms and its gradient at w*; the loss of each batch is the paired baseline."""
        at_center = torch.zeros_like(self.chains.x)
        if self._control:
            self._batch_grads = [
                evaluate(self.engine, self.problem, at_center, [index]).grad[0].clone()
                for index in self._all
            ]
        whole = self._restricted(evaluate(self.engine, self.problem, at_center, self._all))
        # One number for each batch: all chains are at w*, so their losses differ by rounding only.
        self._center_losses = whole.batch_losses.cpu().double().mean(dim=1).tolist()
        self._center_grad = whole.grad[0].clone()
        self.center_terms = whole.terms[0].clone()
        return whole

    def _start(self) -> Steps[None]:
        self.integrator.start(self.chains, self._generator)
        self._restrict(self.chains.velocity)
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
            lambda x: self._restricted(evaluate(self.engine, self.problem, x, self._all)),
            scale=spread(self.problem.center(), self.localization),
            center_loss=self.baseline(self._all),
            n_beta=self.n_beta,
            localization=self.localization,
            num_sampled=self.num_sampled,
            restrict=self._restrict,
            generator=self._generator,
            is_over=self.stopwatch.share_is_over(DESCENT_SHARE),
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
            self._restrict(chains.velocity)
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
        found = self._evaluate(displacement, self._all)
        yield
        ratio = float(self._virial(displacement, found.grad).mean()) / heat
        lost = self._lost(found.loss.tolist(), self.baseline(self._all))
        if lost or not 1.0 / MAX_REHEAT < ratio < MAX_REHEAT:
            return False
        torch.mul(displacement, ratio**-0.5, out=self.chains.x)
        self.integrator.refresh(self.chains, self._generator)
        self._restrict(self.chains.velocity)
        self.warm = True
        return True

    def heat(self) -> float:
        """Mean V where the chains stand."""
        x = self.chains.x
        return float(self._virial(x, self._evaluate(x, self._all).grad).mean())

    def baseline(self, indices: Sequence[int]) -> float:
        """L(w*) on these batches."""
        weights = [self.problem.weights[index] for index in indices]
        losses = [self._center_losses[index] for index in indices]
        return math.fsum(map(math.prod, zip(weights, losses, strict=True))) / math.fsum(weights)

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
        found = self._corrected(self._restricted(found), self.chains.x, indices)
        values = found.loss.tolist()
        base = self.baseline(indices)
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
                self.chains, found, self.integrator, self.n_beta, self.localization
            )
        self.integrator.advance(self.chains, found.grad, self._generator)
        self._restrict(self.chains.x)
        self._restrict(self.chains.velocity)

    def _evaluate(self, x: Tensor, indices: Sequence[int]) -> Evaluation:
        found = self._restricted(evaluate(self.engine, self.problem, x, indices))
        return self._corrected(found, x, indices)

    def _gradient(self, x: Tensor, indices: Sequence[int]) -> Tensor:
        """∇L_n of these batches at `x`, uncorrected: a correction is constant."""
        return self._restricted(evaluate(self.engine, self.problem, x, indices)).grad

    def _restricted(self, found: Evaluation) -> Evaluation:
        self._restrict(found.grad)
        return found

    def _restrict(self, vectors: Tensor) -> None:
        if self._mask is not None:
            vectors.mul_(self._mask)

    def _corrected(self, found: Evaluation, x: Tensor, indices: Sequence[int]) -> Evaluation:
        if not self._control or indices is self._all:
            return found
        total = torch.zeros_like(self._center_grad)
        for index in indices:
            total.add_(self._batch_grads[index], alpha=self.problem.weights[index])
        share = math.fsum(self.problem.weights[index] for index in indices)
        # ĝ(w*) − g(w*), shape (d,)
        correction = total.div_(share).sub_(self._center_grad)
        self._restrict(correction)
        return replace(found, loss=found.loss - x @ correction, grad=found.grad.sub_(correction))

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
            record.virial.add(draw, self._virial(x, found.grad))
            record.work.add(draw, self._work(x, found.grad))
            heat = euler_heat(
                x,
                found.grad,
                self.integrator,
                self.chains,
                n_beta=self.n_beta,
                pull=self.localization,
            )
            if heat is not None:
                record.euler.add(draw, heat)
        if self._partial and draw % NOISE_EVERY == 0:
            record.noise.add(draw, self._noise_heat(found, indices))
        # Single loss terms exist where a batch gives more than one number.
        if draw % TERMS_EVERY == 0 and not self._partial and found.terms.shape[1] > len(self._all):
            self._keep_terms(draw, found.terms)

    def _noise_heat(self, found: Evaluation, indices: Sequence[int]) -> Tensor:
        """Look at the minibatch noise: the same points on other batches."""
        rest = [index for index in self._all if index not in indices]
        device = self._generator.device
        order = torch.randperm(len(rest), generator=self._generator, device=device).tolist()
        others = [rest[place] for place in order[: len(indices)]]
        gap = found.grad - self._evaluate(self.chains.x, others).grad
        share = noise_share(len(indices), len(others), len(self._all))
        return noise_heat(gap, self.integrator, self.chains, n_beta=self.n_beta, share=share)

    def _keep_terms(self, draw: int, terms: Tensor) -> None:
        sums = self.record.terms
        if not sums or draw - sums[-1].first >= TERM_BLOCK:
            sums.append(TermSums(draw, terms.shape[1], terms))
        sums[-1].add(terms[self.alive] - self.center_terms)

    def _virial(self, x: Tensor, grad: Tensor) -> Tensor:
        """V = x·(nβ∇L + γx)/d of each chain."""
        pull: Tensor = torch.linalg.vecdot(x, x) * self.localization
        return (self._work(x, grad) + pull) / self.num_sampled

    def _work(self, x: Tensor, grad: Tensor) -> Tensor:
        """x·nβ∇L of each chain."""
        work: Tensor = torch.linalg.vecdot(x, grad) * self.n_beta
        return work

    # -- what the draws say ------------------------------------------------------------------

    def inflation(self, burnin: int) -> Inflation:
        """Predicted excess of λ̂ over its value for ε → 0 and the whole probe."""
        record = self.record
        return predict(record.euler, record.noise, burnin, self.alive, minibatch=self._partial)

    def descent(self) -> Descent:
        """How far the loss falls from w* along its gradient."""
        return self._descent

    def _look_downhill(self) -> None:
        """The curvature along the gradient at w*, by a difference over the thermal length."""
        norm = float(self._center_grad.norm())
        if not norm > 0.0 or self.sharpness is None:
            self._descent = Descent(norm)
            return
        kappa = max(self.n_beta * self.sharpness + self.localization, 1e-30)
        length = 1.0 / math.sqrt(kappa)
        ahead = torch.zeros_like(self.chains.x).add_(self._center_grad, alpha=-length / norm)
        slope = float(self._gradient(ahead, self._all)[0] @ self._center_grad) / norm
        bend = self.n_beta * (norm - slope) / length + self.localization
        fall = (self.n_beta * norm) ** 2 / (2 * bend) if bend > 0.0 else math.inf
        self._descent = Descent(norm, fall)

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
        if self._control:
            base = self._gradient(self.chains.x, indices)
        self.latest = met = yield from measure_sharpness(
            lambda x: self._gradient(x, indices),
            self.chains.x,
            base,
            latest.vectors,
            n_beta=self.n_beta,
            localization=self.localization,
            guess=self.curvature,
            allowed=0.0 if renewed else self.curvature,
            max_iterations=5,
            root=None if metric is None else metric.sqrt_(),
        )
        known = 0.0 if renewed else self.curvature
        self.curvature = max(known, SAFETY * met.value)
        self._set_curvature()
        self._next_check *= 2

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
        return 1.0 if metric is None else float(metric.max())

    def _lost(self, values: list[float], base: float) -> list[int]:
        """Chains that have left."""
        limit = (BLOW_UP_PER_PARAMETER * self.num_sampled + BLOW_UP) / self.n_beta
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


def extend_together(runs: Sequence[Run], num_draws: Sequence[int]) -> Steps[None]:
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
            found = evaluate(first.engine, first.problem, first.chains.x, indices)
            yield from first.receive(found, indices, wanted[0][1])
            del found  # before the next one is taken
            yield
            continue
        x = torch.cat([run.chains.x for run, _ in wanted])
        found = evaluate(first.engine, first.problem, x, indices)
        sizes = [len(run.alive) for run, _ in wanted]
        for (run, target), part in zip(wanted, found.split(sizes), strict=True):
            yield from run.receive(part, indices, target)
        del found
        yield


class OneByOne(Run):
    """Chains one after another, each from w* to its last draw; there is the state of one only.

    The sharpness is shared: each chain begins with the shortest step that one before it needed,
    and none is begun again because a later one blew up. A chain that is over cannot be drawn
    further, so for more draws all begin again, and none can be gone on with later. A deadline is
    shared out among them.

    Args:
        problem: What is sampled.
        num_chains: Chains.
        **settings: As for `Run`.
    """

    def __init__(
        self,
        problem: Problem,
        *args: Any,
        num_chains: int,
        num_outside: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(problem, *args, num_chains=1, **settings)
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
