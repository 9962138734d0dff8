"""Acceptance: how often a Metropolis test would let the chains' steps pass.

The chains make no such test; its rate says how faithful their steps are. For a step that leaves x
with force G = ∇U(x) and arrives at x' with force G', the test compares the path with its reverse.

Langevin steps (MALA; Roberts & Tweedie 1996), in Lau's convention x' = x − (ε/2) P G + √(εP) ξ with
a diagonal metric P, held fixed over the step:

    log r = U(x) − U(x') + log q(x|x') − log q(x'|x)
          = U(x) − U(x') + ½ (x' − x)·(G + G') − (ε/8) (G'·PG' − G·PG)

BAOAB splits a step into a Hamiltonian part and friction. Friction keeps the kinetic energy's own
equilibrium, so only the Hamiltonian part counts: log r = −(ΔH − Q), Q the kinetic energy that
friction gave (the "shadow work", Sivak, Chodera & Crooks 2014). With the velocities p and q before
and after friction, x' = x + (h/2)(p + q):

    log r = U(x) − U(x') + (h/2) (p·G + q·G') + (h²/8) (|G|² − |G'|²)

All but the energies is the scheme's own (`Integrator.watch`). The acceptance is E[min(1, r)]. It is
1 for ε → 0 and, at a fixed ε, falls with √d: it judges the step of the whole state. λ̂ can be right
at a low acceptance, since BAOAB's positions are exact on a quadratic where its velocities are not.
It is a warning when it falls from one measurement to the next, not a gate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from phasewatch.monitor.sampling.engine import Evaluation
from phasewatch.monitor.sampling.integrators import Chains, Integrator

EVERY = 16
"""Draws from one watched step to the next: a watched one costs about five passes over the state."""


class WatchedStep:
    """One step from where the chains are now. It needs U itself: the whole probe, no minibatch.

    Args:
        chains: Before the step.
        found: Loss and gradient there.
        integrator: How the chains move.
        n_beta: nβ.
        localization: γ.
        total: Adds up over the processes among which coordinates are spread.
    """

    def __init__(
        self,
        chains: Chains,
        found: Evaluation,
        integrator: Integrator,
        n_beta: float,
        localization: float,
        total: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self._total = total
        self._n_beta = n_beta
        self._localization = localization
        self._energy = self._potential(chains, found)
        self._work: Callable[[Chains, Tensor], Tensor]
        self._work = integrator.watch(chains, self._force(chains, found))

    def arrive(self, chains: Chains, found: Evaluation) -> Tensor:
        """min(1, r) of each chain; call at the next points, before anything else changes."""
        work = self._total(self._work(chains, self._force(chains, found)))
        log_ratio = self._energy - self._potential(chains, found) + work
        return log_ratio.clamp_max(0.0).exp()

    def _potential(self, chains: Chains, found: Evaluation) -> Tensor:
        squared = self._total(torch.linalg.vecdot(chains.x, chains.x)).cpu().double()
        return found.loss.cpu().double() * self._n_beta + squared * (self._localization / 2)

    def _force(self, chains: Chains, found: Evaluation) -> Tensor:
        return (found.grad * self._n_beta).add_(chains.x, alpha=self._localization)
