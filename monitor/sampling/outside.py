"""Chains that start outside the posterior and come down into it.

Chains from w* fill the directions of the posterior one after another, stiff ones first, and λ̂ rises
from below; nothing that they share among themselves tells how far it still has to rise. Chains from
outside see it from above. They start at w* + ξ, ξ ~ N(0, I/γ): what the localization alone allows,
the posterior of no data at all. There the loss may be 10⁶ times that of the posterior, so they are
cooled: sampled at a small nβ, at which the place is an ordinary one, that is doubled every few
steps until it is the wanted one. A step may be longer at a small nβ, so soft directions move far
on the way, and each is still wider than the posterior when the cooling ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from phasewatch.monitor.core.work import Steps
from phasewatch.monitor.sampling.engine import Evaluation
from phasewatch.monitor.sampling.integrators import Chains
from phasewatch.monitor.sampling.sharpness import measure_sharpness
from phasewatch.monitor.sampling.underdamped import Baoab

STEPS, COOLING = 8, 2.0
"""Steps at one nβ, and the factor to the next. Sixteen steps brought the chains no closer for twice
the cost. A factor of 3 is a third cheaper, and left chains of a ReLU net at zero loss in another
basin, so that the sides did not meet; with 4, or 4 steps, a badly scaled net lost its chains."""

DAMPING = 0.15
"""hη on the way: heat leaves in a level, soft directions move on."""

CAUTION = 1.2
"""Factor on the sharpness met, as on the chains; four times as much after each loss of a chain."""

LOST_PER_PARAMETER, LOST = 10.0, 100.0
"""A chain is lost when U exceeds 10 d + 100 nats at the nβ of its level; it is about d there. A
step that is too long throws chains far out, where a saturated loss is flat and they would stay."""

NEARER = 0.25
"""Factor on the scale of the start after each loss of a chain: the chains came down in another
basin, or on a plateau, and tell nothing of that of w*."""

MAX_LEVELS = 40
MAX_ATTEMPTS = 4
MAX_HALVINGS = 8
"""How often a start at which the loss is not finite is drawn in by half."""


def spread(
    center: Tensor, localization: float, total: Callable[[Tensor], Tensor] = lambda values: values
) -> float:
    """Standard deviation of a start outside, of each coordinate.

    Without a localization nothing says where outside is; the size of the weights stands for it.

    Args:
        center: w*, shape (d,).
        localization: γ.
        total: Adds up over the processes among which coordinates are spread.
    """
    if localization > 0.0:
        return 1.0 / math.sqrt(localization)
    sums = total(
        torch.stack([center.double().square().sum(), center.new_tensor(len(center)).double()])
    )
    size = math.sqrt(float(sums[0] / sums[1]))
    return size or 1.0


def descend(
    chains: Chains,
    vectors: Tensor,
    evaluate: Callable[[Tensor], Evaluation],
    *,
    scale: float,
    center_loss: float,
    n_beta: float,
    localization: float,
    num_sampled: int,
    restrict: Callable[[Tensor], None],
    generator: torch.Generator,
    is_over: Callable[[], bool],
    total: Callable[[Tensor], Tensor],
    norms: Callable[[Tensor], Tensor],
) -> Steps[tuple[float, float] | None]:
    """Put chains outside and cool them to nβ; a step is one evaluation.

    Args:
        chains: To be placed; overwritten.
        vectors: Directions for the sharpness, shape (chains, d); overwritten.
        evaluate: L_n and its gradient on the whole probe at displacements.
        scale: Standard deviation of the start.
        center_loss: L_n(w*).
        n_beta: nβ.
        localization: γ.
        num_sampled: Coordinates that are sampled.
        restrict: Zeroes the others.
        generator: Own generator.
        is_over: Says when to give up.
        total: Adds up over the processes among which coordinates are spread.
        norms: Lengths of vectors, (chains, d) to (chains,), there.

    Returns:
        The sharpness of L_n and the largest K met at the end; None if no place was found, or no
        time was left: the chains are then at w*.
    """
    for attempt in range(MAX_ATTEMPTS):
        near = scale * NEARER**attempt
        if not (yield from _set_out(chains, evaluate, near, restrict, generator)):
            break
        vectors.normal_(generator=generator)
        restrict(vectors)
        found = yield from _cooled(
            chains,
            vectors,
            evaluate,
            center_loss=center_loss,
            n_beta=n_beta,
            localization=localization,
            num_sampled=num_sampled,
            caution=CAUTION * 4.0**attempt,
            restrict=restrict,
            generator=generator,
            is_over=is_over,
            total=total,
            norms=norms,
        )
        if found is not None:
            return found
        if is_over():
            break
    chains.x.zero_()
    chains.velocity.zero_()
    return None


def _set_out(
    chains: Chains,
    evaluate: Callable[[Tensor], Evaluation],
    scale: float,
    restrict: Callable[[Tensor], None],
    generator: torch.Generator,
) -> Steps[bool]:
    """Put the chains outside, where the loss is finite. False if it is so nowhere."""
    chains.x.normal_(0.0, scale, generator=generator)
    restrict(chains.x)
    for _ in range(MAX_HALVINGS):
        finite = bool(torch.isfinite(evaluate(chains.x).loss).all())
        yield
        if finite:
            chains.velocity.normal_(generator=generator)
            restrict(chains.velocity)
            return True
        chains.x.mul_(0.5)
    return False


def _cooled(
    chains: Chains,
    vectors: Tensor,
    evaluate: Callable[[Tensor], Evaluation],
    *,
    center_loss: float,
    n_beta: float,
    localization: float,
    num_sampled: int,
    caution: float,
    restrict: Callable[[Tensor], None],
    generator: torch.Generator,
    is_over: Callable[[], bool],
    total: Callable[[Tensor], Tensor],
    norms: Callable[[Tensor], Tensor],
) -> Steps[tuple[float, float] | None]:
    """Cool the chains; None if one of them was lost, or the time was over."""
    found = evaluate(chains.x)
    yield
    excess = float(found.loss.double().mean()) - center_loss
    # Where nβ' K = d/2 the chains are about as hot as their place.
    now = min(n_beta, num_sampled / 2 / max(excess, 1e-30))
    now = max(now, n_beta / COOLING**MAX_LEVELS)
    sharpness: float | None = None
    while not is_over():
        met = yield from measure_sharpness(
            lambda points: evaluate(points).grad,
            chains.x,
            found.grad,
            vectors,
            n_beta=now,
            localization=localization,
            guess=sharpness,
            max_iterations=6 if sharpness is None else 2,
            norms=norms,
        )
        sharpness = met.value
        integrator = Baoab(now, localization)
        integrator.set_curvature(max(now * caution * sharpness + localization, 1e-12))
        integrator.set_damping(DAMPING)
        for _ in range(STEPS):
            integrator.advance(chains, found.grad, generator)
            restrict(chains.x)
            restrict(chains.velocity)
            found = evaluate(chains.x)
            yield
        energies = (found.loss.double() - center_loss) * now
        energies += total(torch.linalg.vecdot(chains.x, chains.x)) * (localization / 2)
        # Not finite fails the comparison, too.
        if not bool((energies < LOST_PER_PARAMETER * num_sampled + LOST).all()):
            return None
        if now >= n_beta:
            return sharpness, float(found.loss.double().max()) - center_loss
        now = min(COOLING * now, n_beta)
    return None
