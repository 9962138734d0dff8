"""Lottery tickets: how the magnitude mask of a network moves."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.toy_models.magnitude_masks import (
    KEEP,
    MINEGISHI,
    MaskedObservable,
    magnitude_mask,
    share_error,
)
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.observables.work import SELECTED, reads


def jaccard(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """|A ∩ B| / |A ∪ B|; NaN of two empty masks."""
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else math.nan


def chance_level(keep: float) -> float:
    """Jaccard overlap of two random masks that keep the share s: s/(2 − s)."""
    return keep / (2.0 - keep)


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


class MaskOverlap(MaskedObservable):
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
            error = share_error(value, mask.bits, other.bits) if every > 1 else None
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
