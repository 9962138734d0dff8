"""The local posterior: its loss, evaluated at weights that no live model ever holds.

Target density over the displacement x = w − w*:

    p(x) ∝ exp(−U(x)),   U(x) = nβ L_n(w* + x) + (γ/2) ‖x‖²

Weights travel as one flat vector of d numbers (fp32 or wider), and are cut into the model's
parameters, in their training dtype, inside the evaluation: a step of 10⁻⁴ would be rounded away in
bf16.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from phasewatch.monitor.core.together import ALONE, Together
from phasewatch.monitor.sampling.batches import (
    in_double,
)
from phasewatch.monitor.sampling.layout import Layout
from phasewatch.monitor.sampling.probe_loss import ProbeLoss
from phasewatch.monitor.sampling.terms import GIVEN, GIVEN_COUNT, Count


@dataclass(frozen=True, slots=True)
class Problem:
    """One model, one probe, one centre: everything a gradient needs.

    Attributes:
        loss: Module that calls the loss.
        layout: How flat vectors become parameters.
        params: w* by name, fp32 or wider.
        fixed: Buffers and frozen parameters by prefixed name.
        batches: Probe batches.
        weights: Share of the probe's terms in each batch; sums to one.
        written: Buffers and frozen weights that the loss writes into (BatchNorm in train mode, a
            moving average of the weights): cloned for each evaluation.
        moved: Sampled weights that the loss writes into, such as those of a target network that it
            sets to the trained one.
        copies_batch: Clone the batch at each evaluation, because the loss writes into it.
        aliases: Further names of tied weights and buffers, each with its first name.
        lent: Memory of live weights, by name; see `MeasureContext`.
        kept_bytes: What one chain's forward pass keeps for its backward pass, at most.
        max_bytes: What chains should take at most beside the training; None: no word of it.
        precision: Unit roundoff of the coarsest floating dtype it keeps (bf16 under autocast).
        count: How the terms of a batch were counted.
        left_out: Batches without a term, which are not among `batches`.
        noise_is_shared: All chains shall get the same draws of a loss that draws.
        together: The processes among which weights and batches are spread. Of each batch this one
            has a part.
        shares: What the part of each batch counts in the mean of all its parts; they sum to one
            over the processes. Empty where batches are whole.
        probe: The whole batches.
    """

    loss: ProbeLoss
    layout: Layout
    params: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]
    batches: Sequence[Any]
    weights: tuple[float, ...]
    written: frozenset[str] = frozenset()
    moved: frozenset[str] = frozenset()
    copies_batch: bool = False
    aliases: tuple[tuple[str, str], ...] = ()
    lent: Mapping[str, Tensor] = field(default_factory=dict)
    kept_bytes: int = 0
    precision: float = 0.0
    max_bytes: int | None = None
    count: Count = GIVEN
    left_out: int = 0
    noise_is_shared: bool = False
    together: Together = ALONE
    shares: tuple[float, ...] = ()
    probe: Sequence[Any] = ()

    @property
    def gives_terms(self) -> bool:
        """Whether the loss itself tells how many terms it has."""
        return self.count in (GIVEN, GIVEN_COUNT)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.params.values())).device

    @property
    def state_bytes(self) -> int:
        """Bytes of one vector of state."""
        return self.layout.num_parameters * self.layout.state_dtype.itemsize

    @property
    def num_parameters(self) -> int:
        """d, of all processes."""
        return round(math.fsum(self.together.each(self.layout.num_parameters)))

    def share(self, index: int) -> float:
        """What the part of batch `index` here counts in the mean of all its parts."""
        return self.shares[index] if self.shares else 1.0

    def center(self) -> Tensor:
        """w* as one new vector of shape (d,)."""
        return self.layout.flatten(self.params)

    def displacements(self, num_chains: int) -> Tensor:
        """Zeros for the displacement x of each chain, shape (chains, d)."""
        shape = (num_chains, self.layout.num_parameters)
        return torch.zeros(shape, dtype=self.layout.state_dtype, device=self.device)

    def weights_of(self, flat: Tensor) -> dict[str, Tensor]:
        """Weights by prefixed name, cut from `flat`, (d,) or (chains, d).

        Where the loss writes into some, each is a tensor of its own, as a module's parameters are:
        what is written into one view would count as a change of all others.
        """
        weights = self.layout.unflatten(flat)
        if not self.moved:
            return weights
        return {name: weight.clone() for name, weight in weights.items()}

    def in_double(self) -> Problem:
        """The same problem in fp64 throughout."""
        dtypes = (torch.float64,) * len(self.layout.names)
        return replace(
            self,
            layout=replace(self.layout, dtypes=dtypes, state_dtype=torch.float64),
            params=in_double(self.params),
            fixed=in_double(self.fixed),
            batches=in_double(self.batches),
        )

    def batch(self, index: int) -> Any:
        """Batch `index`, safe to hand to the loss."""
        chosen = self.batches[index]
        return copy.deepcopy(chosen) if self.copies_batch else chosen

    def call(self, values: Mapping[str, Tensor], *arguments: Any) -> Any:
        """Call the loss module with `values` in place of its parameters and buffers."""
        tied = {alias: values[name] for alias, name in self.aliases if name in values}
        # All names of a tied weight are given, so that nothing has to be searched at each call.
        sampled = {"sampled": self.layout.names}
        return torch.func.functional_call(
            self.loss, {**values, **tied}, arguments, sampled, tie_weights=False
        )

    def constants(self) -> Mapping[str, Tensor]:
        """Buffers, safe to hand to the model."""
        if not self.written:
            return self.fixed
        return {n: t.clone() if n in self.written else t for n, t in self.fixed.items()}
