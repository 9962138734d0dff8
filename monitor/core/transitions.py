"""An abrupt change of the model: its kind, its life, what saw it, and who is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from phasewatch.detectors.types import Alarm, AlarmKind


class TransitionKind(StrEnum):
    """What sort of transition, in order of precedence when several descriptions fit."""

    INSTABILITY = "instability"
    CLEANUP = "cleanup"
    CIRCUIT_FORMATION = "circuit_formation"
    GENERALISATION = "generalisation"
    MEMORISATION = "memorisation"
    SIMPLIFICATION = "simplification"
    ACQUISITION = "acquisition"
    UNCLASSIFIED = "unclassified"


class TransitionStatus(StrEnum):
    """The life of a transition: suspected, confirmed, ended; or withdrawn in hindsight."""

    SUSPECTED = "suspected"
    CONFIRMED = "confirmed"
    ENDED = "ended"
    WITHDRAWN = "withdrawn"


class HindsightVerdict(StrEnum):
    """What the full history says of a transition that was told while the run went on.

    CONFIRMED: it is there, and where it was said to be. CORRECTED: it is there, and began or ended
    elsewhere. WITHDRAWN: the history shows no abrupt change. FOUND: the history shows one where
    none stood.
    """

    CONFIRMED = "confirmed"
    CORRECTED = "corrected"
    WITHDRAWN = "withdrawn"
    FOUND = "found"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindsight:
    """The second verdict on a transition, beside the streamed one.

    Attributes:
        verdict: What the full history says.
        streamed: Status that the stream had given it; None where the stream had said nothing.
        onset_step: First step of the change in the full history; None where there is none.
        end_step: Its last step; None where there is none, or it was still going on at the end.
        score: How many times as steep the change is as what is around it; 0 where there is none.
        reason: What the verdict rests on; empty where it is that of the changes above.
    """

    verdict: HindsightVerdict
    streamed: TransitionStatus | None
    onset_step: int | None = None
    end_step: int | None = None
    score: float = 0.0
    reason: str = field(default="", compare=False)

    def __str__(self) -> str:
        """The verdict, and the steps where they are news."""
        if self.verdict in (HindsightVerdict.CONFIRMED, HindsightVerdict.WITHDRAWN):
            return self.verdict.value
        return f"{self.verdict.value}: {self.onset_step} to {self.end_step or 'the end'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """An abrupt change of the model, put together from the alarms of one or more observables.

    Attributes:
        id: uuid5 of run, lead observable and ordinal: the same after a resume.
        run: Identity of the run.
        attempt: Which fit of the run saw it (1 is the first).
        kind: What sort of transition.
        status: Where it stands in its life.
        onset_step: First step of the change: the earliest onset in the evidence, where a stream of
            few points counts only if it leads the densest by more than one of its points.
        detected_step: Step at which the first alarm was raised.
        end_step: Step at which the last detector was out of the episode; None while it lasts.
        epoch: Epoch at detection, if known.
        detected_at: Unix seconds of the detection.
        severity: Effect size: |log10(after/before)| in dex for positive streams, else the change
            relative to the larger value; of the strongest observable, norms and ratios apart. Of an
            instability the largest so far; inf where a stream stopped being a finite number.
        evidence: The alarms, by observable.
        before: Value at the onset, by observable.
        after: Value at the latest look, by observable.
        where: Parameter groups and how many times as far they moved over the transition as over an
            equal stretch before it (relative displacement), largest first.
        checkpoints: Paths of the checkpoints that were kept around it, by step.
        repeats: Further alarms of streams that are in the evidence already.
        hindsight: What the full history says of it; None before it was looked at. Onset and end
            above stay those that were streamed.
    """

    id: str
    run: str
    attempt: int
    kind: TransitionKind
    status: TransitionStatus
    onset_step: int
    detected_step: int
    end_step: int | None = None
    epoch: int | None = None
    detected_at: float
    severity: float
    evidence: Mapping[str, Alarm]
    before: Mapping[str, float]
    after: Mapping[str, float]
    where: tuple[tuple[str, float], ...] = ()
    hindsight: Hindsight | None = None
    repeats: int = 0
    checkpoints: tuple[str, ...] = ()

    @property
    def lags(self) -> dict[str, int]:
        """Steps by which each observable's onset lags that of the lead; negative where it leads.

        The lead is the observable that raised the first alarm, precursors apart. A lag is as exact
        as the coarser of the two streams is dense.
        """
        alarms = list(self.evidence.values())
        if not alarms:
            return {}
        lead = next((a for a in alarms if a.kind is not AlarmKind.PRECURSOR), alarms[0])
        return {name: a.onset_step - lead.onset_step for name, a in self.evidence.items()}

    def _repr_html_(self) -> str:
        """What a notebook shows: what was found, in the words of every other face."""
        from phasewatch.monitor.core.explanation import explain  # it needs this module

        return explain(self).html


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """A target of alerts as the store knows it.

    Attributes:
        target: Its name, which holds no secret.
        updates: Whether it is told when a transition goes on or ends.
        from_suspected: Whether it is told at the first suspicion, and not only once confirmed.
    """

    target: str
    updates: bool = False
    from_suspected: bool = False
