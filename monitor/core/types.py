"""The words of the project: what travels from a measurement to an alert.

Conventions, said once. `step` is the number of optimizer steps completed, never micro-batches.
Losses are mean per-sample negative log-likelihoods in nats. `timestamp` is Unix seconds;
durations are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from phasewatch.detectors.types import Alarm, AlarmKind

if TYPE_CHECKING:
    import torch
    from torch import nn

LossFn = Callable[["nn.Module", Any], "torch.Tensor"]
"""`loss_fn(model, batch)` -> per-sample losses of shape `(B,)`, their mean, or the pair (their sum,
their number), in nats."""


class EstimateStatus(StrEnum):
    """How far a number may be trusted. Only `OK` numbers reach a detector.

    OK: finite, and every convergence check passed.
    UNCONVERGED: finite, but a convergence check failed; `reason` says which.
    DIVERGED: not finite, or the chains left the neighbourhood of w*.
    NEGATIVE: λ̂ is significantly below zero: w* is not a local minimum of the probe loss.
    """

    OK = "ok"
    UNCONVERGED = "unconverged"
    DIVERGED = "diverged"
    NEGATIVE = "negative"


class Cost(StrEnum):
    """What a measurement of an observable takes; each includes those above it.

    STEP: reads what was recorded at the optimizer step. WEIGHTS: reads the weights. FORWARD:
    forward passes over its data, no gradients. GRADIENT: tens of gradients or Hessian-vector
    products. SAMPLING: hundreds of gradients: chains.
    """

    STEP = "step"
    WEIGHTS = "weights"
    FORWARD = "forward"
    GRADIENT = "gradient"
    SAMPLING = "sampling"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one measurement takes, in evaluations of the whole probe; costs are predicted from it.

    Attributes:
        forwards: Forward passes without a gradient.
        gradients: Forward and backward passes; of chains, each chain's counts.
        hessian_products: Products of the Hessian with a vector.
        weight_passes: Passes over the weights: norms, copies, singular values by their own count.
    """

    forwards: float = 0.0
    gradients: float = 0.0
    hessian_products: float = 0.0
    weight_passes: float = 0.0


T = TypeVar("T")

Steps = Generator[None, None, T]
"""A measurement in steps of one evaluation each. After each it may be left, for ever or until
the budget has earned the next ones; its result is what the generator returns. No context manager
that changes global state (`torch.no_grad`, a kernel setting) may be open across a step: training
goes on in between."""


def run_through(steps: Steps[T]) -> T:
    """Take all steps of a measurement at once.

    Args:
        steps: The measurement.

    Returns:
        What it found.

    Example:
        >>> def halves():
        ...     yield
        ...     return 0.5
        >>> run_through(halves())
        0.5
    """
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result


