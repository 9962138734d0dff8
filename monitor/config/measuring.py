"""Settings of what is measured: how the LLC is sampled, on which data, and each observable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from phasewatch.monitor.config.base import Settings
from phasewatch.monitor.config.schedule import Cadence, EveryNSteps


class SamplerConfig(Settings):
    """How the local posterior is sampled. The defaults need no tuning.

    The target density is p(w) ∝ exp(−nβ L_n(w) − γ/2 ‖w − w*‖²).

    Attributes:
        scheme: "baoab": underdamped Langevin on the whole fixed probe with adaptive sharpness.
            "lm": Leimkuhler–Matthews, overdamped, with a control variate on minibatches: for
            probes too large to be used whole at each step.
            "sgld": overdamped steps w ← w − (ε/2)[nβ ĝ + γ(w−w*)] + √ε ξ (Lau et al. 2023).
            "rmsprop_sgld": the same, preconditioned by the running size of ĝ (Li et al. 2016).
        num_chains: Chains, run side by side.
        num_draws: Steps of each chain, burn-in included. None takes 256, and in a run fewer where
            they prove already that the chains have settled.
        max_draws: Chains go on beyond `num_draws`, up to this, while more draws can bring the
            error or the checks within bounds and time is left. At most `num_draws`: never.
        max_seconds: Seconds after which no draws beyond `num_draws` are begun.
        target_error: Draws go on until two standard errors of λ̂ are at most this share of it. In
            a live run they go on only until the checks pass: the next measurement goes on.
        burnin_fraction: Share of the draws dropped at the start; None finds where the plateau
            begins.
        warm_start: Chains of a live run go on from where they stood at the measurement before.
        noise: Of a loss that draws random numbers: "average" measures the expected loss, over
            `noise_draws` draws; "frozen" one draw of it, which is another quantity.
        noise_draws: Draws that are averaged.
        n_beta: nβ; None takes n / log n from the probe's n.
        localization: γ, the strength of the pull back to w*. It is part of the number: keep it
            fixed through a run. None takes √d in a run, d the number of trainable parameters, and
            1 in `estimate_llc`.
        step_size: ε in Lau's convention; None sets it from the measured sharpness.
        batch_size: Probe batches drawn for each step, for all schemes but "baoab"; None uses every
            probe batch at each step.
        engine: "auto" takes what fits and is faster: one vmap over all chains or over some at a
            time, or a "loop" over chains; "inplace", one chain after another in the memory of the
            weights, where nothing else fits.
        max_bytes: Memory that chains and their gradients may take; None is a quarter of what is
            free.
        seed: Seed of the chains' own generators.

    Example:
        >>> SamplerConfig(num_chains=4, num_draws=200).num_chains
        4
    """

    scheme: Literal["baoab", "lm", "sgld", "rmsprop_sgld"] = "baoab"
    num_chains: PositiveInt = 4
    num_draws: Annotated[int, Field(ge=8)] | None = None
    max_draws: NonNegativeInt = 16_384
    max_seconds: NonNegativeFloat = 60.0
    target_error: PositiveFloat = 0.1
    burnin_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    warm_start: bool = True
    noise: Literal["average", "frozen"] = "average"
    noise_draws: Annotated[int, Field(ge=2)] = 16
    n_beta: PositiveFloat | None = None
    localization: NonNegativeFloat | None = None
    step_size: PositiveFloat | None = None
    batch_size: PositiveInt | None = None
    engine: Literal["auto", "vmap", "loop", "inplace"] = "auto"
    max_bytes: PositiveInt | None = None
    seed: NonNegativeInt = 0


class ProbeConfig(Settings):
    """The fixed data on which the model is measured.

    Attributes:
        num_samples: Samples drawn once from the training data.
        batch_size: Samples a batch; None uses one batch for all of them.
        mode: "eval" runs the copy in eval mode; "train" in train mode (marked on each estimate).
        max_bytes: Largest probe kept on the device; a larger one is shrunk, and that is told.
    """

    num_samples: PositiveInt = 1024
    batch_size: PositiveInt | None = None
    mode: Literal["eval", "train"] = "eval"
    max_bytes: PositiveInt = 256 * 2**20


class ObservableConfig(Settings):
    """Settings of one observable.

    Attributes:
        every_n_steps: Its own cadence in optimizer steps.
        schedule: Its own cadence, in full.
        parameters: Keyword arguments it is made with.
    """

    every_n_steps: PositiveInt | None = None
    schedule: Cadence | None = None
    parameters: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_cadence(self) -> ObservableConfig:
        if self.every_n_steps is not None and self.schedule is not None:
            raise ValueError("give every_n_steps or schedule, not both")
        return self

    @property
    def cadence(self) -> Cadence | None:
        """The cadence these settings ask for; None takes the run's."""
        return EveryNSteps(n=self.every_n_steps) if self.every_n_steps else self.schedule


class AroundConfig(Settings):
    """What is done around a suspected transition.

    Attributes:
        denser: So many times as often is measured from a suspicion on, for a twentieth of the run,
            and once more as long when it is confirmed; of all steps a quarter at most. None is 4
            for what a budget holds back; what you gave a cadence without a budget keeps to it.
            1 is never.
        keep: Checkpoints kept from before a suspicion, and from after it, where `checkpoint_on` is
            set.
        every_n_steps: Steps between two of them. None is a hundredth of the run, or more where a
            quarter of the budget does not pay for that.
        max_transitions: Checkpoints of so many transitions of a run are kept; they take up to
            2 × `keep` each. Those of a suspicion that is withdrawn are deleted.
        folder: Where they lie, each run's in a folder of its own; a relative path lies where a
            relative store lies.
    """

    denser: PositiveInt | None = None
    keep: PositiveInt = 5
    every_n_steps: PositiveInt | None = None
    max_transitions: PositiveInt = 8
    folder: str = "phasewatch-checkpoints"
