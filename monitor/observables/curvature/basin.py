"""How broad the basin around w* is: the loss along random rays, without gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Steps, Work, run_through
from phasewatch.monitor.observables.curvature.hessian import marked
from phasewatch.monitor.observables.curvature.krylov import forwards_to_pose, hessian_of
from phasewatch.monitor.observables.sharing import Stopwatch, random_of
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.sampling.engine import plain_attention
from phasewatch.monitor.sampling.posterior import Problem
from phasewatch.monitor.sampling.probe_loss import checked_terms

NUM_RADII = 12
"""Radii on a ray, each half of the one before; one forward pass over the probe each, at most."""

USUAL_RADII = 2.4
"""So many radii of a ray are looked at where the loss rises by a tenth of a nat or so."""

MOVED = 8.0
"""Passes over the weights that it takes to stand at another place."""

RELATIVE_RADIUS = 0.1
"""Radius where none is given, as a share of ‖w*‖."""

FEWEST_RAYS = 4.0
"""So many rays must carry the volume."""


class BasinBroadness:
    """How fast the loss rises around w*, and how much volume lies below a threshold.

    With K(w) = L_n(w) − L_n(w*) and u uniform on the unit sphere,

    - "basin_broadness": E_u[K(w* + r u)], the mean rise at radius r, in nats;
    - "basin_broadness/log_volume": ln V(c), V(c) = the share of the ball of radius r in which
      K < c, by E_u[(min(r_c(u), r)/r)^d], with r_c(u) where the ray along u rises through c;
    - "basin_broadness/slope": d ln V / d ln c at c, by the difference from c/2 to 2c: for c → 0 it
      is the learning coefficient λ (up to ln ln terms; Watanabe 2009, theorem 7.1).

    Unlike −½ ln det⁺ H none needs a minimum that is not degenerate. But the expectation of
    r_c^d rests on the broadest rays, which random directions in many dimensions hardly ever meet:
    volume and slope are marked unconverged where fewer than four rays carry them (their effective
    number, (Σw)²/Σw²), as they do for all but small d; then the slope tends to d/2. The rise at a
    radius has no such trouble. Errors are the spread over rays; those of the volume a jackknife's.

    Args:
        radius: r, in units of weight; None takes a tenth of ‖w*‖.
        threshold: c, in nats.
        num_rays: Random directions.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> x = torch.arange(1.0, 5.0)[:, None]
        >>> loss = lambda model, batch: 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)
        >>> found = measure_once(BasinBroadness(), model, [(x, x)], loss)
        >>> found[0].name, found[0].value > 0
        ('basin_broadness', True)
    """

    name = "basin_broadness"
    unit = "nats"
    cost = Cost.FORWARD
    needs = "a probe loss"
    source = "volume scaling: Watanabe 2009, ch. 7; Lau et al. 2023, arXiv 2308.12108, §3"
    streams: ClassVar = {"basin_broadness": SUPPORTING}

    def __init__(
        self, radius: float | None = None, threshold: float = 0.01, num_rays: int = 16
    ) -> None:
        wrong: Mapping[str, Any] = {
            "radius": radius if radius is not None and not radius > 0 else None,
            "threshold": threshold if not threshold > 0 else None,
            "num_rays": num_rays if not 2 <= num_rays <= 64 else None,
        }
        for argument, value in wrong.items():
            if value is not None:
                allowed = "2 to 64" if argument == "num_rays" else "a number above 0"
                raise ConfigError(f"{self.name}: {argument} is {value!r}; give {allowed}")
        self._radius = radius
        self._threshold = threshold
        self._num_rays = num_rays
        self._num_losses = 0

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: Says what was looked for, and the way out.
        """
        try:
            hessian_of(context)
        except RefusedError:
            raise
        except MeasurementError:
            return  # a loss that is not finite now may be finite later

    def work(self, context: MeasureContext) -> Work:
        """As many losses as the last measurement took; before the first, as many as usual."""
        losses = self._num_losses or USUAL_RADII * self._num_rays
        return Work(
            forwards=forwards_to_pose(context) + 1.0 + losses,
            weight_passes=MOVED * losses,
        )

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Walk along the rays, within `context.deadline_seconds`.

        Raises:
            RefusedError: The loss cannot be evaluated on a copy.
            MeasurementError: The loss is not finite at w*, or no radius is known.
        """
        return run_through(self.measure_in_steps(context))

    def measure_in_steps(self, context: MeasureContext) -> Steps[list[Observation]]:
        """The same, one loss a step."""
        watch = Stopwatch()
        with watch:
            problem = hessian_of(context).problem
            base = _loss(problem, None)
        yield
        random = random_of(context, self.name)
        radius = self._radius or RELATIVE_RADIUS * float(problem.center().norm())
        if not radius > 0:
            raise MeasurementError(f"{self.name}: all weights are zero, so give radius=")
        radii = np.array([radius * 0.5**halvings for halvings in range(NUM_RADII)])
        low = 0.5 * self._threshold
        rays: list[NDArray[np.float64]] = []
        for _ in range(self._num_rays):
            if len(rays) > 1 and watch.seconds > context.deadline_seconds:
                break
            direction = _direction(random, problem)
            rises = np.full(NUM_RADII, -math.inf)  # stays where nobody looks, further in
            for index, at in enumerate(radii):
                with watch:
                    rises[index] = _loss(problem, direction * at) - base
                yield
                if rises[index] < low:
                    break
            rays.append(rises)
        self._num_losses = sum(int((ray != -math.inf).sum()) for ray in rays)
        return self._values(context, np.array(rays), radii, problem.layout.num_parameters)

    def _values(
        self,
        context: MeasureContext,
        rays: NDArray[np.float64],
        radii: NDArray[np.float64],
        num_parameters: int,
    ) -> list[Observation]:
        far = rays[:, 0]
        spread = float(far.std(ddof=1)) / math.sqrt(len(far))
        levels = self._threshold * np.array([0.5, 1.0, 2.0])
        # ln (r_c / r) of each ray, shape (3, rays).
        logs = np.array([[crossing(ray, radii, level) for ray in rays] for level in levels])
        terms = num_parameters * (logs - math.log(radii[0]))
        volume = _log_mean_exp(terms[1])
        slopes = _slope(terms)
        without = [np.delete(terms, index, axis=1) for index in range(len(rays))]
        volume_error = _jackknife([_log_mean_exp(left[1]) for left in without])
        slope_error = _jackknife([_slope(left) for left in without])
        few = min(_effective(row) for row in terms)
        reason = ""
        if few < FEWEST_RAYS:
            reason = (
                f"the volume rests on {few:.1f} of {len(rays)} rays: random directions miss the "
                f"broadest among {num_parameters:,} dimensions"
            )
        elif (terms[2] == 0.0).all():
            reason = f"the loss rises by less than {levels[2]:.3g} nats everywhere: raise radius="
        log_volume = observed(context, f"{self.name}/log_volume", "1", volume, volume_error)
        slope = observed(context, f"{self.name}/slope", "1", slopes, slope_error)
        return [
            observed(context, self.name, self.unit, float(far.mean()), spread),
            marked(log_volume, reason),
            marked(slope, reason),
        ]


def crossing(rises: NDArray[np.float64], radii: NDArray[np.float64], level: float) -> float:
    """Logarithm of the outermost radius at which the loss rises through `level`.

    Between radii the rise is taken as a power of the radius, as it is near a minimum, singular or
    not. Where it is never reached, that of the largest radius.

    Args:
        rises: Rise of the loss at each radius.
        radii: Radii, the largest first.
        level: How much, above 0.
    """
    outside = math.log(radii[0])
    above = None
    for rise, radius in zip(rises, np.log(radii), strict=True):
        if not rise < level:  # a loss that is no number lies beyond any threshold
            above, outside = rise, radius
            continue
        if above is None:
            return outside
        if rise <= 0 or not math.isfinite(above):
            return 0.5 * (outside + float(radius))
        share = math.log(level / rise) / math.log(above / rise)
        return float(radius + share * (outside - radius))
    return outside


def _loss(problem: Problem, displacement: Tensor | None) -> float:
    """L_n at w* + x."""
    with torch.no_grad(), plain_attention():
        flat = problem.center()
        if displacement is not None:
            flat += displacement
        total = 0.0
        for index, weight in enumerate(problem.weights):
            values = problem.weights_of(flat)
            terms = problem.call({**problem.constants(), **values}, problem.batch(index))
            total += weight * float(checked_terms(terms).double().mean())
    return total / sum(problem.weights)


def _direction(random: torch.Generator, problem: Problem) -> Tensor:
    """Uniform on the unit sphere, shape (d,)."""
    size = problem.layout.num_parameters
    drawn = torch.randn(
        size, generator=random, device=random.device, dtype=problem.layout.state_dtype
    )
    return drawn.div_(drawn.norm())


def _log_mean_exp(terms: NDArray[np.float64]) -> float:
    return float(np.logaddexp.reduce(terms)) - math.log(len(terms))


def _slope(terms: NDArray[np.float64]) -> float:
    """From c/2 to 2c, on logarithmic scales."""
    return (_log_mean_exp(terms[2]) - _log_mean_exp(terms[0])) / math.log(4.0)


def _effective(terms: NDArray[np.float64]) -> float:
    weights = np.exp(terms - terms.max())
    return float(weights.sum() ** 2 / (weights**2).sum())


def _jackknife(without: list[float]) -> float:
    return math.sqrt((len(without) - 1) * float(np.var(without)))
