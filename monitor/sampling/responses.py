"""Susceptibilities and Bayesian influence, from the draws of the chains that estimate λ̂."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    wholes: list[_Whole] = []
    found: dict[str, Susceptibility] = {}

    def take(name: str, seen: Drawn) -> None:
        if name != WHOLE:
            found[name] = _susceptibility(name, seen, wholes[0])
            return
        wholes.append(_whole(seen))
        for alias, part in components.items():
            if part is None:
                found[alias] = _susceptibility(alias, seen, None)

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
    return {name: found[name] for name in components}


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


@dataclass(frozen=True, slots=True)
class _Whole:
    """What is kept of the chains that move all weights.

    Attributes:
        mean: E[ΔL] from w* on, of each term of the second data, and last of their mean.
        error: Standard errors of `mean`.
        said: What they say of themselves; see `_judged`.
    """

    mean: NDArray[np.float64]
    error: NDArray[np.float64]
    said: list[tuple[EstimateStatus, str]]


def _whole(seen: Drawn) -> _Whole:
    num = seen.further.shape[2] + 1
    mean, error = np.full((2, num), math.nan)
    if _lack(seen) is None:
        for columns in blocks(num, seen.probe.size):
            shift = _shift(seen, columns)
            mean[columns], error[columns] = shift.mean(axis=(0, 1)), standard_errors(shift)
    return _Whole(mean, error, _said(seen))


def _shift(seen: Drawn, columns: slice) -> NDArray[np.float64]:
    """ΔL of single terms of the second data, and last of their mean; from w* on.

    Args:
        seen: What was seen of some chains.
        columns: Which of them.

    Returns:
        Shape (chains, records, columns).
    """
    parts = [seen.further[:, :, columns].astype(np.float64)]
    if columns.stop > seen.further.shape[2]:
        parts.append((seen.further @ seen.weights)[:, :, None])
    shift: NDArray[np.float64] = np.concatenate(parts, axis=2) - seen.probe
    return shift


def _susceptibility(name: str, seen: Drawn, whole: _Whole | None) -> Susceptibility:
    """χ of one component.

    Args:
        name: What it is called.
        seen: What was seen of the chains that move it alone.
        whole: What is known of those that move everything; None where these do.
    """
    num = seen.further.shape[2] + 1
    value, error, held, held_error = np.full((4, num), math.nan)
    if _lack(seen) is None:
        phi = seen.probe.astype(np.float64)
        for columns in blocks(num, phi.size):
            shift = _shift(seen, columns)
            together, spread = covariances(phi, shift)
            held[columns], held_error[columns] = -together[0], spread[0]
            if whole is not None:
                products = phi * (shift - whole.mean[columns])
                value[columns] = -products.mean(axis=(0, 1))
                from_whole = float(phi.mean()) * whole.error[columns]
                error[columns] = np.hypot(standard_errors(products), from_whole)
    if whole is None:
        value, error = held, held_error
    said = [(status, f"the chains of {name!r}: {reason}") for status, reason in _said(seen)]
    if whole is not None:
        said += [(status, f"those of the whole model: {reason}") for status, reason in whole.said]
    status, reason = _judged(said)
    return Susceptibility(
        component=name,
        value=float(value[-1]),
        stderr=float(error[-1]),
        held=float(held[-1]),
        held_stderr=float(held_error[-1]),
        terms=value[:-1],
        terms_stderr=error[:-1],
        num_looks=seen.probe.shape[1],
        estimate=seen.estimate,
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
    status, reason = _judged(_said(seen))
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


def _said(seen: Drawn) -> list[tuple[EstimateStatus, str]]:
    """What speaks against these chains: a status other than OK and its reason, each time."""
    own = (seen.estimate.status, seen.estimate.reason)
    found = [own, _lack(seen)]
    return [one for one in found if one is not None and one[0] is not EstimateStatus.OK]


def _judged(said: Sequence[tuple[EstimateStatus, str]]) -> tuple[EstimateStatus, str]:
    """The gravest status, and all reasons."""
    status = max((one for one, _ in said), key=GRAVE.index, default=EstimateStatus.OK)
    return status, "; ".join(reason for _, reason in said)


def _shown(value: object) -> str:
    return repr(value)[:60]
