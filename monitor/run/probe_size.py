"""How large the probe is, and how it is cut: one batch of training first, grown while it pays.

λ̂'s error falls with the draws, and what one draw costs grows with the probe. So the probe is grown
only as far as the budget still buys the run enough measurements. How it is cut into batches makes
no difference to a mean over samples. Where it does (a loss over pairs within the batch, a batch
size that the model was written for), the batches keep the shape of training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation.probe import Probe, build_probe, num_available
from phasewatch.monitor.observables.evaluation import at_weights
from phasewatch.monitor.sampling.probe_loss import averaged

log = logging.getLogger("phasewatch")

SAME = 1e-3
"""Relative difference of two mean losses that the order of summation may make."""

MAX_KEPT_BYTES = 64 * 2**20
"""Batches are put together as long as one forward pass keeps no more than this."""


class Build(Protocol):
    """Takes the first samples of the run's probe."""

    def __call__(self, num_samples: int, batch_size: int) -> Probe:
        """So many samples, in batches of that size."""


def sized_probe(
    probe: Probe,
    build: Build,
    batch_size: int,
    num_samples: int,
    *,
    growth: Callable[[Probe], float],
    loss_of: Callable[[Any], float],
    kept_bytes: Callable[[Probe], int],
) -> Probe:
    """The largest probe that pays, cut as the loss allows.

    Args:
        probe: One batch: the first samples, as many as a batch of training has, or are wanted.
        build: Takes samples; the first n of them are the same whatever n.
        batch_size: Samples in a batch of training.
        num_samples: Samples wanted at most.
        growth: How many times as large the probe could be, for the budget.
        loss_of: Mean loss of a batch at the present weights.
        kept_bytes: What a forward pass of the probe's first batch keeps.
    """
    first = min(batch_size, num_samples)
    if first < batch_size and _depends_on_size(build, first // 2, loss_of):
        return build(batch_size, batch_size)
    wanted = _wanted(first, num_samples, growth(probe))
    if wanted <= first:
        return probe
    if _depends_on_size(build, first, loss_of):
        return build(wanted, first)
    most = max(1, MAX_KEPT_BYTES // max(1, kept_bytes(probe)))
    together = min(wanted, first * most)
    return build(wanted, wanted if together == wanted else together)


def _wanted(first: int, num_samples: int, growth: float) -> int:
    """Samples in all: the first batch, doubled while that is affordable."""
    wanted = first
    while 2 * wanted <= num_samples and 2 * wanted <= growth * first:
        wanted *= 2
    if growth * first >= num_samples:
        wanted = num_samples
    return wanted


def _depends_on_size(build: Build, size: int, loss_of: Callable[[Any], float]) -> bool:
    """Whether the mean loss of two batches is another than that of both together, or none."""
    if size < 1:
        return False
    pair = build(2 * size, size).batches
    whole = build(2 * size, 2 * size).batches
    if len(pair) != 2 or len(whole) != 1:
        return True
    try:
        apart = 0.5 * (loss_of(pair[0]) + loss_of(pair[1]))
        together = loss_of(whole[0])
    except Exception as error:
        log.debug("the loss takes batches of one size only: %s", error)
        return True
    return abs(apart - together) > SAME * max(abs(apart), abs(together))


def builder_of(source: Any, n_samples: int | None, **settings: Any) -> Build:
    """Takes samples of a source that can be read by index.

    Args:
        source: Dataset or loader.
        n_samples: Number of loss terms of all the samples that the configuration asks for, where
            the user told it; of fewer it is the same share.
        settings: For `build_probe`; among them "config".
    """
    config = settings["config"]
    full = min(config.num_samples, num_available(source))

    def build(num_samples: int, batch_size: int) -> Probe:
        own = config.model_copy(update={"num_samples": num_samples, "batch_size": batch_size})
        terms = None if n_samples is None else max(1, round(n_samples * num_samples / full))
        return build_probe(source, n_samples=terms, **settings | {"config": own})

    return build


def mean_loss(context: MeasureContext, batch: Any) -> float:
    """Mean loss of a batch at the present weights, in nats."""
    if context.loss_fn is None:
        raise RefusedError("there is no probe loss; give loss_fn=")
    return float(averaged(at_weights(context, context.loss_fn, batch)).detach().mean())
