"""Lottery tickets: how the magnitude mask of a network moves, and what the kept weights weigh.

The mask keeps the share s of the weights that is largest in magnitude, over all weight matrices
together: with k = ⌊(1 − s)N⌋, those above the k-th smallest (Frankle and Carbin 2019, arXiv
1803.03635). Of more than `LARGEST` weights every j-th is looked at: the values are then estimates.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.types import Cost, MeasureContext, Observation, Work
from phasewatch.monitor.observables.evaluation import device_of, finite
from phasewatch.monitor.observables.weights.norms import observed, widened
from phasewatch.monitor.observables.work import SELECTED, reads
from phasewatch.monitor.sampling.restrictions import names_of

LARGEST = 2**23
"""Weights that are ranked at most: 1 MB for a mask, some 150 ms on one CPU core."""

KEEP = 0.4
"""Share of the weights that a ticket keeps: that of Minegishi et al."""

MINEGISHI = "Minegishi et al. 2023, arXiv 2310.19470, section 3"


def magnitude_mask(sizes: Tensor, keep: float) -> Tensor:
    """True where a size is above the k-th smallest of them, k = ⌊(1 − keep)N⌋.

    Where several are as large as the k-th smallest, none of them is kept.

    Args:
        sizes: Magnitudes, shape (N,).
        keep: s, the share to keep.
    """
    pruned = math.floor(round((1.0 - keep) * sizes.numel(), 6))  # (1 - 0.9) * 10 is 0.9999…
    if pruned == 0:
        return torch.ones_like(sizes, dtype=torch.bool)
    return sizes > torch.kthvalue(sizes, pruned).values


def jaccard(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """|A ∩ B| / |A ∪ B|; NaN of two empty masks."""
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else math.nan


def chance_level(keep: float) -> float:
    """Jaccard overlap of two random masks that keep the share s: s/(2 − s)."""
    return keep / (2.0 - keep)


def check_share(keep: float) -> float:
    """The same number.

    Raises:
        ConfigError: It is no share that leaves something and prunes something.
    """
    if not 0.0 < keep < 1.0:
        raise ConfigError(f"keep is {keep!r}; it must be a share of the weights, in (0, 1)")
    return keep


class _Masked:
    """Checks its arguments, and finds the weights that are ranked."""

    def __init__(self, keep: float, parameters: str | Sequence[str] | None) -> None:
        self._keep = check_share(keep)
        self._parameters = parameters

    def check(self, context: MeasureContext) -> None:
        """Refuse a model without trainable weight matrices.

        Raises:
            RefusedError: It has none, or `parameters` names none of them.
        """
        self._names(context)

    def _num_ranked(self, context: MeasureContext) -> float:
        """Weights that are ranked."""
        total = sum(context.params[name].numel() for name in self._names(context))
        return total / _stride(total)

    def _names(self, context: MeasureContext) -> list[str]:
        matrices = [name for name, p in context.params.items() if p.dim() >= 2]
        if not matrices:
            raise RefusedError(
                "looked for trainable parameters of two or more dimensions; the model has none, so "
                "there is nothing a ticket could prune"
            )
        return names_of(matrices, self._parameters)

    def _sizes(self, context: MeasureContext) -> tuple[Tensor, int]:
        """Magnitudes of the ranked weights, and which share of all they are: one in so many."""
        tensors = [widened(context.params[name]) for name in self._names(context)]
        every = _stride(sum(t.numel() for t in tensors))
        position, parts = 0, []
        for tensor in tensors:
            picked = tensor.reshape(-1)[-position % every :: every]
            parts.append(picked.abs().to(device_of(context)))
            position += tensor.numel()
        return finite(torch.cat(parts), "a weight"), every


def _stride(total: int) -> int:
    """Every how manieth weight is looked at: a prime, so as not to stay in some columns."""
    every = -(-total // LARGEST)
    while any(every % factor == 0 for factor in range(2, math.isqrt(every) + 1)):
        every += 1
    return every


_MASKS = ("previous", "reference")


@dataclass(frozen=True, slots=True)
class _Mask:
    step: int
    bits: NDArray[np.bool_]

    def comparable(self, other: _Mask) -> bool:
        return self.bits.shape == other.bits.shape

    def state_dict(self) -> dict[str, Any]:
        packed = np.packbits(self.bits).tobytes()
        return {
            "step": self.step,
            "num": len(self.bits),
            "bits": base64.b64encode(packed).decode("ascii"),
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> _Mask:
        packed = np.frombuffer(base64.b64decode(state["bits"]), dtype=np.uint8)
        bits = np.unpackbits(packed, count=int(state["num"])).astype(np.bool_)
        return cls(int(state["step"]), bits)


class MaskOverlap(_Masked):
    """Jaccard overlap of the magnitude mask with that of the last measurement, and of a reference.

    With A(t) the set of weights that the mask keeps at step t,

        J(t) = |A(t) ∩ A(t − Δ)| / |A(t) ∪ A(t − Δ)|,

    dimensionless, 1 where the ticket stands still. Δ is the distance of two measurements: give it
    an `every_n_steps` of its own where values are to be compared. "mask_overlap/reference" is the
    overlap with the mask of a fixed step, "mask_overlap/chance" that of two random masks,
    s/(2 − s). The paper prunes all weights of a network without biases; here that is: all trainable
    parameters of two or more dimensions, ranked together. A checkpoint grows by three bits
    for each ranked weight, 2.8 MB at most. Of more than 2²³ weights one in j is ranked, and the
    overlap has the standard error of a share, √(J(1 − J)/|A ∪ B|).

    Args:
        keep: s, the share of the weights that the mask keeps.
        reference: Step of the reference mask: the first measurement at or after it.
        parameters: Names or shell patterns of the matrices that are ranked; None is all.

    Raises:
        ConfigError: `keep` is no share.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
        >>> overlap = MaskOverlap(keep=0.5)
        >>> _ = measure_once(overlap, model, step=1)
        >>> _ = model.weight.data.copy_(torch.tensor([[4.0, 1.0, 2.0, 3.0]]))
        >>> found = measure_once(overlap, model, step=2)
        >>> found[0].name, round(found[0].value, 3)  # one of three
        ('mask_overlap', 0.333)
    """

    name = "mask_overlap"
    unit = "1"
    cost = Cost.WEIGHTS
    reads_live = True
    needs = "trainable weight matrices"
    source = MINEGISHI
    compares_steps = True
    streams: ClassVar = {"mask_overlap": SUPPORTING}

    def __init__(
        self,
        keep: float = KEEP,
        reference: int = 0,
        parameters: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(keep, parameters)
        self._reference_step = reference
        self._previous: _Mask | None = None
        self._reference: _Mask | None = None

    def work(self, context: MeasureContext) -> Work:
        """The ranking, and two comparisons of masks."""
        return reads(context, (SELECTED + 10.0) * self._num_ranked(context))

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Overlaps with the masks that were kept: none before the second measurement.

        Raises:
            MeasurementError: A weight is not finite.
        """
        sizes, every = self._sizes(context)
        mask = _Mask(context.step, magnitude_mask(sizes, self._keep).cpu().numpy())
        if self._reference is not None and not mask.comparable(self._reference):
            self._reference = None
        result = []
        for name, other in (
            (self.name, self._previous),
            (f"{self.name}/reference", self._reference),
        ):
            if other is None or other.step >= mask.step or not mask.comparable(other):
                continue
            value = jaccard(mask.bits, other.bits)
            error = _share_error(value, mask.bits, other.bits) if every > 1 else None
            result.append(observed(context, name, self.unit, value, error))
        level = chance_level(self._keep)
        result.append(observed(context, f"{self.name}/chance", self.unit, level))
        self._previous = mask
        if self._reference is None and mask.step >= self._reference_step:
            self._reference = mask
        return result

    def state_dict(self) -> dict[str, Any]:
        """The two masks, a bit for each weight, and the share they keep."""
        kept = zip(_MASKS, (self._previous, self._reference), strict=True)
        masks = {name: mask.state_dict() for name, mask in kept if mask is not None}
        return {"keep": self._keep, **masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; masks of another share start afresh."""
        same = state.get("keep") == self._keep
        found = {name: _Mask.restored(state[name]) for name in _MASKS if same and name in state}
        self._previous, self._reference = (found.get(name) for name in _MASKS)


def _share_error(value: float, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    union = max(int(np.count_nonzero(first | second)), 1)
    return math.sqrt(value * (1.0 - value) / union)


class KeptWeights(_Masked):
    """L1 and L2 norms of the weights that the magnitude mask keeps, and of those it prunes.

    With m_i = 1 where weight i is kept, "kept_weights" is (Σ m_i w_i²)^½; "/l1_kept" Σ m_i |w_i|;
    "/l1_pruned" and "/l2_pruned" the same of 1 − m; "/l1" and "/l2" of all ranked weights; in units
    of a weight. "/sparsity" is the share pruned: 1 − s, or more where sizes are equal at the edge.
    Which weights are ranked, and what is done with many, is as for `MaskOverlap`; sums over a
    sample are scaled to all weights and carry the standard error of a sum over a random sample.

    Args:
        keep: s, the share of the weights that the mask keeps.
        parameters: Names or shell patterns of the matrices that are ranked; None is all.

    Raises:
        ConfigError: `keep` is no share.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
        >>> found = measure_once(KeptWeights(keep=0.5), model)
        >>> found[0].name, found[0].value
        ('kept_weights', 5.0)
    """

    name = "kept_weights"
    unit = "weight"
    cost = Cost.WEIGHTS
    reads_live = True
    needs = "trainable weight matrices"
    source = MINEGISHI
    streams: ClassVar = {"kept_weights": SUPPORTING}

    def __init__(self, keep: float = KEEP, parameters: str | Sequence[str] | None = None) -> None:
        super().__init__(keep, parameters)

    def work(self, context: MeasureContext) -> Work:
        """The ranking, and six norms of what is kept and pruned."""
        return reads(context, (SELECTED + 24.0) * self._num_ranked(context))

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Norms at w*, the L2 norm of what is kept first.

        Raises:
            MeasurementError: A weight is not finite.
        """
        sizes, every = self._sizes(context)
        kept = magnitude_mask(sizes, self._keep)
        sizes = sizes.to(torch.promote_types(sizes.dtype, torch.float32))
        parts = {"kept": sizes * kept, "pruned": sizes * ~kept, "": sizes}
        result = []
        for part, values in parts.items():
            for power in (2, 1):
                norm, error = _norm(values, power, every)
                label = "_".join(filter(None, (f"/l{power}", part)))
                name = self.name + ("" if label == "/l2_kept" else label)
                result.append(observed(context, name, self.unit, norm, error))
        pruned = 1.0 - float(kept.double().mean())
        error = math.sqrt(pruned * (1.0 - pruned) / kept.numel()) if every > 1 else None
        result.append(observed(context, f"{self.name}/sparsity", "1", pruned, error))
        return result


def _norm(values: Tensor, power: int, every: int) -> tuple[float, float | None]:
    """L1 or L2 norm of all weights, from one in `every`; its standard error, if that is not all."""
    powers = values**power
    total = every * float(powers.sum())
    norm = total ** (1.0 / power)
    if every == 1:
        return norm, None
    error = every * math.sqrt(values.numel()) * float(powers.std())
    return norm, error / (power * norm ** (power - 1)) if norm else error
