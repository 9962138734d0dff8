"""Essential dynamics: the path of a model through the space of its outputs, in few dimensions."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import MeasurementError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.evaluation import finite
from phasewatch.monitor.observables.tokens.losses import (
    LossesFn,
    all_evaluated,
    forwards_of_losses,
    losses_of,
    source_of,
)
from phasewatch.monitor.observables.tokens.trajectory import (
    COMPONENTS,
    Array,
    Fit,
    fit,
    sharp_turns,
    turns,
)
from phasewatch.monitor.observables.weights.norms import observed

WIDTH = 1024
"""Numbers kept of each measurement: of more, so many are chosen once, by a generator of their own.
They are the fixed probe tokens then; the analysis of them is exact."""


ROWS = 256
"""Measurements kept, 1 MB in all; of more, those closest in time to their neighbours go."""


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


def _packed(array: NDArray[Any]) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")


def _unpacked(text: str, width: int) -> NDArray[np.float32]:
    flat = np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)
    return flat.reshape(-1, width) if len(flat) else np.zeros((0, width), dtype=np.float32)
