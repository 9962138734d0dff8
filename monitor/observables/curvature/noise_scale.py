"""Gradient noise scale: how many samples a batch needs before their noise no longer matters."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext, MicroBatches, StepRecord
from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.curvature.hessian import marked
from phasewatch.monitor.observables.curvature.krylov import forwards_to_pose, hessian_of
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.observables.work import of_probe
from phasewatch.monitor.sampling.batches import describe, leading_size
from phasewatch.monitor.sampling.engine_choice import working_loop
from phasewatch.monitor.sampling.memory_budget import FREE_SHARE, free_bytes, loop_bytes, mebibytes
from phasewatch.monitor.sampling.posterior import Problem, pose

FEWEST = 4
"""Steps, or gradients of the probe, below which nothing is said of the error."""

CHUNK = 2**20
"""Entries of gradients that are taken to double precision at a time."""


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
            working_loop(_affordable(pose(replace(context, batches=tuple(parts)))))
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
        micro = None if self._source == "probe" else _usable(context.record)
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
        micro = None if self._source == "probe" else _usable(context.record)
        if micro is not None and context.record is not None:
            found = noise_and_signal(context.record.gradient_norm, micro, context.n_data)
            self._seen.append(found)
            noise, signal = np.array(self._seen).T
            without = np.stack([_left_out(noise), _left_out(signal)])
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
            parts, size = _parts(context, self._num_gradients)
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
        products = _products(_affordable(problem))
        own, total = np.diag(products), products.sum()
        n_data = context.n_data
        noise, signal = _u_statistics(own.sum(), total, len(own), size, n_data)
        # Without gradient i: its own square leaves the first, its products leave the second.
        squares, totals = own.sum() - own, total - 2 * products.sum(axis=1) + own
        without = np.stack(_u_statistics(squares, totals, len(own) - 1, size, n_data))
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


def noise_and_signal(
    gradient_norm: Tensor, micro: MicroBatches, n_data: int | None = None
) -> tuple[float, float]:
    """Unbiased S and |G|² of one accumulated step, in units of the step's own gradient.

    Args:
        gradient_norm: Norm of the accumulated gradient, the mean of the micro-batches'.
        micro: What it was accumulated from; its first norm is that of a k-th of its gradient.
        n_data: Samples that they were drawn from without replacement; None for no end of them.
    """
    num = len(micro.num_samples)
    small = (num * float(micro.first_norm)) ** 2
    big = float(gradient_norm) ** 2
    small_share = 1.0 / micro.num_samples[0]
    big_share = sum(1.0 / size for size in micro.num_samples) / num**2 / micro.num_replicas
    noise = (small - big) / (small_share - big_share)
    return noise, big - noise * (big_share - _share_of(n_data))


def _share_of(n_data: int | None) -> float:
    return 1.0 / n_data if n_data else 0.0


def _usable(record: StepRecord | None) -> MicroBatches | None:
    micro = None if record is None else record.micro_batches
    if record is None or micro is None or len(micro.num_samples) < 2 or 0 in micro.num_samples:
        return None
    # A gradient scaler skips a step that overflowed; its norms are not numbers.
    finite = torch.isfinite(record.gradient_norm) & torch.isfinite(micro.first_norm)
    return micro if bool(finite.all()) else None


def _left_out(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of all but one."""
    means: NDArray[np.float64] = (values.sum() - values) / max(len(values) - 1, 1)
    return means


def _u_statistics(
    squares: Any, total: Any, num: int, size: int, n_data: int | None
) -> tuple[Any, Any]:
    """S and |G|² from Σ |g_i|² and |Σ g_i|², for `num` gradients of `size` samples each."""
    spread = (squares - total / num) / (num - 1)
    noise = size * spread
    return noise, total / num**2 - noise * (1.0 / (num * size) - _share_of(n_data))


def _parts(context: MeasureContext, num_wanted: int) -> tuple[list[Any], int]:
    """The probe in at most so many parts of one size, and that size.

    Raises:
        RefusedError: It cannot be cut.
    """
    parts: Sequence[Any] = context.batches
    if 0 < len(parts) < num_wanted:
        share = math.ceil(num_wanted / len(parts))
        parts = [part for batch in parts for part in _cut(batch, share)]
    sizes = [leading_size(part) for part in parts]
    alike = [part for part, size in zip(parts, sizes, strict=True) if size == sizes[0]]
    return alike[:num_wanted], sizes[0] if sizes else 0


def _affordable(problem: Problem) -> Problem:
    """The same problem.

    Raises:
        RefusedError: There is no memory for the gradients of its batches.
    """
    needed = loop_bytes(problem, 1) + len(problem.batches) * problem.state_bytes
    limit = int(FREE_SHARE * free_bytes(problem.device))
    if needed > limit:
        raise RefusedError(
            f"the gradient noise needs {mebibytes(needed)} for {len(problem.batches)} gradients, "
            f"and may take {mebibytes(limit)}; set num_gradients lower"
        )
    return problem


def _cut(batch: Any, num_parts: int) -> list[Any]:
    """A batch in at most so many parts of one size; what is left over is dropped."""
    total = leading_size(batch)
    size = max(total // num_parts, 1)
    return [_rows(batch, total, first, size) for first in range(0, total - size + 1, size)]


def _rows(data: Any, total: int, first: int, size: int) -> Any:
    if isinstance(data, Tensor):
        cut = data.ndim > 0 and data.shape[0] == total
        return data[first : first + size] if cut else data
    if isinstance(data, Mapping):
        return {key: _rows(value, total, first, size) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(_rows(item, total, first, size) for item in data))
    if isinstance(data, (list, tuple)):
        return type(data)(_rows(item, total, first, size) for item in data)
    if hasattr(data, "__dict__"):
        raise RefusedError(
            f"the gradient noise cannot cut a probe batch ({describe(data)}) into parts; give the "
            "probe in many small batches (probe.batch_size)"
        )
    return data


def _products(problem: Problem) -> NDArray[np.float64]:
    """g_i · g_j of the gradients of all batches, shape (n, n), in double precision."""
    loop = working_loop(problem)
    x = problem.displacements(1)
    gradients = torch.cat([loop.batch(x, index)[1] for index in range(len(problem.batches))])
    products = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for part in gradients.split(CHUNK, dim=1):
        wide = part.double()
        products += (wide @ wide.T).cpu()
    found: NDArray[np.float64] = products.numpy()
    return found
