"""Susceptibilities and Bayesian influence, from the draws of the chains that estimate λ̂."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.context import LossFn
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.core.responses import Influence, Susceptibility
from phasewatch.monitor.sampling.covariances import blocks, covariances, standard_errors
from phasewatch.monitor.sampling.estimate import measured
from phasewatch.monitor.sampling.restrictions import Restriction
from phasewatch.monitor.sampling.witness import Drawn, Further

WHOLE = ""
"""Name of the chains that move all weights."""

MIN_LOOKS = 8
"""Draws of each chain below which nothing is said of a covariance."""

GRAVE = (
    EstimateStatus.OK,
    EstimateStatus.UNCONVERGED,
    EstimateStatus.NEGATIVE,
    EstimateStatus.DIVERGED,
)
"""Statuses, the gravest last."""


def estimate_susceptibility(
    model: nn.Module,
    batches: Sequence[Any],
    loss_fn: LossFn,
    second_batches: Sequence[Any],
    components: Mapping[str, Restriction],
    *,
    n_samples: int,
    config: SamplerConfig | None = None,
) -> dict[str, Susceptibility]:
    """Estimate how components of `model` answer to a shift of the data towards a second data set.

    χ = −Cov[φ_C, L' − L] with φ_C = δ(w − w* outside C) (L − L(w*)); see `Susceptibility`. Each
    component has chains of its own, which move it alone and also give its refined λ̂, and one
    further group of chains moves all weights. The second data take a forward pass at every fourth
    draw. The model is measured as by `estimate_llc`: nothing of it changes.

    Losses of the second data at the draws are kept in at most 128 MiB; see `witness`.

    Args:
        model: The model at w*; see `estimate_llc`.
        batches: The probe: the data whose loss L the chains sample.
        loss_fn: `loss_fn(model, batch)` -> per-sample losses (B,), their mean, or the pair (their
            sum, their number), in nats; of both data sets.
        second_batches: The second data set: batches as `loss_fn` takes them.
        components: Parts of the weights by name, each as `parameters` of `estimate_llc`: heads by
            `attention_heads`, modules, names or patterns; None is the whole model.
        n_samples: n of the probe.
        config: How to sample; the defaults need no tuning.

    Returns:
        Susceptibilities by component, each with its error, and with the status of its chains.

    Raises:
        RefusedError: It cannot be measured safely; says why and what to do.
        MeasurementError: A loss at w* is not finite.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> y = model(x).detach()
        >>> def loss(model, batch):
        ...     return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)
        >>> parts = {"weight": "weight", "bias": "bias"}
        >>> found = estimate_susceptibility(
        ...     model, [(x, y)], loss, [(3 * x, 3 * y)], parts, n_samples=300
        ... )
        >>> found["weight"].status.value, found["weight"].value < 0.0
        ('ok', True)
    """
    if not isinstance(components, Mapping) or not components or WHOLE in components:
        raise RefusedError(
            f"components is {_shown(components)}; it must map at least one name, not the empty "
            'one, to the part of the weights it stands for, as {"attention": "blocks.*.attn.*"}'
        )
    drawn: dict[str, _Moments] = {}
    found: dict[str, Susceptibility] = {}

    def take(name: str, seen: Drawn) -> None:
        if name == WHOLE:
            drawn[name] = _Moments(seen)
        else:
            found[name] = _susceptibility(name, _Moments(seen), drawn[WHOLE])

    asked = Further("second_batches", tuple(second_batches), single=False, take=take)
    parts = {name: part for name, part in components.items() if part is not None}
    measured(
        model,
        batches,
        loss_fn,
        {WHOLE: None, **parts},
        n_samples=n_samples,
        config=config,
        further=asked,
    )
    wholes = {n: _susceptibility(n, None, drawn[WHOLE]) for n, p in components.items() if p is None}
    return {name: (wholes | found)[name] for name in components}


def estimate_influence(
    model: nn.Module,
    batches: Sequence[Any],
    loss_fn: LossFn,
    queries: Sequence[Any],
    *,
    n_samples: int,
    config: SamplerConfig | None = None,
    parameters: Restriction = None,
) -> Influence:
    """Estimate the Bayesian influence of each sample of the probe on the loss of each query.

    BIF(z_i, q) = −Cov[ℓ_i, ℓ_q] over the local posterior; see `Influence`. The losses of the probe
    are those that the chains evaluate anyway; the queries take a forward pass at every fourth
    draw. The model is measured as by `estimate_llc`: nothing of it changes.

    Losses at the draws are kept in at most 128 MiB; see `witness`.

    Args:
        model: The model at w*; see `estimate_llc`.
        batches: The probe: the samples whose influence is wanted.
        loss_fn: `loss_fn(model, batch)` -> per-sample losses (B,), in nats; of a language model
            those of its tokens, of which each is then a sample.
        queries: Batches of queries, as `loss_fn` takes them; each sample is one query.
        n_samples: n of the probe.
        config: How to sample; the defaults need no tuning.
        parameters: Restricts sampling to a part of the weights; see `estimate_llc`.

    Returns:
        A table of samples by queries with its errors, and with the status of the chains.

    Raises:
        RefusedError: It cannot be measured safely; says why and what to do.
        MeasurementError: A loss at w* is not finite.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> x = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
        >>> y = x + torch.where(torch.arange(200)[:, None] % 2 == 0, 0.5, -0.5) * x.sign()
        >>> def loss(model, batch):
        ...     return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)
        >>> query = (torch.ones(1, 1), torch.full((1, 1), 1.5))  # wants a larger weight
        >>> found = estimate_influence(model, [(x, y)], loss, [query], n_samples=200)
        >>> helps = found.values[:, 0] < 0  # and so do the samples with even numbers
        >>> found.status.value, bool(helps[::2].mean() > 0.9), bool(helps[1::2].mean() < 0.1)
        ('ok', True, True)
    """
    found: list[Influence] = []
    asked = Further(
        "queries", tuple(queries), single=True, take=lambda _, seen: found.append(_influence(seen))
    )
    measured(
        model,
        batches,
        loss_fn,
        {WHOLE: parameters},
        n_samples=n_samples,
        config=config,
        further=asked,
    )
    return found[0]


class _Moments:
    """What the chains of one component say of L and of ΔL.

    Attributes:
        seen: What was seen of them.
        phi: L − L(w*), shape (chains, records).
        mean: E[ΔL] of each term of the second data, and last of their mean; ΔL is taken from w*.
        error: Standard errors of `mean`.
        is_enough: Whether there is anything to reckon with.
    """

    def __init__(self, seen: Drawn) -> None:
        self.seen = seen
        self.estimate = seen.estimate
        self.phi = seen.probe[:, :, 0].astype(np.float64)
        self.num_looks = self.phi.shape[1]
        self.num_columns = seen.further.shape[2] + 1
        self.mean = np.full(self.num_columns, math.nan)
        self.error = np.full(self.num_columns, math.nan)
        self.is_enough = _lack(seen) is None
        if self.is_enough:
            for columns in blocks(self.num_columns, self.phi.size):
                shift = self.shift(columns)
                self.mean[columns] = shift.mean(axis=(0, 1))
                self.error[columns] = standard_errors(shift)

    def shift(self, columns: slice) -> NDArray[np.float64]:
        """ΔL of these columns at the draws, shape (chains, records, columns)."""
        further = self.seen.further
        parts = [further[:, :, columns].astype(np.float64)]
        if columns.stop == self.num_columns:
            parts.append((further.astype(np.float64) @ self.seen.weights)[:, :, None])
        shift: NDArray[np.float64] = np.concatenate(parts, axis=2) - self.phi[:, :, None]
        return shift


def _susceptibility(name: str, part: _Moments | None, whole: _Moments) -> Susceptibility:
    """χ of one component; of the whole model where there are no chains of a part."""
    own = part or whole
    value, error = np.full((2, own.num_columns), math.nan)
    held, held_error = value.copy(), error.copy()
    if own.is_enough and whole.is_enough:
        level = float(own.phi.mean())
        for columns in blocks(own.num_columns, own.phi.size):
            shift = own.shift(columns)
            together, spread = covariances(own.phi[:, :, None], shift)
            held[columns], held_error[columns] = -together[0], spread[0]
            products = own.phi[:, :, None] * (shift - whole.mean[columns])
            value[columns] = -products.mean(axis=(0, 1))
            error[columns] = np.hypot(standard_errors(products), level * whole.error[columns])
    if part is None:
        value, error = held, held_error
    seen = {"the chains of the whole model": whole.seen}
    if part is not None:
        seen[f"the chains of {name!r}"] = part.seen
    status, reason = _judged(seen)
    return Susceptibility(
        component=name,
        value=float(value[-1]),
        stderr=float(error[-1]),
        held=float(held[-1]),
        held_stderr=float(held_error[-1]),
        terms=value[:-1],
        terms_stderr=error[:-1],
        num_looks=own.num_looks,
        estimate=own.estimate,
        status=status,
        reason=reason,
    )


def _influence(seen: Drawn) -> Influence:
    num_samples, num_queries = seen.probe.shape[2], seen.further.shape[2]
    value, error = np.full((2, num_samples, num_queries), math.nan)
    sample_sd, query_sd = np.full(num_samples, math.nan), np.full(num_queries, math.nan)
    if _lack(seen) is None:
        queries = seen.further.astype(np.float64)
        value, error = covariances(seen.probe, queries)
        value = -value
        sample_sd, query_sd = _deviation(seen.probe), _deviation(queries)
    status, reason = _judged({"": seen})
    return Influence(
        values=value,
        stderr=error,
        sample_sd=sample_sd,
        query_sd=query_sd,
        num_looks=seen.probe.shape[1],
        estimate=seen.estimate,
        status=status,
        reason=reason,
    )


def _deviation(losses: NDArray[Any]) -> NDArray[np.float64]:
    flat = losses.reshape(-1, losses.shape[2])
    found: NDArray[np.float64] = flat.std(axis=0, ddof=1, dtype=np.float64)
    return found


def _lack(seen: Drawn) -> tuple[EstimateStatus, str] | None:
    """Why nothing can be reckoned from these draws; None where it can."""
    num_chains, looks = seen.probe.shape[:2]
    if num_chains == 0:
        return EstimateStatus.DIVERGED, "no chain is left"
    if looks < MIN_LOOKS:
        return EstimateStatus.UNCONVERGED, (
            f"after burn-in there are {looks} draws of each chain at which the losses were taken, "
            f"at least {MIN_LOOKS} must be; raise num_draws"
        )
    bad = [
        np.count_nonzero(~np.isfinite(part).all(axis=(0, 1))) for part in (seen.probe, seen.further)
    ]
    if any(bad):
        return EstimateStatus.DIVERGED, (
            f"{sum(bad)} losses that are finite at w* are not at all draws; raise localization, or "
            "leave these samples out"
        )
    return None


def _judged(seen: Mapping[str, Drawn]) -> tuple[EstimateStatus, str]:
    """Status and reason from those of the chains, the gravest status first.

    Args:
        seen: What was seen of the chains, by what they are called in a reason.
    """
    status, reasons = EstimateStatus.OK, []
    for name, drawn in seen.items():
        lack = _lack(drawn)
        found = [(drawn.estimate.status, drawn.estimate.reason)]
        for one, reason in [*found, lack] if lack else found:
            status = max(status, one, key=GRAVE.index)
            if one is not EstimateStatus.OK:
                reasons.append(f"{name}: {reason}" if name else reason)
    return status, "; ".join(reasons)


def _shown(value: object) -> str:
    return repr(value)[:60]