class RunState(StrEnum):
    """Where a run stands.

    FINISHED: it came to its end. STOPPED: it was ended early on purpose, by early stopping, a
    pruner or the user's own control flow. INTERRUPTED: by Ctrl-C, a signal or preemption; also
    what a reader calls a run whose process is gone. FAILED: training raised an error.
    """

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


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
    """

    verdict: HindsightVerdict
    streamed: TransitionStatus | None
    onset_step: int | None = None
    end_step: int | None = None
    score: float = 0.0

    def __str__(self) -> str:
        """The verdict, and the steps where they are news."""
        if self.verdict in (HindsightVerdict.CONFIRMED, HindsightVerdict.WITHDRAWN):
            return self.verdict.value
        return f"{self.verdict.value}: {self.onset_step} to {self.end_step or 'the end'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One measurement of the local learning coefficient (LLC).

    λ̂ = nβ (E_w[L_n(w)] − L_n(w*)), the expectation under the local posterior
    p(w) ∝ exp(−nβ L_n(w) − γ/2 ‖w − w*‖²) (Lau et al. 2023, arXiv 2308.12108).

    Attributes:
        step: Optimizer step at which w* was taken.
        lambda_hat: λ̂, dimensionless.
        lambda_stderr: Standard error of `lambda_hat`.
        nu_hat: Singular fluctuation ν̂ = (β/2) Σ_i Var_w[log p(x_i|w)]; None without per-sample
            losses.
        nu_stderr: Standard error of `nu_hat`.
        functional_variance: V = Σ_i Var_w[log p(x_i|w)]; None without per-sample losses.
        waic: T_n + (β/n) V in nats a sample (Watanabe 2010); None without per-sample losses.
        waic_stderr: Standard error of `waic` from the draws.
        wbic: n·E_w[L_n(w)] in nats; None unless β = 1/log n (Watanabe 2013).
        init_loss: L_n(w*) on the probe, in nats.
        chain_loss: L_n along the chains after burn-in, shape (chains, draws), in nats.
        n_beta: nβ.
        n_samples: n, the number of terms the probe loss averages over.
        step_size: ε in Lau's convention (h² for underdamped schemes).
        localization: γ.
        n_data: Size of the training dataset, if known.
        sample_unit: What one term of the loss is: "sample", "token", ...
        counted: How the terms of each batch were counted, in words.
        noise: "" for a loss that is a function of the weights; "averaged" or "frozen" for one that
            draws random numbers.
        lambda_within: λ̂ of the chains from w* alone.
        lambda_outside: λ̂ of the chains from outside alone; NaN if there are none.
        num_chains: Chains started.
        num_draws: Kept draws of each chain.
        num_burnin: Draws of each chain that were dropped as burn-in.
        warm: Whether the chains went on from where they stood at an earlier measurement.
        rhat: Rank-normalised split R-hat of the chain losses.
        ess: Effective sample size over all chains.
        num_diverged: Chains that left and were excluded.
        num_resets: How often a chain was sent back to w*.
        virial: Mean of V = (w−w*)·(nβ∇L + γ(w−w*))/d; 1 in equilibrium.
        drift: What the last doubling of the draws changed: mean of their last half less that of
            the quarter before it, over |λ̂|.
        step_inflation: Predicted excess of `lambda_hat` from the finite step, in its units; zero
            for schemes that are exact on a quadratic. It is not subtracted.
        batch_inflation: The same from minibatch noise; zero for the whole probe.
        acceptance: Share of the chains' steps that a Metropolis test would let pass: MALA's test,
            or that of the Hamiltonian part for "baoab" and "lm"; None on minibatches.
        sharpness: Largest Hessian eigenvalue of the probe loss at w*, if measured.
        sampler: Name of the sampling scheme.
        engine: "vmap", "loop" or "inplace": how the chains were run.
        probe_mode: "eval" or "train": the mode of the measured copy.
        status: How far to trust the number.
        reason: Why the status is not OK; empty when it is.
        duration_seconds: Time the measurement took.
    """

    step: int
    lambda_hat: float
    lambda_stderr: float
    init_loss: float
    n_beta: float
    n_samples: int
    step_size: float
    localization: float
    num_chains: int
    num_draws: int
    num_burnin: int
    status: EstimateStatus
    duration_seconds: float
    reason: str = ""
    nu_hat: float | None = None
    nu_stderr: float | None = None
    functional_variance: float | None = None
    waic: float | None = None
    waic_stderr: float | None = None
    wbic: float | None = None
    chain_loss: NDArray[np.float64] = field(
        default_factory=lambda: np.empty((0, 0)), repr=False, compare=False
    )
    n_data: int | None = None
    sample_unit: str = "sample"
    counted: str = ""
    noise: str = ""
    lambda_within: float = float("nan")
    lambda_outside: float = float("nan")
    rhat: float = float("nan")
    ess: float = float("nan")
    num_diverged: int = 0
    num_resets: int = 0
    virial: float = float("nan")
    drift: float = float("nan")
    step_inflation: float = float("nan")
    batch_inflation: float = float("nan")
    acceptance: float | None = None
    sharpness: float | None = None
    sampler: str = ""
    engine: str = ""
    warm: bool = False
    probe_mode: str = "eval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One value of one observable at one step.

    Attributes:
        name: Name of the stream, for example "train_loss" or "llc".
        step: Optimizer steps completed.
        value: The value, in `unit`.
        unit: Unit in words, for example "nats"; "1" for a dimensionless number.
        stderr: Standard error of `value`, or None if the value is exact.
        epoch: Epoch, if known.
        timestamp: Unix seconds.
        duration_seconds: What the measurement cost.
        status: How far to trust the value.
        reason: Why the status is not OK.
        detail: The full record behind the value; an `Estimate` for the LLC.
    """

    name: str
    step: int
    value: float
    unit: str = "1"
    stderr: float | None = None
    epoch: int | None = None
    timestamp: float = 0.0
    duration_seconds: float = 0.0
    status: EstimateStatus = EstimateStatus.OK
    reason: str = ""
    detail: Estimate | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatches:
    """Gradients of the micro-batches of one optimizer step, as far as they cost nothing to see.

    Attributes:
        first_norm: L2 norm of the gradient that was there after the first; a 0-dim tensor, not yet
            read. Like the step's own, it is in units of the accumulated gradient, which is the sum
            of the micro-batches'.
        num_samples: Samples of each micro-batch seen so far.
        num_replicas: Processes over which the accumulated gradient is averaged, and the first
            micro-batch's is not.
    """

    first_norm: torch.Tensor
    num_samples: tuple[int, ...]
    num_replicas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What can only be seen just before an optimizer step.

    Attributes:
        step: The step this record leads to (the count after the optimizer has stepped).
        gradient_norm: L2 norm of the whole gradient before clipping; a 0-dim tensor, not yet read.
        params_before: Copies of the trainable parameters before the step, by name; empty where
            nobody asked for them.
        micro_batches: What the gradient was accumulated from; None where it was not, or nobody
            looked.
    """

    step: int
    gradient_norm: torch.Tensor
    params_before: Mapping[str, torch.Tensor]
    micro_batches: MicroBatches | None = None


