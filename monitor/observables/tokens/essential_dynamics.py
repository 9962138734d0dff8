"""Essential dynamics: the path of a model through the space of its outputs, in few dimensions."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from itertools import permutations
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from phasewatch.monitor.core.errors import MeasurementError
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.types import Cost, MeasureContext, Observation, Work
from phasewatch.monitor.observables.evaluation import finite
from phasewatch.monitor.observables.tokens.losses import (
    LossesFn,
    all_evaluated,
    forwards_of_losses,
    losses_of,
    source_of,
)
from phasewatch.monitor.observables.weights.norms import observed

Array = NDArray[np.float64]

COMPONENTS = 3
"""Components that are reported."""

WIDTH = 1024
"""Numbers kept of each measurement: of more, so many are chosen once, by a generator of their own.
They are the fixed probe tokens then; the analysis of them is exact."""

ROWS = 256
"""Measurements kept, 1 MB in all; of more, those closest in time to their neighbours go."""

OUTGROWN = 2.0
"""Components keep their order from fit to fit until one has so many times the share of variance of
the one before it. Then they are put in order anew, which their streams show as a jump."""

REACH = 0.1
"""Length of the two chords whose angle is the turn of the path, over its largest extent. What
jitters by less, such as a path that rests, does not turn."""

CLEAR = 10.0
"""The same over the scatter of the points, where that is more: the chords' directions are then
known to within 0.3 radians."""

SECOND_DIFFERENCE = 1.538 * math.sqrt(6.0)
"""Median length of the second difference of independent points in three dimensions, over their
standard deviation along each."""

SHARP = math.pi / 3
"""A turn from which on it is a turning point."""


class Fit(NamedTuple):
    """Principal components of a path.

    Attributes:
        scores: Where the path is, centred over time, shape (T, 3).
        shares: Share of the variance of each component, shape (3,).
        loadings: Unit directions, zero where there is no variance left, shape (3, D).
    """

    scores: Array
    shares: Array
    loadings: Array


def fit(rows: NDArray[Any], before: Array | None = None) -> Fit:
    """Principal components of the rows by their Gram matrix.

    With X the rows (T, D) less their mean over T: X Xᵀ = U Λ Uᵀ; scores U_k √λ_k, shares λ_k / Σλ,
    loadings Xᵀ U_k / √λ_k.

    Args:
        rows: Shape (T, D).
        before: Loadings of an earlier fit, of shape (3, D). Components are put in the order, and
            given the signs, in which they are most alike to those; see `OUTGROWN`. Without, the
            variance orders them, and no score is lower in the last row than in the first.
    """
    centred = rows.astype(np.float64)
    centred -= centred.mean(axis=0)
    gram = centred @ centred.T
    values, vectors = np.linalg.eigh(gram)
    total = float(np.trace(gram))
    scores = np.zeros((len(rows), COMPONENTS))
    loadings = np.zeros((COMPONENTS, rows.shape[1]))
    shares = np.zeros(COMPONENTS)
    for k, (value, vector) in enumerate(zip(values[::-1], vectors.T[::-1], strict=True)):
        if k == COMPONENTS or value <= len(rows) * np.finfo(np.float64).eps * total:
            break
        scores[:, k] = np.sqrt(value) * vector
        loadings[k] = centred.T @ vector / np.sqrt(value)
        shares[k] = value / total
    alike = np.zeros((COMPONENTS, COMPONENTS)) if before is None else before @ loadings.T
    every = np.arange(COMPONENTS)
    order = max(
        (np.array(p) for p in permutations(every)), key=lambda p: np.abs(alike[every, p]).sum()
    )
    if (shares[order][1:] > OUTGROWN * shares[order][:-1]).any():
        order = every
    facing = alike[np.abs(alike).argmax(axis=0), every]
    facing = np.where(facing == 0.0, scores[-1] - scores[0], facing)
    sign = np.where(facing < 0.0, -1.0, 1.0)
    return Fit((scores * sign)[:, order], shares[order], (loadings * sign[:, None])[order])


def reach(path: Array) -> float:
    """Length of the chords between which turns of a path are measured; see `REACH` and `CLEAR`."""
    extent = float(np.linalg.norm(path[:, None] - path[None, :], axis=-1).max())
    bends = np.linalg.norm(np.diff(path, n=2, axis=0), axis=-1)
    scatter = float(np.median(bends)) / SECOND_DIFFERENCE if len(bends) else 0.0
    return max(REACH * extent, CLEAR * scatter)


def turns(path: Array) -> Array:
    """Angle by which a path turns at each of its points, in radians, shape (T,).

    The angle between the chord that ends in a point and the chord that begins there. They go to the
    nearest points in time, on either side, that are out of `reach`. NaN where there is no such
    point: near both ends.
    """
    far = np.linalg.norm(path[:, None] - path[None, :], axis=-1) > reach(path)
    angles = np.full(len(path), np.nan)
    for i in range(len(path)):
        earlier, later = np.flatnonzero(far[i, :i]), np.flatnonzero(far[i, i:])
        if len(earlier) and len(later):
            came, goes = path[i] - path[earlier[-1]], path[i + later[0]] - path[i]
            cosine = came @ goes / (np.linalg.norm(came) * np.linalg.norm(goes))
            angles[i] = math.acos(min(1.0, max(-1.0, float(cosine))))
    return angles


class EssentialDynamics:
    """Principal components of the losses of fixed probe tokens over time, and where they turn.

    Row t of the matrix X holds the losses of the probe's tokens at measurement t. It is centred
    over all measurements so far and taken apart by its T×T Gram matrix (see `fit`). The fit is made
    anew at each measurement; order and signs follow those of the last.
    "essential_dynamics/score_<k>" is where the model is along component k (nats; a Euclidean length
    over tokens), and "essential_dynamics/share_<k>" its share of the variance, k from 1 to 3. Both
    are of the fit at that time: `trajectory` gives the whole path in the latest one.

    "essential_dynamics" itself is the angle in radians by which the path turns (see `turns`) at the
    latest measurement for which it is known: the path must have gone on from there by a tenth of
    its extent, and by ten times its scatter. Where it turns sharply, one stage of training may have
    ended and another begun: `turning_points` lists these.

    Choices: of more than `WIDTH` losses so many are kept, the same at each measurement; of more
    than `ROWS` measurements those that are closest to their neighbours in time go.

    Args:
        losses: `losses(model, batch)`, in nats; or anything else of one shape that describes the
            model, such as its logits. Default: the module's `probe_token_losses(batch)`, else the
            probe loss if it gives losses per sample.
        validation: Measure on the validation probe.
        name: Start of the streams' names.

    Source: Hoogland et al. 2024, arXiv 2402.02364, "essential dynamics".

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> losses = lambda model, batch: model(batch)[:, 0]
        >>> angle, batch = EssentialDynamics(losses=losses), torch.ones(4, 1)
        >>> for step, weight in enumerate([1.0, 2.0, 3.0, 4.0, 5.0]):
        ...     _ = torch.nn.init.constant_(model.weight, weight)
        ...     found = measure_once(angle, model, [batch], step=step)
        >>> [o.name for o in found][:1]
        ['essential_dynamics']
    """

    unit = "rad"
    cost = Cost.FORWARD
    needs = "losses per token or sample, not averaged, or a function of the model's outputs"
    source = "Hoogland et al. 2024, arXiv 2402.02364"
    compares_steps = True
    streams: ClassVar = {"essential_dynamics": SUPPORTING}

    def __init__(
        self,
        losses: LossesFn | None = None,
        *,
        validation: bool = False,
        name: str = "essential_dynamics",
    ) -> None:
        self.name = name
        self._losses = losses
        self._validation = validation
        self._num = 0
        self._steps: list[int] = []
        self._rows: list[NDArray[np.float32]] = []
        self._loadings: Array | None = None

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: There are no losses per token or sample.
        """
        self._outputs(context)

    def work(self, context: MeasureContext) -> Work:
        """A forward pass over the data, unless the losses of this turn are known already.

        Raises:
            RefusedError: There are no losses per token or sample.
        """
        function, _ = source_of(context, self.name, self._losses, "sample")
        return Work(forwards=forwards_of_losses(context, function, validation=self._validation))

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The turn of the path, then its scores and shares.

        Raises:
            RefusedError: There are no losses per token or sample.
            MeasurementError: One of them is not finite.
        """
        self._record(context.step, finite(self._outputs(context), f"{self.name}: a loss"))
        found = fit(np.array(self._rows), self._loadings)
        self._loadings = found.loadings
        known = turns(found.scores)
        known = known[np.isfinite(known)]
        turn = float(known[-1]) if len(known) else 0.0  # it has not turned yet
        result = [observed(context, self.name, self.unit, turn)]
        for k in range(COMPONENTS):
            score, share = float(found.scores[-1, k]), float(found.shares[k])
            result += [
                observed(context, f"{self.name}/score_{k + 1}", "nats", score),
                observed(context, f"{self.name}/share_{k + 1}", "1", share),
            ]
        return result

    def trajectory(self) -> tuple[NDArray[np.int64], Fit]:
        """Steps of the measurements kept, and the path through them.

        Raises:
            MeasurementError: Nothing was measured yet.
        """
        if not self._rows:
            raise MeasurementError(f"{self.name}: there is no path before the first measurement")
        return np.array(self._steps), fit(np.array(self._rows), self._loadings)

    def turning_points(self) -> list[tuple[int, float]]:
        """Steps at which the path turns by more than 60°, sharpest of each bend, with the angle."""
        if not self._rows:
            return []
        steps, found = self.trajectory()
        return [(int(steps[i]), angle) for i, angle in sharp_turns(found.scores)]

    def _outputs(self, context: MeasureContext) -> torch.Tensor:
        """What describes the model, as one vector, thinned to `WIDTH`."""
        if self._losses is None:
            given = losses_of(context, self.name, validation=self._validation, per="sample")
        else:
            source = f"{self.name}: losses="
            given = all_evaluated(
                context, self._losses, source, self.name, validation=self._validation
            )
        flat = torch.cat([one.reshape(-1) for one in given])
        if self._num != len(flat):  # another probe: another path
            self._num, self._steps, self._rows, self._loadings = len(flat), [], [], None
        if len(flat) <= WIDTH:
            return flat
        own = torch.Generator().manual_seed(0)
        return flat[torch.randperm(len(flat), generator=own)[:WIDTH].sort().values]

    def _record(self, step: int, row: torch.Tensor) -> None:
        while self._steps and self._steps[-1] >= step:  # measured before a resume went back
            del self._steps[-1], self._rows[-1]
        self._steps.append(step)
        self._rows.append(row.to(torch.float32).numpy())
        if len(self._steps) > ROWS:
            steps = np.array(self._steps)
            spare = 1 + int(np.argmin(steps[2:] - steps[:-2]))
            del self._steps[spare], self._rows[spare]

    def state_dict(self) -> dict[str, Any]:
        """The path so far, as plain containers."""
        loadings = np.zeros((0, 0)) if self._loadings is None else self._loadings
        return {
            "num": self._num,
            "steps": list(self._steps),
            "rows": _packed(np.array(self._rows)),
            "loadings": _packed(loadings),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._num = int(state["num"])
        self._steps = [int(step) for step in state["steps"]]
        width = min(self._num, WIDTH)
        self._rows = list(_unpacked(state["rows"], width))
        loadings = _unpacked(state["loadings"], width).astype(np.float64)
        self._loadings = loadings if len(loadings) else None


def sharp_turns(path: Array) -> list[tuple[int, float]]:
    """Points where a path turns by more than `SHARP`, and the angles; of each bend the sharpest.

    Two points are of one bend if no point between them is out of the reach of the sharper one.
    """
    angles = np.nan_to_num(turns(path), nan=0.0)
    within = reach(path)
    found = []
    while angles.max(initial=0.0) > SHARP:
        i = int(np.argmax(angles))
        found.append((i, float(angles[i])))
        away = np.linalg.norm(path - path[i], axis=-1) > within
        first = np.flatnonzero(away[:i])[-1] + 1
        last = i + np.flatnonzero(away[i:])[0]
        angles[first:last] = 0.0
    return sorted(found)


def _packed(array: NDArray[Any]) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")


def _unpacked(text: str, width: int) -> NDArray[np.float32]:
    flat = np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)
    return flat.reshape(-1, width) if len(flat) else np.zeros((0, width), dtype=np.float32)
