"""Progress measures of grokking on modular addition (Nanda et al. 2023, arXiv 2301.05217)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import LOSS, SUPPORTING, Role, Tells
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.evaluation import device_of
from phasewatch.monitor.observables.toy_models.fourier import (
    basis,
    by_frequency,
    component,
    diagonal_means,
    gini,
    spectrum,
)
from phasewatch.monitor.observables.toy_models.modular_addition import (
    AUTO,
    Logits,
    Task,
    grid_logits,
    matrix,
    read_task,
)
from phasewatch.monitor.observables.weights.norms import MAX_GROUPS, observed
from phasewatch.monitor.observables.work import of_probe, reads

LOSS_READS = 15.0
"""Reads for each logit, in double precision, of a loss without a frequency."""


KEY_SHARE = 0.25
"""A frequency is key where its norm exceeds this share of the largest."""


_EXCLUDED = replace(LOSS, tells=Tells.EXCLUDED_LOSS, detector="measured")


class GrokkingProgress:
    """Restricted and excluded loss, sparsity of the weights in the Fourier basis, key frequencies.

    The network learns (a, b) → (a + b) mod p from some of the p² pairs. It is run on all of them,
    once a measurement; ℓ(a, b, c) are its logits, w_k = 2πk/p. The projection of ℓ on
    cos(w_k(a+b)) and sin(w_k(a+b)) is P_k ℓ; K are the key frequencies. All losses are
    cross-entropies in nats, computed in float64. The streams:

    - `restricted_loss`: over all pairs, of Σ_{k∈K} P_k ℓ plus the mean of ℓ over all pairs, class
      by class. It falls as the trigonometric solution forms.
    - `excluded_loss`: over the train pairs, of ℓ − Σ_{k∈K} P_k ℓ. It rises as the network comes to
      rely on that solution. `excluded_loss/<k>`: of ℓ − P_k ℓ. `excluded_loss_max`: the largest of
      these over all k; it depends on no choice of K.
    - `gini_embedding`, `gini_unembedding`: Gini coefficient of the norms of the Fourier components
      of W_E and W_L over the p inputs and the p classes; the constant is left out, cosine and
      sine are kept apart: 0 all equal, 1 − 1/(p−1) one alone.
    - `key_frequencies`: their number. `key_frequencies/<k>`: norm of frequency k over the largest;
      it is key above 0.25. Parts are of the 32 largest, if there are more.

    K is causal: the frequencies whose norm exceeds a quarter of the largest at the time of the
    measurement, cosine and sine together. (The paper takes those of the final weights: give them
    as `frequencies` once they are known.) The norm is by default that of P_k ℓ over the classes:
    it needs no weights, and as a product of all layers it shows early what the network uses. With
    `key_from="unembedding"` it is that of W_L, which tells late: in `examples/grokking_phases.py`
    W_L calls every frequency key until the network generalises, whereas those of P_k ℓ are among
    the final ones from the time when circuits form.

    The probe is read as the train pairs: batches (inputs, labels) whose inputs are integers a, b
    and perhaps a constant rest, such as a token "=". A probe of some of the train pairs gives the
    excluded loss over those.

    Args:
        p: The modulus; None takes it from the probe.
        embedding: W_E, (≥ p, d): a path of attributes from the model, such as "embed.weight", or
            "first.weight.T"; "auto" takes the first `nn.Embedding` with p rows or more; None
            goes without.
        unembedding: W_L, (≥ p, neurons), by the same rules; several are multiplied, as W_U W_out
            of a transformer; "auto" takes the last `nn.Linear` with p outputs or more.
        key_from: Whose frequencies are ranked: those of the "logits" or of the "unembedding".
        frequencies: K; None finds it at each measurement.
        block: Keep in the restricted loss what is a function of a − b at the key frequencies,
            too, as the paper's text has it; its released code does not.
        logits: `logits(model, pairs)` of shape (N, ≥ p); None calls the model on inputs like those
            of the probe, and takes the last position and the first p classes.
        train_pairs: The pairs trained on, (N, 2); None reads the probe.

    Raises:
        ConfigError: `p` is below 3, `key_from` unknown, or the unembedding it needs left out.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> class Adder(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.unembed = nn.Embedding(11, 8), nn.Linear(16, 11, bias=False)
        ...
        ...     def forward(self, pairs):
        ...         return self.unembed(self.embed(pairs).flatten(start_dim=-2).square())
        >>> _ = torch.manual_seed(0)
        >>> pairs = torch.cartesian_prod(torch.arange(11), torch.arange(11))[::2]
        >>> loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> batch = (pairs, pairs.sum(dim=1) % 11)
        >>> [o.name for o in measure_once(GrokkingProgress(), Adder(), [batch], loss)][:3]
        ['restricted_loss', 'excluded_loss', 'excluded_loss_max']
    """

    name = "grokking"
    unit = "nats"
    cost = Cost.FORWARD
    needs = "batches of integers (a, b) with labels (a + b) mod p, an nn.Embedding, an nn.Linear"
    source = "Nanda et al. 2023, arXiv 2301.05217, §5.1 and App. C; Hurley & Rickard 2009, eq. 3"
    streams: ClassVar = {
        "restricted_loss": replace(LOSS, tells=Tells.RESTRICTED_LOSS),
        "excluded_loss": _EXCLUDED,
        "excluded_loss_max": replace(_EXCLUDED, role=Role.SUPPORTING),
        "key_frequencies": SUPPORTING,
        "gini_embedding": SUPPORTING,
        "gini_unembedding": SUPPORTING,
    }

    def __init__(
        self,
        p: int | None = None,
        *,
        embedding: str | None = AUTO,
        unembedding: str | Sequence[str] | None = AUTO,
        key_from: Literal["logits", "unembedding"] = "logits",
        frequencies: Sequence[int] | None = None,
        block: bool = False,
        logits: Logits | None = None,
        train_pairs: Any = None,
    ) -> None:
        if p is not None and p < 3:
            raise ConfigError(f"grokking: p is {p}; it must be 3 or more to have a frequency")
        if key_from not in ("logits", "unembedding"):
            raise ConfigError(
                f'grokking: key_from is {key_from!r}; it must be "logits" or "unembedding"'
            )
        if key_from == "unembedding" and unembedding is None:
            raise ConfigError(
                'grokking: key_from="unembedding" needs W_L; give unembedding=, or leave key_from '
                'at "logits"'
            )
        self._p = p
        self._embedding = embedding
        self._unembedding = unembedding
        self._key_from = key_from
        self._frequencies = frequencies
        self._block = block
        self._logits = logits
        self._train_pairs = train_pairs
        self._known: tuple[Sequence[Any], Task, Tensor, Tensor] | None = None

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what is not modular addition, or cannot be read.

        Raises:
            RefusedError: Says what was looked for, what there is, and the way out.
        """
        self.measure(context)

    def work(self, context: MeasureContext) -> Work:
        """A forward pass over all pairs; two losses for each frequency and train pair."""
        task, _, _ = self._grid(context)
        losses = (task.p // 2 + 2) * len(task.train) + 4 * task.p**2
        return replace(
            reads(context, LOSS_READS * losses * task.p),
            forwards=of_probe(context, task.p**2),
        )

    @torch.no_grad()
    def measure(self, context: MeasureContext) -> list[Observation]:
        """All streams at w*, from one pass over the grid.

        Raises:
            RefusedError: The probe, the weights or the logits are not what was looked for.
        """
        task, rows, pairs = self._grid(context)
        p = task.p
        logits = grid_logits(context, task, pairs, self._logits)
        sums = pairs.sum(dim=1) % p
        means = diagonal_means(logits, sums, p)
        weights = {
            "embedding": matrix(context, self._embedding, "embedding", p),
            "unembedding": matrix(context, self._unembedding, "unembedding", p),
        }

        by_weights = weights["unembedding"] if self._key_from == "unembedding" else None
        strength = by_frequency(spectrum(means if by_weights is None else by_weights, rows))
        strength = strength / strength.max()
        key = self._key(strength)

        restricted = logits.mean(dim=0) + self._kept(means, key, rows)[sums]
        if self._block:
            differences = (pairs[:, 0] - pairs[:, 1]) % p
            # At half an even modulus a − b and a + b are the same: it is kept already.
            others = [k for k in key if 2 * k < p]
            other = diagonal_means(logits, differences, p)
            restricted += self._kept(other, others, rows)[differences]

        at = task.train[:, 0] * p + task.train[:, 1]
        own, labels = logits[at], sums[at]
        without = [
            float(cross_entropy(own - component(means, k, rows)[labels], labels))
            for k in range(1, p // 2 + 1)
        ]
        without_key = cross_entropy(own - self._kept(means, key, rows)[labels], labels)

        found = [
            ("restricted_loss", "nats", float(cross_entropy(restricted, sums))),
            ("excluded_loss", "nats", float(without_key)),
            ("excluded_loss_max", "nats", max(without)),
            ("key_frequencies", "1", len(key)),
        ]
        for what, values in weights.items():
            if values is not None:
                found.append((f"gini_{what}", "1", gini(spectrum(values, rows))))
        for k in sorted((strength.argsort(descending=True)[:MAX_GROUPS] + 1).tolist()):
            found.append((f"excluded_loss/{k}", "nats", without[k - 1]))
            found.append((f"key_frequencies/{k}", "1", float(strength[k - 1])))
        return [observed(context, name, unit, value) for name, unit, value in found]

    def _grid(self, context: MeasureContext) -> tuple[Task, Tensor, Tensor]:
        """The task, the Fourier basis and all pairs; made once for the same probe."""
        known = self._known
        if (
            known is None
            or known[0] is not context.batches
            or known[2].device != device_of(context)
        ):
            task = read_task(context, self._p, self._train_pairs)
            rows = basis(task.p, device_of(context))
            pairs = torch.cartesian_prod(*2 * [torch.arange(task.p, device=rows.device)])
            known = self._known = (context.batches, task, rows, pairs)
        return known[1:]

    def _key(self, strength: Tensor) -> list[int]:
        """The key frequencies, given those of all from 1 on."""
        if self._frequencies is None:
            return [int(k) for k in (strength > KEY_SHARE).nonzero()[:, 0] + 1]
        wrong = [k for k in self._frequencies if not 1 <= k <= len(strength)]
        if wrong:
            raise RefusedError(
                f"grokking: there are no frequencies {wrong}; they run from 1 to {len(strength)}"
            )
        return sorted(set(self._frequencies))

    @staticmethod
    def _kept(means: Tensor, key: Sequence[int], rows: Tensor) -> Tensor:
        """Σ_{k∈K} P_k of a function of one number mod p."""
        return sum((component(means, k, rows) for k in key), torch.zeros_like(means))