class SharedWork:
    """What observables that are measured in one turn have in common, so that it is done once.

    All contexts of a turn hold the same object. It holds what was found until the turn is over.

    Args:
        seed: For random numbers that several observables use.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._found: dict[tuple[Hashable, ...], tuple[Any, tuple[object, ...]]] = {}

    def get(self, what: Hashable, make: Callable[[], T], *about: object) -> T:
        """What was made before of the same, or is made now.

        Args:
            what: What it is.
            make: Makes it; what it raises is not kept.
            about: What it was made of, told apart by identity.
        """
        key = (what, *map(id, about))
        if key not in self._found:
            self._found[key] = (make(), about)  # held, so that no identity is used twice
        found: T = self._found[key][0]
        return found

    def has(self, what: Hashable, *about: object) -> bool:
        """Whether it was made before."""
        return (what, *map(id, about)) in self._found


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureContext:
    """Everything an observable may look at. Nothing in it is alive: training cannot be touched.

    Attributes:
        step: Optimizer steps completed.
        epoch: Epoch, if known.
        copied: Gives the copy of the model; see `model`. It is made when first asked for where
            weights are read as they are.
        params: w*: detached copies of the trainable parameters, by name: in fp32, in fp64 or
            complex where training is. In a `live_context`, which only observables of our own see,
            the live weights themselves, in their own dtype: never write into them.
        buffers: Copies of the buffers, by name. Also frozen parameters, which are never sampled.
        frozen: Which of the buffers are frozen parameters.
        lent: Memory of live weights, by parameter name, in which chains may run if they leave it as
            they found it. Empty unless the caller of `measure_context` lends it.
        loss_fn: `loss_fn(model, batch)`, in nats; None when the run has no probe loss.
        batches: The fixed probe batches, collated once, on the model's device.
        val_batches: Probe batches of validation data, if given.
        n_samples: n, the number of terms the probe loss averages over.
        n_data: Size of the training dataset, if known.
        sample_unit: What one term of the loss is.
        probe_mode: "eval" or "train".
        generator: A generator of our own on the model's device, seeded from (seed, step).
        deadline_seconds: How long the measurement should take at most; inf without a budget. What
            is spread over the training counts its own seconds only.
        pause: Asked between two evaluations of a measurement in steps: whether training is to go
            on before the next one.
        over: Whether a measurement in steps is to end at once, with what it has.
        max_bytes: Memory that a measurement should take at most; None leaves it to the sampler.
        previous: The last estimate of the same observable in this process, if any.
        record: What was seen before the step; None where the training loop did not call
            `Watch.before_step`.
        learning_rate: Of the coming step, the largest of all parameter groups; None if unknown.
        shared: What the observables of a turn have in common; `dataclasses.replace` carries it on.
    """

    step: int
    epoch: int | None = None
    copied: Callable[[], nn.Module]
    params: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]
    frozen: frozenset[str] = frozenset()
    lent: Mapping[str, torch.Tensor] = field(default_factory=dict)
    loss_fn: LossFn | None = None
    batches: Sequence[Any] = ()
    val_batches: Sequence[Any] = ()
    n_samples: int = 0
    n_data: int | None = None
    sample_unit: str = "sample"
    probe_mode: str = "eval"
    generator: torch.Generator
    deadline_seconds: float = float("inf")
    pause: Callable[[], bool] = lambda: False
    over: Callable[[], bool] = lambda: False
    max_bytes: int | None = None
    previous: Estimate | None = None
    record: StepRecord | None = None
    learning_rate: float | None = None
    shared: SharedWork = field(default_factory=SharedWork)

    @property
    def model(self) -> nn.Module:
        """A copy of the model whose parameters live on the meta device.

        Give it weights with `torch.func.functional_call`. A parameter that was not given fails
        loudly.
        """
        return self.copied()


@runtime_checkable
class Observable(Protocol):
    """Something that is measured on a copy of the model.

    Optional members: `cost` (a `Cost`), `work(context)` (the `Work` of one measurement),
    `measure_in_steps(context)` (the same as `Steps`, which may be spread over the training),
    `source` (paper and equation), `needs` (what it looks for in model, probe and arguments),
    `better` ("up" or "down": which way is better, if the name does not say it),
    `locate(onset, end)` (the parameter groups that moved most between two steps, each with a
    number, largest first),
    `check(context)`, which raises `RefusedError` before the first step when the model lacks what
    is needed, and `state_dict()` / `load_state_dict(state)`.
    """

    name: str
    unit: str

    def measure(self, context: MeasureContext) -> Observation | list[Observation]:
        """Measure at `context.step`."""
        ...


class Sink(Protocol):
    """A place results go to. Each method may raise: the watch catches it, counts it, goes on."""

    def emit(self, observation: Observation) -> None:
        """Take one observation."""

    def notify(self, transition: Transition) -> None:
        """Take one transition, each time its status changes."""

    def flush(self) -> None:
        """Send out what is held back."""

    def close(self) -> None:
        """Release everything. Called once, also after a failure."""
