"""The LLC of a model where it stands, outside of any run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.context import LossFn
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.estimates import Estimate
from phasewatch.monitor.core.together import ALONE
from phasewatch.monitor.core.work import run_through
from phasewatch.monitor.isolation import guard, measure_context
from phasewatch.monitor.isolation.shards import shards_of
from phasewatch.monitor.sampling.measure import refined_llc_steps
from phasewatch.monitor.sampling.restrictions import Restriction, resolve
from phasewatch.monitor.sampling.witness import Further


def estimate_llc(
    model: nn.Module,
    batches: Sequence[Any],
    loss_fn: LossFn,
    *,
    n_samples: int,
    config: SamplerConfig | None = None,
    parameters: Restriction = None,
) -> Estimate:
    """Estimate the local learning coefficient of `model` where it stands.

    λ̂ = nβ (E_w[L_n(w)] − L_n(w*)) under p(w) ∝ exp(−nβ L_n(w) − γ/2 ‖w − w*‖²).

    The model is measured on a copy in eval mode. It is not changed, nor is anything else that
    training could notice: gradients, buffers, modes, global random generators. Only where the
    chains do not fit beside it do they run in the memory of its weights, which are put back bit
    for bit, also after an exception.

    A model that `fully_shard` spread over processes is measured by all of them: call it on each,
    with the same arguments. Chains run on the shards where they lie; all get the same estimate, or
    the same error.

    Args:
        model: The model at w*.
        batches: The probe: batches as `loss_fn` takes them. All of them together are one data
            set; how it is cut does not change the result, or the estimate says that it does.
            Batches of a part of the data give the data-refined coefficient of that part; compare
            parts at the same nβ.
        loss_fn: `loss_fn(model, batch)` -> per-sample losses (B,), their mean, or the pair (their
            sum, their number), in nats.
        n_samples: n, the number of terms that the loss averages over all batches.
        config: How to sample; the defaults need no tuning.
        parameters: Restricts sampling to a part of the weights, the rest stay at w*: names or
            shell patterns, modules, or masks by name; see `restrictions`.

    Returns:
        The estimate with its error, diagnostics and status. One that did not converge is marked.

    Raises:
        RefusedError: It cannot be measured safely; says why and what to do.
        MeasurementError: The loss at w* is not finite.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
        >>> batch = (x, model(x).detach())
        >>> def loss(model, batch):
        ...     return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)
        >>> estimate = estimate_llc(model, [batch], loss, n_samples=500)
        >>> estimate.status.value, abs(estimate.lambda_hat - 2.0) < 4 * estimate.lambda_stderr
        ('ok', True)
    """
    restrictions = {"": parameters}
    return estimate_refined_llc(
        model, batches, loss_fn, restrictions, n_samples=n_samples, config=config
    )[""]


def estimate_refined_llc(
    model: nn.Module,
    batches: Sequence[Any],
    loss_fn: LossFn,
    restrictions: Mapping[str, Restriction],
    *,
    n_samples: int,
    config: SamplerConfig | None = None,
) -> dict[str, Estimate]:
    """Estimate the weight-refined LLC of several parts of one model (Wang et al. 2024).

    Each part has chains of its own. Where all of them fit into memory side by side, they get their
    gradients from one vectorised call.

    Args:
        model: The model at w*; see `estimate_llc`.
        batches: The probe.
        loss_fn: `loss_fn(model, batch)`.
        restrictions: Parts by name, each as `parameters` of `estimate_llc`; None is the whole.
        n_samples: n.
        config: How to sample. The seed is that of all parts together.

    Returns:
        Estimates by name. The duration of each is its share of the whole.

    Raises:
        RefusedError: It cannot be measured safely; says why and what to do.
        MeasurementError: The loss at w* is not finite.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
        >>> batch = (x, model(x).detach())
        >>> def loss(model, batch):
        ...     return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)
        >>> parts = {"weight": "weight", "bias": "bias"}
        >>> found = estimate_refined_llc(model, [batch], loss, parts, n_samples=500)
        >>> bias = found["bias"]
        >>> abs(bias.lambda_hat - 0.5) < 4 * bias.lambda_stderr
        True
    """
    return measured(model, batches, loss_fn, restrictions, n_samples=n_samples, config=config)


def measured(
    model: nn.Module,
    batches: Sequence[Any],
    loss_fn: LossFn,
    restrictions: Mapping[str, Restriction],
    *,
    n_samples: int,
    config: SamplerConfig | None,
    further: Further | None = None,
) -> dict[str, Estimate]:
    """Parts of a model where it stands, measured on a copy within a guard.

    Args:
        model: The model at w*; see `estimate_llc`.
        batches: The probe.
        loss_fn: `loss_fn(model, batch)`.
        restrictions: Parts by name.
        n_samples: n.
        config: How to sample.
        further: What is asked for beside λ̂.

    Raises:
        RefusedError: It cannot be measured safely; says why and what to do.
        MeasurementError: The loss at w* is not finite.
    """
    config = config or SamplerConfig()
    selections = {name: resolve(model, part) for name, part in restrictions.items()}
    shards = shards_of(model)
    if shards is not None and further is not None:
        raise RefusedError(
            "the weights are spread over processes, each of which has only a part of the losses of "
            "each batch; give a model that one process holds"
        )
    with (shards or ALONE).failing(), guard(model, seed=config.seed):
        context = measure_context(
            model,
            step=0,
            loss_fn=loss_fn,
            batches=tuple(batches),
            n_samples=n_samples,
            seed=config.seed,
            lend=True,
            shards=shards,
        )
        return run_through(refined_llc_steps(context, config, selections, further=further))
