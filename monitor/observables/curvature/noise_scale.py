"""Gradient noise scale: how many samples a batch needs before their noise no longer matters."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.curvature.gradient_parts import (
    affordable,
    equal_parts,
    inner_products,
)
from phasewatch.monitor.observables.curvature.hessian import marked
from phasewatch.monitor.observables.curvature.krylov import forwards_to_pose, hessian_of
from phasewatch.monitor.observables.curvature.noise_statistics import (
    left_out,
    noise_and_signal,
    u_statistics,
    usable,
)
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.observables.work import of_probe
from phasewatch.monitor.sampling.engine_choice import working_loop
from phasewatch.monitor.sampling.posing import pose

FEWEST = 4
"""Steps, or gradients of the probe, below which nothing is said of the error."""


class GradientNoiseScale:
    """Gradient noise scale B = tr Σ / |G|², in samples.

    G is the mean of single samples' gradients, Σ their covariance. With g_s the gradient of a small
    batch of B_s samples and g_b that of a big one of B_b,

        |G|² = (B_b |g_b|² − B_s |g_s|²) / (B_b − B_s),   S = (|g_s|² − |g_b|²) / (1/B_s − 1/B_b),

    unbiased for |G|² and tr Σ; each is averaged before the ratio B = S̄ / Ḡ² is taken. The error is
    that of a ratio, from a jackknife. S and |G|² are given beside it, as
    "gradient_noise_scale/noise" and "gradient_noise_scale/signal".

    Where a step accumulates its gradient over micro-batches, the first of them is the small batch
    and the whole step the big one: two norms, no further pass. They are averaged over the last
    `window` steps that were measured. Micro-batches of unequal size b_1 … b_k count as
    1/B_b = Σ_j 1/b_j / k². With several processes, the small batch is one process's own, before the
    gradients are averaged. Where nothing is accumulated, each process's gradient could only be seen
    by a hook in the reduction, which would touch training: then, as without accumulation on one
    process, the gradients of parts of the probe are taken, in the probe's mode, at the cost of
    one each; S and |G|² are then the U-statistics of these gradients, of which the above is the
    mean over all ways to choose one of them as the small batch.

    Drawn without replacement from N samples, as in an epoch or a probe, the mean gradient of n of
    them has E|g_n|² = |G|² + S (1/n − 1/N), G being that of all N; so S/N is added to |G|² above
    where N is known. Without it |G|² comes out below zero where training has fitted the data.

    Samples are counted by the leading dimension of a batch's first tensor. Values are marked
    unconverged while there are fewer than four, or |G|² is not told from zero.

    Args:
        source: "training": micro-batches alone; "probe": the probe alone; "auto": the probe until
            micro-batches are seen.
        window: Measured steps that are averaged.
        num_gradients: Parts of the probe.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> x = torch.arange(1.0, 5.0)[:, None]
        >>> loss = lambda model, batch: 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)
        >>> y = torch.tensor([[2.0], [1.0], [4.0], [3.0]])
        >>> halves = [(x[:2], y[:2]), (x[2:], y[2:])]
        >>> found = measure_once(GradientNoiseScale(), model, halves, loss)
        >>> found[0].name
        'gradient_noise_scale'
    """

    name = "gradient_noise_scale"
    unit = "samples"
    cost = Cost.GRADIENT
    needs_record = True
    needs = "gradients accumulated over micro-batches, or a probe loss"
    source = "McCandlish et al. 2018, arXiv 1812.06162, app. A"
    streams: ClassVar = {"gradient_noise_scale": SUPPORTING}

    def __init__(
        self,
        source: Literal["auto", "training", "probe"] = "auto",
        window: int = 20,
        num_gradients: int = 16,
    ) -> None:
        if source not in ("auto", "training", "probe"):
            raise ConfigError(
                f'{self.name}: source is {source!r}; give "auto", "training" or "probe"'
            )
        if window < FEWEST:
            raise ConfigError(f"{self.name}: window is {window!r}; give at least {FEWEST}")
        if not FEWEST <= num_gradients <= 64:
            raise ConfigError(f"{self.name}: num_gradients is {num_gradients!r}; give 4 to 64")
        self._source = source
        self._num_gradients = num_gradients
        self._seen: deque[tuple[float, float]] = deque(maxlen=window)
        self._known_parts: tuple[Sequence[Any], list[Any], int] | None = None

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: Says what was looked for, and the way out.
        """
        if self._source == "training":
            return
        try:
            parts, _ = self._parts(context)
            # Tried part by part: the loss may not take batches of another size.
            working_loop(affordable(pose(replace(context, batches=tuple(parts)))))
        except RefusedError as error:
            raise RefusedError(
                f'{error}. Or set source="training", if steps accumulate their gradients'
            ) from error
        except MeasurementError:
            return  # a loss that is not finite now may be finite later

    def work(self, context: MeasureContext) -> Work:
        """Nothing where steps accumulate; else the gradients of the parts.

        Raises:
            RefusedError: The probe cannot be cut into parts.
        """
        micro = None if self._source == "probe" else usable(context.record)
        if micro is not None or self._source == "training" or self._seen:
            return Work()
        parts, size = self._parts(context)
        share = of_probe(context, len(parts) * size)
        gradients = share * (1.0 + 2.0 / max(len(parts), 1))
        return Work(forwards=forwards_to_pose(context), gradients=gradients)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Take what the step recorded, or gradients of the probe.

        Raises:
            RefusedError: The probe cannot be taken in parts, or there is no memory.
            MeasurementError: This step did not accumulate, where it was expected to.
        """
        micro = None if self._source == "probe" else usable(context.record)
        if micro is not None and context.record is not None:
            found = noise_and_signal(context.record.gradient_norm, micro, context.n_data)
            self._seen.append(found)
            noise, signal = np.array(self._seen).T
            without = np.stack([left_out(noise), left_out(signal)])
            return self._values(context, noise.mean(), signal.mean(), without, "steps")
        if self._source == "training" or self._seen:
            raise MeasurementError(
                f"{self.name}: looked for a step that accumulates its gradient over at least two "
                "micro-batches with one backward pass each; this one does not. Accumulate "
                "(accumulate_grad_batches=, or Watch.after_backward in a loop of your own), or set "
                'source="probe"'
            )
        return self._of_probe(context)

    def _parts(self, context: MeasureContext) -> tuple[list[Any], int]:
        """Parts of one size, and that size; cut once from the same probe.

        Raises:
            RefusedError: They are too few, or the probe cannot be cut.
        """
        if self._known_parts is None or self._known_parts[0] is not context.batches:
            parts, size = equal_parts(context, self._num_gradients)
            if 0 < len(parts) < FEWEST:
                raise RefusedError(
                    f"the gradient noise needs a probe in at least {FEWEST} parts of one size; it "
                    f"has {len(parts)}. Give a larger probe, or one in several batches "
                    "(probe.batch_size)"
                )
            self._known_parts = (context.batches, parts, size)
        return self._known_parts[1:]

    def _of_probe(self, context: MeasureContext) -> list[Observation]:
        parts, size = self._parts(context)
        whole = hessian_of(context).problem
        equal = (1.0 / len(parts),) * len(parts)
        problem = replace(whole, batches=tuple(parts), weights=equal)
        products = inner_products(affordable(problem))
        own, total = np.diag(products), products.sum()
        n_data = context.n_data
        noise, signal = u_statistics(own.sum(), total, len(own), size, n_data)
        # Without gradient i: its own square leaves the first, its products leave the second.
        squares, totals = own.sum() - own, total - 2 * products.sum(axis=1) + own
        without = np.stack(u_statistics(squares, totals, len(own) - 1, size, n_data))
        # What is left of the data is all that chance can still change of |G|².
        left = 1.0 if n_data is None else max(1.0 - len(own) * size / n_data, 0.0)
        return self._values(context, noise, signal, without, "gradients", left)

    def _values(
        self,
        context: MeasureContext,
        noise: float,
        signal: float,
        without: NDArray[np.float64],
        what: str,
        left: float = 1.0,
    ) -> list[Observation]:
        """The ratio and its parts.

        Args:
            context: The measurement's context.
            noise: S.
            signal: |G|².
            without: Both, with one of what was averaged left out at a time, shape (2, n).
            what: What was averaged.
            left: Share of the data that it did not see.
        """
        num = without.shape[1]
        covariance = (num - 1) * np.cov(without, bias=True)
        covariance *= np.outer([1.0, math.sqrt(left)], [1.0, math.sqrt(left)])
        errors = np.sqrt(np.diag(covariance))
        value = noise / signal if signal else math.inf
        slopes = np.array([1.0, -value]) / (signal or 1.0)
        error = math.sqrt(max(float(slopes @ covariance @ slopes), 0.0))
        reason = ""
        if num < FEWEST:
            reason = f"{num} {what} so far; {FEWEST} tell an error"
        elif not signal > 2 * errors[1]:
            reason = f"|G|² is {signal:.3g} ± {errors[1]:.3g}: not told from zero in {num} {what}"
        known = [float(e) if num > 1 else math.inf for e in (error, *errors)]
        return [
            marked(observed(context, self.name, self.unit, value, known[0]), reason),
            observed(context, f"{self.name}/noise", "nats²/weight²", float(noise), known[1]),
            observed(context, f"{self.name}/signal", "nats²/weight²", float(signal), known[2]),
        ]

    def state_dict(self) -> dict[str, Any]:
        """S and |G|² of the last steps."""
        return {"seen": [list(pair) for pair in self._seen]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; the mapping is not changed."""
        self._seen.clear()
        self._seen.extend((float(noise), float(signal)) for noise, signal in state["seen"])
